"""Whole models for the benchmarks: a strucfast model beside the same net in plain torch, and one step of each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import strucfast as sf
from benchmarks.baselines.sae import PlainSAE
from benchmarks.baselines.tcvae import PlainTCVAE
from benchmarks.baselines.vlae import PlainVLAE
from strucfast.models import SAE, TCVAE, VLAE

NAMES = ("sae-12", "vlae-12", "beta-tcvae")
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {SAE: PlainSAE, VLAE: PlainVLAE, TCVAE: PlainTCVAE}
# The ops whose correctness a model's figures rest on.
OPS = {
    "sae-12": ("group_norm_modulate", "str_tfm"),
    "vlae-12": ("group_norm_modulate",),
    "beta-tcvae": ("group_norm_modulate", "kl_terms"),
}
# Relative differences of the losses; a bfloat16 net rounds every activation to 8 bits.
LOSS_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
# Of the images' gradient in float32. bfloat16 leaves a fifth of it uncertain in a fresh net, on every side.
GRADIENT_ROUNDING = 1e-4
# Of the codes.
CODE_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Net:
    """One provider: ``loss`` and ``encode`` take images (N,C,H,W) in ``layout``."""

    module: nn.Module
    loss: Callable[[torch.Tensor], torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]
    layout: torch.memory_format

    def images(self, batch: int) -> torch.Tensor:
        """The same images for every provider."""
        shape = (batch, *self.module.image_shape)
        return torch.rand(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=self.layout)

    def training_step(self, batch: int, dtype: torch.dtype) -> Callable[[], None]:
        """Loss, gradients and Adam (SAE paper, appendix A.2), fused on every side alike."""
        x = self.images(batch)
        optimizer = torch.optim.Adam(self.module.parameters(), lr=5e-4, fused=True)

        def step() -> None:
            with autocast(dtype):
                total = self.loss(x)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def encoding(self, batch: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        """Codes (N,D) of a batch, without gradients."""
        x = self.images(batch)

        def encode() -> torch.Tensor:
            with torch.no_grad(), autocast(dtype):
                return self.encode(x)

        return encode


def autocast(dtype: torch.dtype) -> torch.autocast:
    """bfloat16 by autocast with float32 parameters, on every side alike; float32 as it is."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def nets(name: str, *, compiled: bool = False, **overrides) -> dict[str, Net]:
    """Provider -> net, all with the same parameters (seed 0), for a preset with ``overrides`` of its config."""
    torch.manual_seed(0)
    model = sf.models.build(name, **overrides)
    # Shapes3D's training split.
    model.dataset_size = 336_000
    last = torch.channels_last
    found = {
        "strucfast": Net(model, lambda x: model.loss(x).total, lambda x: model.encode(x).mean, last),
        "eager": _plain(model, torch.contiguous_format),
        "channels_last": _plain(model, last),
    }
    if compiled:
        torch.compiler.reset()
        own = _plain(model, last).module
        compile = {"dynamic": False}
        found["torch.compile"] = Net(own, torch.compile(own, **compile), torch.compile(own.codes, **compile), last)
    return found


def _plain(model: sf.models.Autoencoder, layout: torch.memory_format) -> Net:
    module = _PLAIN[type(model)](model).to(memory_format=layout)
    module.image_shape = model.image_shape
    return Net(module, module, module.codes, layout)


def case(net: Net, name: str, batch: int) -> str:
    """A model's name, image and batch as the tables have them."""
    channels, height, width = net.module.image_shape
    return f"{name} {height}x{width}x{channels}, N {batch}"


def check_codes(nets: dict[str, Net], dtype: torch.dtype, batch: int = 8) -> None:
    """All providers (before compilation) give the same codes.

    Raises:
        AssertionError: names the provider and how far it is off; there is nothing to compare then.
    """
    codes = nets["strucfast"].encoding(batch, dtype)().float()
    for name, net in nets.items():
        if name != "torch.compile":
            off = ((net.encoding(batch, dtype)().float() - codes).norm() / codes.norm()).item()
            assert off <= CODE_ROUNDING[dtype], f"{name}: its codes differ from strucfast's by {off:.2g}"


def check_losses(nets: dict[str, Net], dtype: torch.dtype, batch: int = 8) -> None:
    """All providers (before compilation) compute the same loss, with the same noise, and in float32 gradients.

    Raises:
        AssertionError: names the provider and how far it is off; there is nothing to compare then.
    """
    plain = {name: net for name, net in nets.items() if name != "torch.compile"}
    for kind in {torch.float32, dtype}:
        found = {name: _loss_and_gradient(net, kind, batch) for name, net in plain.items()}
        loss, gradient = found["strucfast"]
        for name, (value, slope) in found.items():
            off = ((value - loss).abs() / loss.abs()).item()
            assert off <= LOSS_ROUNDING[kind], f"{name}: its loss in {kind} differs from strucfast's by {off:.2g}"
            off = ((slope - gradient).norm() / gradient.norm()).item()
            wrong = kind == torch.float32 and off > GRADIENT_ROUNDING
            assert not wrong, f"{name}: its gradient differs from strucfast's by {off:.2g}"


def _loss_and_gradient(net: Net, dtype: torch.dtype, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch, and its gradient by the images."""
    x = net.images(batch).requires_grad_()
    torch.manual_seed(2)
    with autocast(dtype):
        loss = net.loss(x)
    return loss.detach(), torch.autograd.grad(loss, x)[0]
