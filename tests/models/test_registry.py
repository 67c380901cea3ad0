"""Models by name: parameter counts of the papers, defaults, and what a bad name or field says."""

import pytest
import torch

import strucfast as sf

TINY = {"image_size": 16, "width": 8, "blocks": 4, "latent_dim": 12, "num_groups": 4}


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_sae_12_of_the_papers_text():
    model = sf.models.build("sae-12", image_size=64, channels=3)
    assert _count(model) == 1_073_551
    assert model.latent_groups == [[dim] for dim in range(12)]
    pools = [index for index, block in enumerate(model.encoder.blocks, 1) if block.pool]
    ups = [index for index, block in enumerate(model.decoder.blocks, 1) if block.upsample]
    assert (pools, ups) == ([1, 4, 7, 10], [3, 6, 9, 12])
    assert model.encoder.blocks[0].conv.kernel_size == (5, 5) and model.decoder.places == tuple(range(12))


def test_sae_12_of_the_authors_configuration():
    model = sf.models.build("sae-12", backbone="authors")
    assert _count(model) == 1_123_663
    assert model.decoder.base.shape == (64, 2, 2)
    # T2 c T2 c^ T4 c T4 c^ T8 c T8 c T8 c^ T16 c T16 c T16 c^ T32 c T32 last^
    ups = [index for index, block in enumerate(model.decoder.blocks, 1) if block.upsample]
    assert ups == [2, 4, 7, 10] and model.decoder.places == tuple(range(12)) and model.decoder.final_upsample
    assert [2 * 2 ** sum(up <= place for up in ups) for place in range(12)] == [2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32]


def test_the_hourglass_and_the_128_pixel_nets_have_the_papers_sizes():
    # Appendix A.2.1: 1 to 1.2 M at 64 px, 6 to 7 M at 128 px for the largest; the structural nets a little below.
    assert _count(sf.models.build("ae")) == 884_623
    with torch.device("meta"):
        model = sf.models.build("sae-16")
    assert model.image_shape == (3, 128, 128) and model.latent_dim == 32 and len(model.latent_groups) == 16
    assert len(model.encoder.blocks) == len(model.decoder.blocks) == 16 and 5_000_000 < _count(model) < 7_000_000


@pytest.mark.parametrize(("k", "places"), [(2, (0, 6)), (3, (0, 4, 8)), (4, (0, 3, 6, 9)), (6, (0, 2, 4, 6, 8, 10))])
def test_transforms_are_spread_evenly(k, places):
    model = sf.models.build(f"sae-{k}", width=8)
    assert model.decoder.places == places
    assert model.latent_groups == [list(range(i * 12 // k, (i + 1) * 12 // k)) for i in range(k)]


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_other_image_sizes_reach_four_by_four(size):
    model = sf.models.build("sae-4", image_size=size, width=8, blocks=6, latent_dim=4)
    assert sum(block.pool for block in model.encoder.blocks) == (size // 4).bit_length() - 1
    assert model.encoder.head[0].in_features == 8 * 4 * 4
    x = torch.rand(1, 3, size, size)
    assert model.decode(model.encode(x).mean).shape == x.shape


def test_every_preset_builds():
    names = sf.models.list()
    assert {"sae-2", "sae-3", "sae-4", "sae-6", "sae-12", "sae-16", "adaae-12", "ae", "vae", "beta-vae"} <= set(names)
    with torch.device("meta"):
        for name in names:
            if name == "ms-vae":
                # needs a trained first stage
                with pytest.raises(ValueError, match="stage1 is missing: train a first stage"):
                    sf.models.build(name)
                continue
            assert sf.models.build(name).name == name


def test_presets_fix_beta():
    assert sf.models.build("vae", **TINY).config.beta == 1.0
    assert sf.models.build("beta-vae", **TINY).config.beta == 2.0
    assert sf.models.build("beta-vae", **TINY, beta=6).config.beta == 6.0


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("sea-12", {}, "unknown model 'sea-12'; did you mean sae-12"),
        ("betavae", {}, "did you mean beta-vae"),
        ("qqqq", {}, "presets are ae, vae"),
        ("sae-0", {}, "unknown model 'sae-0'"),
        ("sae-5", {}, "transforms must divide latent_dim = 12, got 5"),
        ("sae-16", {"image_size": 64}, "transforms must be at most 12"),
        ("sae-4", {"transforms": 3}, "transforms is fixed by the name 'sae-4', got 3"),
        ("ae", {"latent_dims": 3}, "'latent_dims' is no field of AEConfig; did you mean latent_dim"),
        ("ae", {"beta": 2.0}, "'beta' is no field of AEConfig"),
        ("ae", {"image_size": 48}, "image_size must be a power of two >= 8, got 48"),
        ("ae", {"width": 12}, "num_groups must divide width = 12, got 8"),
        ("ae", {"blocks": 3}, "blocks must be >= 4 to reach 4x4 from 64 px, got 3"),
        ("ae", {"backbone": "resnet"}, "backbone must be one of paper, authors, mlp, got 'resnet'"),
        ("ae", {"backbone": "authors", "image_size": 32}, "image_size must be 64 or 128"),
        ("ae", {"backbone": "authors", "blocks": 6}, "blocks must be 12 with backbone"),
        ("vae", {"beta": -1.0}, "beta must be finite and >= 0, got -1.0"),
        ("sae-3", {"scale_map": "log"}, "scale_map must be one of"),
    ],
)
def test_bad_names_and_values(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        sf.models.build(name, **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"latent_dim": 12.0}, "latent_dim must be int, got 12.0"),
        ({"hidden": 64}, "hidden must be a list of ints, got 64"),
        ({"hidden": ("64",)}, r"hidden\[0\] must be int, got '64'"),
        ({"image_size": "64"}, "image_size must be int, got '64'"),
        ({"channels": True}, "channels must be int, got True"),
    ],
)
def test_bad_types(overrides, message):
    with pytest.raises(TypeError, match=message):
        sf.models.build("sae-12", **overrides)
