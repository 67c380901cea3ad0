"""The Bernoulli reconstruction term against its definition in float64."""

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
