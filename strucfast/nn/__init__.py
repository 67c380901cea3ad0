"""Drop-in modules: modulation layers, structural transforms, fused convolution blocks, the structural decoder."""

from .adain import AdaIN
from .conv_block import ConvBlock
from .film import FiLM
from .str_tfm import StrTfm, StrTfmBank
from .structural_decoder import StructuralDecoder

__all__ = ["AdaIN", "ConvBlock", "FiLM", "StrTfm", "StrTfmBank", "StructuralDecoder"]
