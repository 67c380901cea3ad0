"""Whole models for the benchmarks: a strucfast model, its plain-torch copies, and one step of each."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

import strucfast as sf
from benchmarks.baselines.sae import PlainSAE
from benchmarks.baselines.tcvae import PlainTCVAE
from benchmarks.baselines.vlae import PlainVLAE

PLAIN: dict[str, type[nn.Module]] = {"sae-12": PlainSAE, "vlae-12": PlainVLAE, "beta-tcvae": PlainTCVAE}
# The ops whose correctness a model's figures rest on.
OPS = {
    "sae-12": ("group_norm_modulate", "str_tfm"),
    "vlae-12": ("group_norm_modulate",),
    "beta-tcvae": ("group_norm_modulate", "aggregate_log_density"),
}
# Largest relative difference of the losses; a bfloat16 net rounds every activation to 8 bits.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-3}


def build(name: str, **overrides) -> sf.models.Autoencoder:
    """The preset with fresh parameters (seed 0) that knows the size of Shapes3D's training split."""
    torch.manual_seed(0)
    model = sf.models.build(name, **overrides)
    model.dataset_size = 336_000
    return model


def images(model: sf.models.Autoencoder, batch: int, layout: torch.memory_format) -> torch.Tensor:
    x = torch.rand(batch, *model.image_shape, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=layout)


def plain(model: sf.models.Autoencoder, layout: torch.memory_format) -> nn.Module:
    """The same net of plain torch layers in the given layout."""
    return PLAIN[model.name](model).to(memory_format=layout)


def autocast(dtype: torch.dtype) -> torch.autocast:
    """bfloat16 by autocast with float32 parameters, on every side alike; float32 as it is."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def training_step(
    loss: Callable[[], torch.Tensor], parameters: Iterable[nn.Parameter], dtype: torch.dtype
) -> Callable[[], object]:
    """Loss, gradients and Adam (SAE paper, appendix A.2), fused on every side alike."""
    optimizer = torch.optim.Adam(parameters, lr=5e-4, fused=True)

    def step():
        with autocast(dtype):
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def check_losses(losses: dict[str, Callable[[], torch.Tensor]], dtype: torch.dtype) -> None:
    """All providers compute the same number, with the same noise; otherwise there is nothing to compare."""
    found = {}
    for name, loss in losses.items():
        torch.manual_seed(2)
        with torch.no_grad(), autocast(dtype):
            found[name] = loss().item()
    ours = found["strucfast"]
    for name, value in found.items():
        assert abs(value - ours) <= ROUNDING[dtype] * abs(ours), f"loss of {name} is {value}, of strucfast {ours}"
