"""Random draws with an optional generator, and what every distribution here needs beside torch's own tools.

With a generator the numbers come from it alone, on its device, and are moved to where the parameters are; the global
generator is left as it was. Without one they come from the global generator, as torch.distributions' do.
"""

import inspect
import math
from collections.abc import Sequence

import torch
from torch.distributions import Distribution, Independent, Normal

NO_SHAPE = torch.Size()
LOG_2 = math.log(2.0)
LOG_2_PI = math.log(2.0 * math.pi)
_HALF_TYPES = (torch.float16, torch.bfloat16)


def density_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """What a density is computed in: the promoted dtype, float32 for half types."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.float32 if dtype in _HALF_TYPES else dtype


def positive_uniform(
    shape: torch.Size, like: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Uniform on (0,1]: its logarithm is finite. float32 for half types, which would know 256 or 2048 values only."""
    return 1 - _move(torch.rand(shape, dtype=density_dtype(like), **_source(like, generator)), like)


def standard_normal(shape: torch.Size, like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return _move(torch.randn(shape, dtype=like.dtype, **_source(like, generator)), like)


def signs(shape: torch.Size, like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """+1 or -1, with probability 1/2 each."""
    heads = torch.rand(shape, dtype=like.dtype, **_source(like, generator)) < 0.5
    return torch.where(_move(heads, like), 1.0, -1.0).to(like.dtype)


def standard_gamma(shape: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Gamma(shape, 1), elementwise, differentiable in its shape parameter; float32 for half types."""
    concentration = shape.to(_source(shape, generator)["device"], density_dtype(shape))
    return _move(torch._standard_gamma(concentration, generator=generator), shape)


def log_standard_gamma(shape: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """log of Gamma(shape, 1), finite however small the shape: Gamma(a) is Gamma(1 + a) U^(1/a)."""
    boost = positive_uniform(shape.shape, shape, generator).log() / shape
    return standard_gamma(1 + shape, generator).log() + boost


def log_node_value(
    size: torch.Tensor | float, p: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """log of Gamma(size/p)^(1/p): the value of a node of an Lp-nested tree with that many leaves, before normalising.

    Gamma(a) is Gamma(1 + a) U^(1/a), so no Gamma shape is below 1 and U's power is that of a length, not of a length^p:
    nothing underflows for large p.
    """
    power = standard_gamma(1 + size / p, generator).log() / p
    return power + positive_uniform(p.shape, p, generator).log() / size


def log_child_values(
    sizes: Sequence[int], p: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """log of the children's values (*p.shape, l) of a node of value 1 whose children have these numbers of leaves."""
    size = filled(sizes, p)
    exponent = p[..., None].expand(*p.shape, len(sizes))
    log_value = log_node_value(size, exponent, generator)
    return log_value - (torch.logsumexp(log_value * exponent, dim=-1) / p)[..., None]


def foreign_draw(
    distribution: Distribution, sample_shape: torch.Size, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """A sample of any torch distribution on a device, reparametrised where it can be, from the generator if given."""
    sampler = distribution.rsample if distribution.has_rsample else distribution.sample
    if generator is None:
        return sampler(sample_shape)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    # torch's own samplers know the global generators only: the one in use is lent a seed and put back.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        return sampler(sample_shape)


def draw(distribution: Distribution, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """n samples of any distribution, from the generator if given."""
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, Normal):
        # Normal.sample asks for the least scale, which on a GPU waits for it.
        return base.loc + base.scale * standard_normal(torch.Size((n, *base.batch_shape)), base.loc, generator)
    if generator is None:
        return distribution.sample((n,))
    if "generator" in inspect.signature(base.sample).parameters:
        return base.sample((n,), generator=generator)
    with torch.no_grad():
        return foreign_draw(distribution, torch.Size((n,)), distribution.mean.device, generator)


def filled(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """The numbers as a tensor of like's dtype and device, without a copy from the host, which waits for a GPU."""
    if len(set(values)) == 1:
        return like.new_full((len(values),), values[0])
    return torch.cat([like.new_full((1,), value) for value in values])


def as_parameters(*values: torch.Tensor | float) -> list[torch.Tensor]:
    """Floating-point tensors; numbers get the dtype and device of the first tensor, else the default dtype."""
    default = torch.get_default_dtype()
    tensors = [v if v.is_floating_point() else v.to(default) for v in values if isinstance(v, torch.Tensor)]
    dtype, device = (tensors[0].dtype, tensors[0].device) if tensors else (default, None)
    found = iter(tensors)
    return [next(found) if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=dtype, device=device) for v in values]


def _source(like: torch.Tensor, generator: torch.Generator | None) -> dict:
    if generator is None:
        return {"device": like.device}
    return {"device": generator.device, "generator": generator}


def _move(noise: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return noise.to(like.device)
