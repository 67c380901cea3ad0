"""Drop-in modules: modulation layers, structural transforms, fused convolution blocks, the structural decoder."""

from .adain import AdaIN
from .conv_block import ConvBlock
from .convert import Conversion, convert
from .film import FiLM
from .group_norm_activation import GroupNormActivation
from .str_tfm import StrTfm, StrTfmBank
from .structural_decoder import StructuralDecoder

__all__ = [
    "AdaIN",
    "ConvBlock",
    "Conversion",
    "FiLM",
    "GroupNormActivation",
    "StrTfm",
    "StrTfmBank",
    "StructuralDecoder",
    "convert",
]
