"""The MLP backbone of the ISA-VAE paper: sizes, activations, any image, the forward pass against plain layers."""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf


def _build(name="vae", **overrides):
    torch.manual_seed(0)
    return sf.models.build(name, **{"backbone": "mlp", "image_size": 6, "width": 16, "latent_dim": 3, **overrides})


def test_the_papers_sizes():
    model = sf.models.build("vae", backbone="mlp", channels=1, latent_dim=20)
    linears = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    shapes = [(layer.in_features, layer.out_features) for layer in linears]
    decoder = [(20, 1200), (1200, 1200), (1200, 1200), (1200, 4096)]
    assert shapes == [(4096, 1200), (1200, 1200), (1200, 40), *decoder]
    assert sf.models.build("ae", image_size=128, channels=1, backbone="mlp").config.width == 1200


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize(("size", "channels"), [(6, 2), (5, 1), (8, 3)])
def test_forward_pass_against_plain_layers(size, channels, blocks):
    model = _build(image_size=size, channels=channels, blocks=blocks).double()
    x = torch.rand(4, channels, size, size, dtype=torch.float64)
    nets = (model.encoder, model.decoder)
    encoder, decoder = ([layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)] for net in nets)
    assert len(encoder) == blocks and len(decoder) == blocks + 1
    h = x.reshape(4, -1)
    for layer in encoder[:-1]:
        h = F.relu(F.linear(h, layer.weight, layer.bias))
    h = F.linear(h, encoder[-1].weight, encoder[-1].bias)
    # From channels_last images, too.
    mean, logvar = model.posterior(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(mean, h[:, :3])
    torch.testing.assert_close(logvar, h[:, 3:])
    z = torch.randn(4, 3, dtype=torch.float64)
    h = z
    for layer in decoder[:-1]:
        h = torch.tanh(F.linear(h, layer.weight, layer.bias))
    logits = F.linear(h, decoder[-1].weight, decoder[-1].bias).reshape(4, channels, size, size)
    torch.testing.assert_close(model.decode_logits(z), logits)


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_training_and_autocast(name):
    model, x = _build(name, image_size=8), torch.rand(8, 3, 8, 8)
    (optimizer,) = model.optimizers()
    losses = []
    for step in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=step == 0):
            terms = model.loss(x, generator=torch.Generator().manual_seed(0))
            assert model.encode(x).mean.dtype == terms.total.dtype == torch.float32
            assert model.decode_logits(torch.zeros(1, 3)).dtype == (torch.bfloat16 if step == 0 else torch.float32)
        terms.total.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
        optimizer.step()
        losses.append(terms.total.item())
    assert losses[-1] < losses[1] - 0.2


def test_round_trip(tmp_path):
    model = _build()
    model.save_pretrained(tmp_path)
    loaded = sf.models.load(tmp_path)
    x = torch.rand(2, 3, 6, 6)
    assert loaded.config == model.config and torch.equal(loaded(x), model(x))


def test_structural_models_have_no_mlp_backbone():
    with pytest.raises(ValueError, match="backbone must be paper or authors for a model of convolution blocks"):
        sf.models.build("sae-3", backbone="mlp")
    with pytest.raises(ValueError, match="image_size must be >= 1, got 0"):
        _build(image_size=0)
