"""What every model must do: shapes, losses against independent computations, training, autocast, torch.compile."""

import pytest
import torch

import strucfast as sf

TINY = {"image_size": 16, "width": 8, "blocks": 4, "latent_dim": 6, "num_groups": 4}
MODELS = {
    "sae-3": {"hidden": (8, 8)},
    "adaae-3": {"hidden": (8, 8)},
    "ae": {},
    "vae": {},
    "beta-vae": {},
    "vlae-3": {},
}


def _build(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return sf.models.build(name, **TINY, **MODELS[name], **overrides)


def _images(count=4, seed=1, channels=3):
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_shapes(name):
    model, x = _build(name), _images()
    posterior = model.encode(x)
    assert isinstance(posterior, torch.distributions.Distribution)
    assert posterior.mean.shape == (4, 6) and posterior.batch_shape == (4,) and posterior.event_shape == (6,)
    for count in (1, 3):
        images = model.decode(torch.randn(count, 6))
        assert images.shape == (count, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert model.decode_logits(posterior.mean).shape == model(x).shape == x.shape
    assert model.image_shape == (3, 16, 16) and model.latent_dim == 6
    assert sorted(dim for group in model.latent_groups for dim in group) == list(range(6))
    torch.testing.assert_close(model(x), torch.sigmoid(model.decode_logits(posterior.mean)))


@pytest.mark.parametrize("name", MODELS)
def test_loss_matches_an_independent_float64_computation(name):
    model, x = _build(name).double(), _images().double()
    terms = model.loss(x, generator=torch.Generator().manual_seed(5))
    posterior = model.encode(x)
    z = posterior.mean
    if model.has_prior:
        noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        z = z + posterior.stddev * noise
    probability = model.decode(z)
    nll = -(x * probability.log() + (1 - x) * torch.log1p(-probability)).sum() / 4
    total = nll
    if model.has_prior:
        prior = torch.distributions.Normal(torch.zeros(6).double(), 1.0)
        kl = torch.distributions.kl_divergence(posterior.base_dist, prior).sum() / 4
        total = nll + model.config.beta * kl
        assert terms.terms["kl"].item() == pytest.approx(kl.item(), rel=1e-9)
    assert set(terms.terms) == ({"reconstruction", "kl"} if model.has_prior else {"reconstruction"})
    assert terms.terms["reconstruction"].item() == pytest.approx(nll.item(), rel=1e-9)
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_lower_the_loss_and_reach_every_parameter(name):
    model, x = _build(name), _images(8)
    (optimizer,) = model.optimizers()
    assert optimizer.defaults["lr"] == 5e-4 and optimizer.defaults["betas"] == (0.9, 0.999)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        terms.total.backward()
        if not losses:
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        optimizer.step()
        losses.append(terms.total.item())
    assert losses[1] < losses[0] and losses[-1] < losses[0] - 5


@pytest.mark.parametrize("name", ["sae-3", "vae"])
def test_fused_and_reference_training_curves_agree(name):
    def curve(backend):
        model, x = _build(name), _images(8)
        (optimizer,) = model.optimizers()
        losses = []
        with sf.use_backend(backend):
            for step in range(5):
                optimizer.zero_grad()
                total = model.loss(x, generator=torch.Generator().manual_seed(step)).total
                total.backward()
                optimizer.step()
                losses.append(total.item())
        return losses

    fused, reference = curve("auto"), curve("reference")
    # Float32 rounding, amplified a little by Adam's sign-like first steps.
    assert fused == pytest.approx(reference, rel=2e-5)
    assert reference[-1] < reference[0]


@pytest.mark.parametrize("name", MODELS)
def test_autocast_keeps_codes_and_losses_in_float32(name):
    model, x = _build(name), _images()
    exact = model.loss(x, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        mean = model.encode(x).mean
        assert mean.dtype == model.decode(mean).dtype == torch.float32
        assert model.decode_logits(mean).dtype == torch.bfloat16
    assert terms.total.dtype == torch.float32 and terms.total.item() == pytest.approx(exact.total.item(), rel=1e-2)
    terms.total.backward()
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["sae-3", "vae", "vlae-3"])
def test_traces_as_one_graph(name):
    # A whole graph is what is asked here; Inductor's own code is the ops' contract test's to check.
    torch._dynamo.reset()
    model, x = _build(name), _images()
    with sf.use_backend("reference"):
        compiled = torch.compile(lambda x: model.loss(x).total, fullgraph=True, backend="aot_eager")
        torch.manual_seed(0)
        found = compiled(x)
        torch.manual_seed(0)
        assert found.item() == pytest.approx(model.loss(x).total.item(), rel=1e-5)
        found.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_activation_is_channels_last_from_either_input_layout():
    model = _build("sae-3")
    layouts = []
    for module in model.modules():
        if isinstance(module, sf.nn.ConvBlock):
            module.register_forward_hook(
                lambda module, args, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last))
            )
    model.loss(_images())
    model.loss(_images().contiguous(memory_format=torch.channels_last))
    assert len(layouts) == 16 and all(layouts)


def test_stochastic_losses_follow_the_generator():
    model, x = _build("vae"), _images()

    def draw(seed):
        return model.loss(x, generator=torch.Generator().manual_seed(seed)).total.item()

    assert draw(0) == draw(0) and draw(0) != draw(1)


def test_deterministic_encoders_have_no_density():
    with pytest.raises(NotImplementedError, match="deterministic encoder defines no log_prob"):
        _build("ae").encode(_images()).log_prob(torch.zeros(4, 6))


def test_adaae_sends_the_whole_code_everywhere():
    model = _build("adaae-3")
    assert model.latent_groups == [[dim] for dim in range(6)]
    assert model.decoder.transforms.weights[0].shape == (3, 8, 6)


def test_optimizer_takes_a_config_and_restores_moments_in_the_parameters_layout():
    class Config:
        learning_rate, betas, weight_decay = 1e-3, (0.8, 0.99), 0.1

    def advance(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(_images()).total.backward()
            optimizer.step()

    model = _build("sae-3")
    (optimizer,) = model.optimizers(Config())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.8, 0.99), 0.1)
    advance(model, optimizer, 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    # What a file gives back: contiguous tensors, whatever the layout was.
    stored = {
        number: {name: value.clone(memory_format=torch.contiguous_format) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    advance(model, optimizer, 2)
    resumed = _build("sae-3", seed=9)
    resumed.load_state_dict(weights)
    (second,) = resumed.optimizers(Config())
    second.load_state_dict({"state": stored, "param_groups": state["param_groups"]})
    advance(resumed, second, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TypeError, "got torch.uint8: divide uint8 images by 255"),
        (torch.zeros(2, 1, 16, 16), ValueError, r"x must have shape \(N, 3, 16, 16\), got \(2, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16), ValueError, r"got \(3, 16, 16\)"),
        (torch.zeros(0, 3, 16, 16), ValueError, "at least one image"),
        ([[0.0]], TypeError, "x must be a torch.Tensor, got list"),
    ],
)
def test_bad_images(x, error, message):
    for name in ("sae-3", "vae"):
        model = _build(name)
        for call in (model.loss, model.encode, model.check_images):
            with pytest.raises(error, match=message):
                call(x)


def test_the_range_of_images_is_checked_on_request():
    model = _build("ae")
    model.check_images(_images())
    for value in (-0.1, 1.5, float("nan"), 255.0):
        x = _images()
        x[1, 2, 3, 4] = value
        with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
            model.check_images(x)


def test_bad_codes_and_optimizer_index():
    model = _build("ae")
    with pytest.raises(ValueError, match=r"z must have shape \(N, 6\) with N >= 1, got \(2, 5\)"):
        model.decode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"got \(0, 6\)"):
        model.decode(torch.zeros(0, 6))
    with pytest.raises(TypeError, match="z must be a floating-point tensor"):
        model.decode(torch.zeros(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="optimizer_index must be 0, the only optimizer, got 1"):
        model.loss(_images(), optimizer_index=1)
    with pytest.raises(TypeError, match="config must be a VAEConfig, got AEConfig"):
        sf.models.VAE("vae", sf.models.AEConfig())
