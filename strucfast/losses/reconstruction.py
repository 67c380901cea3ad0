"""Reconstruction terms: negative log-likelihoods of the data, summed over pixels and averaged over the batch."""

import torch
import torch.nn.functional as F


def bernoulli_reconstruction(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of ``target`` under Bernoulli ``logits``, in nats per sample.

    ``-1/N sum_n sum_i [ x log sigmoid(l) + (1 - x) log(1 - sigmoid(l)) ]`` (SAE paper, appendix A.2.2).
    Half types are computed in float32, also under autocast.

    Shapes: logits and target (N, ...) of the same shape -> scalar. Values of target are expected in [0, 1], unchecked.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes differ or the batch is empty.
    """
    for name, tensor in (("logits", logits), ("target", target)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if logits.shape != target.shape:
        raise ValueError(f"target must have the shape of logits, {tuple(logits.shape)}, got {tuple(target.shape)}")
    if logits.dim() == 0 or logits.shape[0] == 0:
        raise ValueError(f"logits must have at least one sample, got shape {tuple(logits.shape)}")
    dtype = torch.promote_types(torch.promote_types(logits.dtype, target.dtype), torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        total = F.binary_cross_entropy_with_logits(logits.to(dtype), target.to(dtype), reduction="sum")
    return total / logits.shape[0]
