"""The Str-Tfm's per-variable MLPs, batched over the variables."""

import functools
from collections.abc import Sequence

import torch

from ._activations import activate, map_scale


def str_tfm(
    u: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    *,
    activation: str = "mish",
    scale_map: str = "exp",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain PyTorch truth of :func:`strucfast.ops.str_tfm`, with the same arguments."""
    out_dtype = functools.reduce(torch.promote_types, [t.dtype for t in (u, *weights, *biases)])
    dtype = torch.float32 if out_dtype in (torch.float16, torch.bfloat16) else out_dtype
    # Autocast would run the products in half precision; the kernels upcast instead.
    with torch.autocast(u.device.type, enabled=False):
        hidden = u.to(dtype).transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(weights, biases)):
            if layer > 0:
                hidden = activate(hidden, activation)
            hidden = hidden @ weight.to(dtype).transpose(1, 2) + bias.to(dtype).unsqueeze(1)
        logits, shift = hidden.transpose(0, 1).chunk(2, dim=-1)
        return map_scale(logits, scale_map).to(out_dtype), shift.to(out_dtype)
