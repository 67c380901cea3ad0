"""FiLM against its formula in plain torch."""

import pytest
import torch

import strucfast as sf


@pytest.mark.parametrize("spatial", [(), (5,), (4, 6), (2, 3, 4)])
def test_values_and_gradients_match_plain_torch(spatial):
    torch.manual_seed(0)
    film = sf.nn.FiLM(3, 8).double()
    x = torch.randn(4, 8, *spatial, dtype=torch.float64, requires_grad=True)
    condition = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, condition, film.linear.weight, film.linear.bias)
    y = film(x, condition)
    table = condition @ film.linear.weight.T + film.linear.bias
    gain, shift = (part.reshape(4, 8, *[1] * len(spatial)) for part in (table[:, :8], table[:, 8:]))
    expected = (1 + gain) * x + shift
    upstream = torch.randn_like(y)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    found = torch.autograd.grad(y, inputs, upstream)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_half_features_keep_their_dtype_and_the_gain_its_digits():
    film = sf.nn.FiLM(2, 4)
    condition = torch.full((1, 2), 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        scale, _ = film.affine(condition)
        y = film(torch.ones(1, 4, 3, 3, dtype=torch.bfloat16), condition)
    assert scale.dtype == torch.float32 and y.dtype == torch.bfloat16


def test_bad_input_names_the_argument():
    film = sf.nn.FiLM(3, 8)
    with pytest.raises(ValueError, match=r"condition must have shape \(N, 3\), got \(2, 4\)"):
        film(torch.zeros(2, 8), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="scale"):
        film(torch.zeros(2, 7, 4, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="channels must be >= 1, got 0"):
        sf.nn.FiLM(3, 0)
    with pytest.raises(TypeError, match="condition_dim must be an int, got float"):
        sf.nn.FiLM(3.0, 8)
