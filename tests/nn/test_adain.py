"""AdaIN against its formula in plain torch."""

import pytest
import torch

import strucfast as sf


def _plain(layer, x, style):
    """The formula, its maps taken from the linear layer by hand."""
    table = style @ layer.linear.weight.T + layer.linear.bias
    half = table.shape[1] // 2
    shape = (len(x), layer.channels, *(layer.per_pixel_shape or [1] * (x.dim() - 2)))
    scale, shift = 1 + table[:, :half].reshape(shape), table[:, half:].reshape(shape)
    if layer.activation == "relu":
        scale, shift = scale.clamp_min(0), shift.clamp_min(0)
    within = tuple(range(2, x.dim()))
    mean, var = x.mean(within, keepdim=True), x.var(within, unbiased=False, keepdim=True)
    return scale * (x - mean) / torch.sqrt(var + layer.eps) + shift


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("spatial", [(5,), (4, 6), (2, 3, 4)])
def test_values_and_gradients_match_plain_torch(spatial, per_pixel, activation):
    torch.manual_seed(0)
    layer = sf.nn.AdaIN(8, 3, per_pixel_shape=spatial if per_pixel else None, activation=activation, eps=1e-6).double()
    torch.nn.init.normal_(layer.linear.weight)
    torch.nn.init.normal_(layer.linear.bias)
    x = torch.randn(4, 8, *spatial, dtype=torch.float64, requires_grad=True)
    style = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, style, layer.linear.weight, layer.linear.bias)
    y, expected = layer(x, style), _plain(layer, x, style)
    upstream = torch.randn_like(y)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    found = torch.autograd.grad(y, inputs, upstream)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("per_pixel_shape", [None, (4, 4)])
def test_fresh_layer_at_a_zero_style_is_the_instance_norm(per_pixel_shape, activation):
    torch.manual_seed(1)
    x = torch.randn(3, 5, 4, 4)
    y = sf.nn.AdaIN(5, 2, per_pixel_shape=per_pixel_shape, activation=activation)(x, torch.zeros(3, 2))
    torch.testing.assert_close(y, torch.nn.functional.instance_norm(x, eps=1e-5))


def test_relu_maps_of_a_fresh_layer_are_alive():
    torch.manual_seed(2)
    scale, _ = sf.nn.AdaIN(8, 10, per_pixel_shape=(8, 8), activation="relu").affine(torch.randn(16, 10))
    assert (scale > 0).double().mean() > 0.9


def test_state_dict_keys_and_shapes():
    for options, outputs in (({}, 8), ({"per_pixel_shape": (2, 5)}, 80)):
        state = sf.nn.AdaIN(4, 3, **options).state_dict()
        assert {name: tuple(value.shape) for name, value in state.items()} == {
            "linear.weight": (outputs, 3),
            "linear.bias": (outputs,),
        }


def test_half_features_keep_their_dtype_and_the_gain_its_digits():
    layer = sf.nn.AdaIN(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        scale, _ = layer.affine(torch.full((1, 2), 1e-3))
        y = layer(torch.randn(1, 4, 3, 3, dtype=torch.bfloat16), torch.zeros(1, 2))
    assert scale.dtype == torch.float32 and y.dtype == torch.bfloat16


def test_bad_input_names_the_argument():
    layer = sf.nn.AdaIN(8, 3, per_pixel_shape=(4, 4))
    with pytest.raises(ValueError, match=r"style must have shape \(N, 3\), got \(2, 4\)"):
        layer(torch.zeros(2, 8, 4, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"scale must have shape .*\(2, 8, 5, 5\).*got \(2, 8, 4, 4\)"):
        layer(torch.zeros(2, 8, 5, 5), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="channels must be >= 1, got 0"):
        sf.nn.AdaIN(0, 3)
    with pytest.raises(TypeError, match="style_dim must be an int, got float"):
        sf.nn.AdaIN(8, 3.0)
    with pytest.raises(ValueError, match=r"per_pixel_shape\[1\] must be >= 1, got 0"):
        sf.nn.AdaIN(8, 3, per_pixel_shape=(4, 0))
    with pytest.raises(ValueError, match="per_pixel_shape must have 1 to 3 sizes"):
        sf.nn.AdaIN(8, 3, per_pixel_shape=())
    with pytest.raises(ValueError, match="activation must be one of identity, relu, got 'tanh'"):
        sf.nn.AdaIN(8, 3, activation="tanh")
    with pytest.raises(ValueError, match="eps must be finite and >= 0, got -1"):
        sf.nn.AdaIN(8, 3, eps=-1.0)
