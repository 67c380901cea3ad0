"""Distribution function of one coordinate of an independent subspace, by quadrature."""

import math

import torch

# Abscissae of the double-exponential rule: exact to float64 for exponents up to some thousands.
_REACH, _STEPS_PER_UNIT = 12, 32


def isa_coordinate_cdf(
    value: torch.Tensor, n: torch.Tensor, p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """P(z_j <= value) in float64; n, p0, p, scale are those of the subspace of each value and broadcast with it.

    ``|z_j| = v u`` with ``v^p0/s`` Gamma(n/p0) and ``u^p`` Beta(1/p, (n-1)/p) independent, so the distribution of |z_j|
    is the mean over u of that of v at ``|z_j|/u``. Beta's density has poles at both ends for large p; the rule below
    puts them at infinity. With one coordinate u is 1.
    """
    value, p0, p, scale = (tensor.double() for tensor in (value, p0, p, scale))
    log_size = value.abs().log()
    one = _radius_cdf(log_size, n, p0, scale)
    reach = _REACH * _STEPS_PER_UNIT
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64, device=value.device) / _STEPS_PER_UNIT
    logit = math.pi * steps.sinh()
    log_w, log_rest = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    log_weight = log_w / p[..., None] + log_rest * ((n - 1) / p)[..., None] + steps.cosh().log()
    inner = _radius_cdf(log_size[..., None] - log_w / p[..., None], n[..., None], p0[..., None], scale[..., None])
    many = (torch.softmax(log_weight, dim=-1) * inner).sum(dim=-1)
    return 0.5 + 0.5 * value.sign() * torch.where(n == 1, one, many)


def _radius_cdf(log_radius: torch.Tensor, n: torch.Tensor, p0: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    energy = (p0 * log_radius - scale.log()).exp()
    return torch.special.gammainc(*torch.broadcast_tensors(n / p0, energy))
