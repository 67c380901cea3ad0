"""The ladder: where rungs read and enter, parameter counts, the forward pass against plain layers, bad values."""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf

TINY = {"image_size": 16, "width": 8, "blocks": 4, "latent_dim": 6, "num_groups": 4}


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _build(name="vlae-3", **overrides):
    torch.manual_seed(0)
    return sf.models.build(name, **{**TINY, **overrides})


def _images(count=4):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_vlae_12_of_the_papers_text_and_of_the_authors_configuration():
    model = sf.models.build("vlae-12")
    rungs = 12 * (3 * (64 * 64 + 64) + 64 * 2 + 2) + 12 * (64 + 64 + 2 * (64 * 64 + 64) + 64 * 16 + 16)
    # The autoencoder's blocks without its two linear layers, S_0, 16 more input channels of every decoder block.
    hourglass = _count(sf.models.build("ae")) - (1024 * 12 + 12) - (12 * 1024 + 1024)
    assert _count(model) == hourglass + 64 * 4 * 4 + 12 * 64 * 16 * 9 + rungs == 1_235_803
    assert model.latent_groups == [[dim] for dim in range(12)]
    assert model.decoder.places == tuple(range(12)) and model.encoder.places == tuple(range(11, -1, -1))
    authors = sf.models.build("vlae-12", backbone="authors")
    assert authors.config.encoder_hidden == (128, 64) and authors.config.decoder_hidden == (64, 128)
    assert _count(authors) == 1_250_635
    # Appendix A.2.1: about 1 to 1.2 M, the most of all models; the structural ones about 5 % fewer.
    same_widths = {"encoder_hidden": (64, 64, 64), "decoder_hidden": (64, 64, 64)}
    largest = _count(sf.models.build("vlae-12", backbone="authors", **same_widths))
    assert largest == 1_189_195
    assert _count(sf.models.build("sae-12", backbone="authors")) / largest == pytest.approx(0.945, abs=1e-3)


@pytest.mark.parametrize(("k", "places"), [(2, (0, 6)), (3, (0, 4, 8)), (4, (0, 3, 6, 9)), (6, (0, 2, 4, 6, 8, 10))])
def test_rungs_are_spread_evenly_and_mirror_each_other(k, places):
    model = sf.models.build(f"vlae-{k}", width=8)
    assert model.decoder.places == places
    assert model.encoder.places == tuple(11 - place for place in places)
    assert model.latent_groups == [list(range(i * 12 // k, (i + 1) * 12 // k)) for i in range(k)]
    inputs = [block.conv.in_channels for block in model.decoder.blocks]
    assert inputs == [24 if index in places else 8 for index in range(12)]


@pytest.mark.parametrize("options", [{}, {"encoder_hidden": (5,), "decoder_hidden": (5, 7), "rung_channels": 3}])
def test_forward_pass_against_plain_layers(options):
    model, x = _build(**options).double(), _images().double()

    def block(layer, x):
        if layer.upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=layer.conv.padding)
        x = F.max_pool2d(x, 2) if layer.pool else x
        return F.mish(F.group_norm(x, 4, layer.norm.weight, layer.norm.bias))

    def rung(bank, number, x):
        for layer, (weight, bias) in enumerate(zip(bank.weights, bank.biases)):
            x = F.linear(F.mish(x) if layer else x, weight[number], bias[number])
        return x

    features, h = [], x
    for layer in model.encoder.blocks:
        h = block(layer, h)
        features.append(h.flatten(2).max(dim=2).values)
    # Three rungs in four blocks: before decoder blocks 0, 1, 2, after encoder blocks 3, 2, 1.
    outputs = [rung(model.encoder.rungs, i, features[3 - i]) for i in range(3)]
    posterior = model.encode(x)
    torch.testing.assert_close(posterior.mean, torch.cat([out[:, :2] for out in outputs], dim=1))
    torch.testing.assert_close(posterior.stddev, torch.cat([out[:, 2:].exp() for out in outputs], dim=1))

    z = torch.randn(4, 6, dtype=torch.float64)
    h = model.decoder.base.expand(4, -1, -1, -1)
    for index, layer in enumerate(model.decoder.blocks):
        if index < 3:
            maps = rung(model.decoder.rungs, index, z[:, 2 * index : 2 * index + 2])
            h = torch.cat([h, maps[:, :, None, None] * torch.ones(1, 1, *h.shape[2:], dtype=torch.float64)], dim=1)
        h = block(layer, h)
    logits = F.conv2d(h, model.decoder.output.weight, model.decoder.output.bias, padding=1)
    torch.testing.assert_close(model.decode_logits(z), logits)


def test_a_variable_changes_only_what_lies_behind_its_rung():
    """The last variable of the authors' net enters at the output convolution alone."""
    model = sf.models.build("vlae-12", image_size=64, backbone="authors", width=8, latent_dim=12)
    seen = []
    model.decoder.blocks[-1].register_forward_hook(lambda module, args, y: seen.append(y))
    z = torch.zeros(1, 12)
    shallow, deep = z.clone(), z.clone()
    shallow[0, 11], deep[0, 0] = 3.0, 3.0
    images = [model.decode(code) for code in (z, shallow, deep)]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_every_map_is_channels_last():
    model, layouts = _build(), []
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.register_forward_hook(
            lambda module, args, y: layouts.extend(
                tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (args[0], y)
            )
        )
    model.loss(_images())
    assert len(layouts) == 16 and all(layouts)


def test_round_trip_and_samples(tmp_path):
    model = _build(encoder_hidden=(4, 4), decoder_hidden=(5,))
    model.save_pretrained(tmp_path)
    loaded = sf.models.load(tmp_path)
    assert loaded.config == model.config and loaded.name == "vlae-3"
    x = _images()
    assert torch.equal(loaded.encode(x).mean, model.encode(x).mean)
    codes = model.encode(x).mean.detach()
    assert sf.samplers.HybridSampler(codes, model.latent_groups).groups == [[0, 1], [2, 3], [4, 5]]
    assert model.decode(model.sample_prior(2, torch.Generator().manual_seed(0))).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("vlae-4", {}, ValueError, "rungs must divide latent_dim = 6, got 4"),
        ("vlae-6", {}, ValueError, "rungs must be at most 4, one for each block, got 6"),
        ("vlae-3", {"rungs": 2}, ValueError, "rungs is fixed by the name 'vlae-3', got 2"),
        ("vlae-3", {"backbone": "mlp"}, ValueError, "backbone must be one of paper, authors, got 'mlp'"),
        ("vlae-3", {"rung_channels": 0}, ValueError, "rung_channels must be >= 1, got 0"),
        ("vlae-3", {"encoder_hidden": 64}, TypeError, "encoder_hidden must be a list of ints, got 64"),
        ("vlae-3", {"decoder_hidden": (0,)}, ValueError, r"decoder_hidden\[0\] must be >= 1, got 0"),
        ("vlae-0", {}, ValueError, "unknown model 'vlae-0'"),
    ],
)
def test_bad_values(name, overrides, error, message):
    with pytest.raises(error, match=message):
        sf.models.build(name, **{**TINY, **overrides})
