"""The Bernoulli reconstruction term against its definition in float64."""

import math

import pytest
import torch

import strucfast as sf


def _definition(logits, target):
    probability = torch.sigmoid(logits.double())
    target = target.double()
    per_pixel = target * torch.log(probability) + (1 - target) * torch.log1p(-probability)
    return -per_pixel.flatten(1).sum(dim=1).mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_matches_the_definition(dtype):
    torch.manual_seed(0)
    logits = (2 * torch.randn(5, 3, 8, 8, dtype=torch.float64)).to(dtype)
    target = torch.rand(5, 3, 8, 8)
    found = sf.losses.bernoulli_reconstruction(logits, target)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(_definition(logits, target).item(), rel=1e-6)


def test_autocast_computes_in_float32():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 3, 8, 8).bfloat16(), torch.rand(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = sf.losses.bernoulli_reconstruction(logits, target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(_definition(logits, target).item(), rel=1e-6)


def test_gradient_is_sigmoid_minus_target_over_the_batch():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    sf.losses.bernoulli_reconstruction(logits, target).backward()
    torch.testing.assert_close(logits.grad, (torch.sigmoid(logits.detach()) - target) / 4)


def test_bad_input_names_the_argument():
    reconstruction = sf.losses.bernoulli_reconstruction
    with pytest.raises(TypeError, match=r"target must be a floating-point tensor, got torch\.uint8"):
        reconstruction(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"target must have the shape of logits, \(2, 3\), got \(2, 4\)"):
        reconstruction(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least one sample"):
        reconstruction(torch.zeros(0, 3), torch.zeros(0, 3))


def _float64(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "density"), [("gaussian", torch.distributions.Normal), ("laplace", torch.distributions.Laplace)]
)
@pytest.mark.parametrize("scale", [1.0, 0.3, "per channel"])
def test_location_families_match_torch_distributions(name, density, scale, dtype):
    reconstruction = getattr(sf.losses, f"{name}_reconstruction")
    mean, target = _float64(5, 3, 4, 2).to(dtype), _float64(5, 3, 4, 2, seed=1).to(dtype)
    if scale == "per channel":
        scale = torch.tensor([0.25, 1.0, 3.5]).view(3, 1, 1)
    found = reconstruction(mean, target, scale)
    expected = -density(mean.double(), torch.as_tensor(scale, dtype=torch.float64)).log_prob(target.double()).sum() / 5
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12 if dtype == torch.float64 else 1e-6)


def test_a_learnt_scale_has_the_gradient_of_the_density():
    mean, target = _float64(4, 3), _float64(4, 3, seed=1)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    error = target - mean
    (gradient,) = torch.autograd.grad(sf.losses.gaussian_reconstruction(mean, target, scale), scale)
    assert gradient.item() == pytest.approx((-error.square().sum() / 0.7**3 / 4 + 3 / 0.7).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(sf.losses.laplace_reconstruction(mean, target, scale), scale)
    assert gradient.item() == pytest.approx((-error.abs().sum() / 0.7**2 / 4 + 3 / 0.7).item(), rel=1e-12)


def test_unit_gaussian_has_the_gradient_of_half_the_squared_error():
    mean, target = _float64(4, 3).requires_grad_(), _float64(4, 3, seed=1)
    sf.losses.gaussian_reconstruction(mean, target).backward()
    torch.testing.assert_close(mean.grad, (mean.detach() - target) / 4)


@pytest.mark.parametrize("scale", [1e-23, 1e200])
def test_a_scale_whose_square_leaves_float32(scale):
    same = torch.ones(2, 3)
    loss = sf.losses.gaussian_reconstruction(same, same, scale).item()
    assert loss == pytest.approx(3 * (math.log(scale) + 0.5 * math.log(2 * math.pi)))


@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 1), ((5, 7, 3, 2), 1), ((5, 3, 2, 7), -1), ((5, 3, 7, 2), 2)])
def test_cross_entropy_matches_categorical(shape, dim):
    logits = _float64(*shape)
    batched = logits.movedim(dim, -1)
    target = torch.randint(7, batched.shape[:-1], generator=torch.Generator().manual_seed(2))
    found = sf.losses.cross_entropy_reconstruction(logits, target, dim=dim)
    expected = -torch.distributions.Categorical(logits=batched).log_prob(target).sum() / 5
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        half = sf.losses.cross_entropy_reconstruction(logits.bfloat16(), target, dim=dim)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected.item(), rel=1e-2)


def test_bad_input_of_the_other_families_names_the_argument():
    gaussian, cross_entropy = sf.losses.gaussian_reconstruction, sf.losses.cross_entropy_reconstruction
    x = torch.zeros(2, 3)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scale must be finite and > 0, got"):
            gaussian(x, x, scale)
    with pytest.raises(TypeError, match="scale must be a number or a tensor, got str"):
        gaussian(x, x, "1")
    with pytest.raises(ValueError, match=r"scale must broadcast to the shape of mean, \(2, 3\), got \(4, 1\)"):
        sf.losses.laplace_reconstruction(x, x, torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"target must have the shape of mean, \(2, 3\), got \(2, 1\)"):
        gaussian(x, torch.zeros(2, 1))
    with pytest.raises(TypeError, match=r"target must be an int64 tensor, got torch\.float32"):
        cross_entropy(x, x)
    with pytest.raises(ValueError, match=r"without dim 1, \(2,\), got \(3,\)"):
        cross_entropy(x, torch.zeros(3, dtype=torch.int64))
    for dim in (0, 2, -2):
        with pytest.raises(ValueError, match="dim must name one of the dims 1 to 1 of logits"):
            cross_entropy(x, torch.zeros(2, dtype=torch.int64), dim=dim)
    # A label beside the classes is no class to pass over.
    with pytest.raises(RuntimeError):
        cross_entropy(x, torch.tensor([0, -100]))
