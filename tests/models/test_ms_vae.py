"""The two-stage VAE: one model around a frozen first stage."""

import shutil

import pytest
import torch

import strucfast as sf
from strucfast.models.ms_vae import CHUNK

TINY = {"image_size": 16, "width": 8, "blocks": 4, "num_groups": 4}
SECOND = {**TINY, "latent_dim": 2, "decoder_width": 4}


def stage1(name="vae", seed=0, **overrides):
    torch.manual_seed(seed)
    own = {"isa-vae": {"sizes": (2, 1), "width": 40}}.get(name, {})
    return sf.models.build(name, **{**TINY, "latent_dim": 3, **own, **overrides})


def two_stages(first=None, seed=1, **overrides):
    torch.manual_seed(seed)
    config = sf.models.MSVAEConfig(**{**SECOND, **overrides})
    return sf.models.MSVAE("ms-vae", config, first or stage1())


def images(count=5, seed=2, size=16, channels=3):
    pixels = torch.randint(0, 256, (count, size, size, channels), generator=torch.Generator().manual_seed(seed))
    return pixels.to(torch.uint8)


def as_floats(pixels):
    return pixels.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("first", "prior"), [("vae", True), ("ae", False), ("sae-3", False)])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_codes_are_the_first_stages_and_the_residuals(first, prior, per_pixel):
    model = two_stages(stage1(first), per_pixel=per_pixel)
    x = as_floats(images())
    posterior = model.encode(x)
    assert posterior.mean.shape == (5, 5) and posterior.batch_shape == (5,) and posterior.event_shape == (5,)
    assert posterior.rsample((2,)).shape == (2, 5, 5) and not posterior.sample().requires_grad
    torch.testing.assert_close(posterior.mean[:, :3], model.stage1.encode(x).mean)
    assert torch.equal(model(x), model.decode(posterior.mean)) and model(x).shape == x.shape
    assert model.latent_dim == 5 and model.latent_groups == [[0], [1], [2], [3], [4]]
    assert model.has_prior is prior
    if prior:
        codes = model.sample_prior(7, torch.Generator().manual_seed(0))
        assert codes.shape == (7, 5) and model.decode(codes).shape == (7, 3, 16, 16)
        assert sf.samplers.PriorSampler(model).sample(2).shape == (2, 5)
        wide = posterior.expand((2, 5))
        expected = posterior.first.log_prob(x.new_zeros(3)) + posterior.second.log_prob(x.new_zeros(2))
        torch.testing.assert_close(wide.log_prob(torch.zeros(5)), expected.expand(2, 5))
        assert posterior.entropy().shape == (5,)
    else:
        assert (posterior.stddev[:, :3] == 0).all() and (posterior.stddev[:, 3:] > 0).all()
        with pytest.raises(NotImplementedError, match="deterministic encoder"):
            posterior.log_prob(posterior.mean)
        with pytest.raises(ValueError, match="has no prior"):
            model.sample_prior(2)


def test_loss_matches_an_independent_float64_computation():
    model, x = two_stages(beta=3.0).double(), as_floats(images()).double()
    terms = model.loss(x, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = (255 * model.stage1(x)).round().float().div(255).double()
        mean, logvar = model.encoder(x - y).chunk(2, 1)
        noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        p = torch.sigmoid(model.decoder(y, mean + (0.5 * logvar).exp() * noise))
    nll = -(x * p.log() + (1 - x) * torch.log1p(-p)).sum() / 5
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum() / 5
    assert set(terms.terms) == {"reconstruction", "kl"}
    assert terms.terms["reconstruction"].item() == pytest.approx(nll.item(), rel=1e-9)
    assert terms.terms["kl"].item() == pytest.approx(kl.item(), rel=1e-9)
    assert terms.total.item() == pytest.approx((nll + 3 * kl).item(), rel=1e-9)


@pytest.mark.parametrize("first", ["vae", "ae", "sae-3", "vlae-3", "isa-vae"])
def test_the_first_stages_image_depends_on_its_image_alone(first):
    model = two_stages(stage1(first))
    pixels = images(2 * CHUNK + 5)
    y = model.stage1_images(pixels)
    assert y.dtype == torch.uint8 and y.shape == pixels.shape
    for start, count in ((0, 1), (3, CHUNK), (CHUNK + 1, 4), (7, CHUNK + 9)):
        assert torch.equal(model.stage1_images(pixels[start : start + count]), y[start : start + count])
    x = as_floats(pixels)
    code, found = model.first_stage(x)
    assert torch.equal(found, as_floats(y)) and torch.equal(found, model._reconstruct(code))
    torch.testing.assert_close(found, model.stage1(x), rtol=0, atol=0.51 / 255)


def test_known_and_computed_first_images_give_the_same_loss():
    model, pixels = two_stages(), images(6)

    def loss(x):
        return model.loss(x, generator=torch.Generator().manual_seed(0)).total

    known = torch.cat([pixels, model.stage1_images(pixels)], dim=3)
    assert torch.equal(loss(as_floats(pixels)), loss(as_floats(known)))
    assert not torch.equal(loss(as_floats(pixels)), loss(as_floats(torch.cat([pixels, pixels], dim=3))))


def test_z_enters_through_adain_only():
    model = two_stages()
    y = as_floats(images())
    assert not torch.equal(model.decoder(y, torch.zeros(5, 2)), model.decoder(y, torch.ones(5, 2)))
    with torch.no_grad():
        for style in model.decoder.styles:
            style.linear.weight.zero_()
    assert torch.equal(model.decoder(y, torch.zeros(5, 2)), model.decoder(y, torch.ones(5, 2)))


@pytest.mark.parametrize(("size", "sites", "dense"), [(8, 1, 1024), (32, 5, 4096), (64, 7, 8192), (128, 9, 8192)])
def test_sizes_of_the_decoder(size, sites, dense):
    with torch.device("meta"):
        config = sf.models.MSVAEConfig(image_size=size)
        model = sf.models.MSVAE("ms-vae", config, sf.models.build("vae", image_size=size))
    assert len(model.decoder.styles) == sites and model.decoder.dense.weight.shape == (dense, dense)
    if size == 64:
        assert [layer.out_channels for layer in model.decoder.down] == [64, 128, 256, 512]
        assert [layer.out_channels for layer in model.decoder.up] == [256, 128, 64, 3]


def test_training_moves_the_second_stage_and_never_the_first():
    model, x = two_stages(), as_floats(images(8))
    (optimizer,) = model.optimizers()
    assert optimizer.defaults["lr"] == 1e-4
    frozen = {name: value.clone() for name, value in model.stage1.state_dict().items()}
    optimizer.param_groups[0]["lr"] = 1e-3
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        terms.total.backward()
        if not losses:
            for name, parameter in [*model.encoder.named_parameters(), *model.decoder.named_parameters()]:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        optimizer.step()
        losses.append(terms.total.item())
    assert losses[-1] < losses[0] - 5
    assert all(torch.equal(value, frozen[name]) for name, value in model.stage1.state_dict().items())
    assert all(parameter.grad is None for parameter in model.stage1.parameters())
    assert model.training and not model.train().stage1.training


def test_autocast_keeps_codes_losses_and_the_first_stage_in_float32():
    model, x = two_stages(), as_floats(images())
    exact = model.loss(x, generator=torch.Generator().manual_seed(0))
    y = model.first_stage(x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.first_stage(x)[1], y)
        mean = model.encode(x).mean
        assert mean.dtype == model.decode(mean).dtype == torch.float32
    assert terms.total.dtype == torch.float32 and terms.total.item() == pytest.approx(exact.total.item(), rel=1e-2)


def test_traces_as_one_graph_when_y_is_known():
    torch._dynamo.reset()
    model, pixels = two_stages(), images(4)
    x = as_floats(torch.cat([pixels, model.stage1_images(pixels)], dim=3))
    with sf.use_backend("reference"):
        compiled = torch.compile(lambda x: model.loss(x).total, fullgraph=True, backend="aot_eager")
        torch.manual_seed(0)
        found = compiled(x)
        torch.manual_seed(0)
        assert found.item() == pytest.approx(model.loss(x).total.item(), rel=1e-5)
        found.backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())


def test_a_saved_model_needs_nothing_else(tmp_path):
    stage1().save_pretrained(tmp_path / "first")
    model = sf.models.build("ms-vae", stage1=str(tmp_path / "first"), **SECOND)
    assert torch.equal(model.stage1.encoder.head[0].weight, stage1().encoder.head[0].weight)
    model.save_pretrained(tmp_path / "both")
    shutil.rmtree(tmp_path / "first")
    again, x = sf.models.load(tmp_path / "both"), as_floats(images())
    assert again.config == model.config and torch.equal(again(x), model(x))
    assert again.stage1_key() == model.stage1_key()
    with torch.no_grad():
        again.stage1.encoder.head[0].bias[0] += 1
    assert again.stage1_key() != model.stage1_key()


def test_the_first_stage_given_stays_the_callers():
    first = stage1()
    model = two_stages(first)
    assert first.training and all(parameter.requires_grad for parameter in first.parameters())
    assert model.stage1 is not first


def test_three_stages(tmp_path):
    middle = two_stages()
    middle.save_pretrained(tmp_path / "middle")
    model = sf.models.build("ms-vae", stage1=str(tmp_path / "middle"), **SECOND)
    x = as_floats(images())
    assert model.latent_dim == 7 and model.has_prior and model.encode(x).mean.shape == (5, 7)
    assert torch.equal(model.first_stage(x)[1], (255 * middle(x)).round() / 255)
    assert model.decode(model.sample_prior(2)).shape == (2, 3, 16, 16)
    model.save_pretrained(tmp_path / "all")
    assert torch.equal(sf.models.load(tmp_path / "all")(x), model(x))


def test_a_runs_best_checkpoint_is_found(tmp_path):
    stage1(seed=3).save_pretrained(tmp_path / "run" / "checkpoints" / "best")
    stage1(seed=4).save_pretrained(tmp_path / "run" / "checkpoints" / "last")
    model = sf.models.build("ms-vae", stage1=str(tmp_path / "run"), **SECOND)
    assert torch.equal(model.stage1.encoder.head[0].weight, stage1(seed=3).encoder.head[0].weight)


def test_first_stages_that_do_not_fit(tmp_path):
    def refused(message, **overrides):
        with pytest.raises(ValueError, match=message):
            sf.models.build("ms-vae", **{**SECOND, **overrides})

    refused(r"stage1 is missing: train a first stage .strucfast train beta-tcvae.")
    refused("stage1: expected the folder of a trained run, got '.*none': no such folder", stage1=str(tmp_path / "none"))
    refused(r"got '.*': no trained model there \(yet\)", stage1=str(tmp_path))
    (tmp_path / "seeds" / "seed-3").mkdir(parents=True)
    refused("it holds several runs, choose one of .*seed-3", stage1=str(tmp_path / "seeds"))
    stage1(channels=1).save_pretrained(tmp_path / "grey")
    refused("stage1: expected a model with channels 3, got 'vae' with 1", stage1=str(tmp_path / "grey"))
    stage1(image_size=32).save_pretrained(tmp_path / "large")
    refused("stage1: expected a model with image_size 16, got 'vae' with 32", stage1=str(tmp_path / "large"))
    blind = stage1()
    del blind.decoder
    with pytest.raises(ValueError, match="stage1: expected a model with a decoder, got 'vae', which has none"):
        two_stages(blind)
    with pytest.raises(ValueError, match="decoder_width must be >= 1, got 0"):
        two_stages(decoder_width=0)
    with pytest.raises(ValueError, match=r"z must have shape \(N, 5\) with N >= 1, got \(2, 4\)"):
        two_stages().decode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3, 16, 16\), got \(2, 4, 16, 16\)"):
        two_stages().loss(torch.zeros(2, 4, 16, 16))
