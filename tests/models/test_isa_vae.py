"""ISA-VAE and ISA-TCVAE: the paper's settings, losses against plain float64 sums, exponents that learn, sampling."""

import math

import pytest
import torch

import strucfast as sf

TINY = {"image_size": 8, "channels": 1, "width": 16, "latent_dim": 6, "sizes": (2, 3, 1)}
NAMES = ("isa-vae", "isa-vae-learnt", "isa-tcvae", "isa-tcvae-learnt")


def _build(name, **overrides):
    torch.manual_seed(0)
    model = sf.models.build(name, **{**TINY, **overrides})
    model.begin_training(None, range(100))
    return model


def _images(count=5):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _log_isa(z, sizes, p0, p, scale):
    """Log-density of one code from the paper's equations: lists in, float out."""
    total, first = 0.0, 0
    for size, p_k, s_k in zip(sizes, p, scale):
        part = [abs(value) for value in z[first : first + size]]
        first += size
        norm = sum(value**p_k for value in part) ** (1 / p_k)
        # Surface and radial part of one subspace (equations 8 and 11), before anything is cancelled.
        log_surface = size * math.log(2) - (size - 1) * math.log(p_k) + size * math.lgamma(1 / p_k)
        log_surface += (size - 1) * math.log(norm) - math.lgamma(size / p_k)
        log_radial = math.log(p0) + (size - 1) * math.log(norm) - norm**p0 / s_k
        log_radial -= math.lgamma(size / p0) + size / p0 * math.log(s_k)
        total += log_radial - log_surface
    return total


def _log_normal(x, mean, logvar):
    return -0.5 * ((x - mean) ** 2 / math.exp(logvar) + logvar + math.log(2 * math.pi))


def _log_sum(values):
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


@pytest.mark.parametrize("name", NAMES)
def test_loss_matches_an_independent_float64_computation(name):
    p = (1.7, 2.3, 2.0)
    model, x = _build(name, p=p, scale=(1.0, 2.0, 1.5), beta=2.5).double(), _images().double()
    terms = model.loss(x, generator=torch.Generator().manual_seed(5))
    mean, logvar = model.posterior(x)
    noise = torch.randn(5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = mean + torch.exp(0.5 * logvar) * noise
    probability = model.decode(z)
    nll = -(x * probability.log() + (1 - x) * torch.log1p(-probability)).sum().item() / 5
    z, mean, logvar = z.tolist(), mean.tolist(), logvar.tolist()
    # Parameters of the prior are float32 numbers.
    p0, p, scale = (value.tolist() for value in (model.prior.p0, model.prior.exponents(), model.prior.scale))
    log_p = [_log_isa(code, TINY["sizes"], p0, p, scale) for code in z]
    pairs = [[[_log_normal(a, m, v) for a, m, v in zip(z[i], mean[j], logvar[j])] for j in range(5)] for i in range(5)]
    log_qx = [sum(pairs[i][i]) for i in range(5)]
    expected = {"reconstruction": nll}
    if "tcvae" in name:
        # Minibatch stratified sampling of 100 images: weight 1/N of the own posterior, (N - 1)/(N (B - 1)) of others.
        weights = [[math.log(1 / 100 if i == j else 99 / 400) for j in range(5)] for i in range(5)]
        joint = [_log_sum([weights[i][j] + sum(pairs[i][j]) for j in range(5)]) for i in range(5)]
        single = [sum(_log_sum([weights[i][j] + pairs[i][j][d] for j in range(5)]) for d in range(6)) for i in range(5)]
        expected["index_code_mi"] = sum(a - b for a, b in zip(log_qx, joint)) / 5
        expected["total_correlation"] = sum(a - b for a, b in zip(joint, single)) / 5
        expected["dimwise_kl"] = sum(a - b for a, b in zip(single, log_p)) / 5
        total = nll + expected["index_code_mi"] + 2.5 * expected["total_correlation"] + expected["dimwise_kl"]
    else:
        expected["kl"] = sum(a - b for a, b in zip(log_qx, log_p)) / 5
        total = nll + 2.5 * expected["kl"]
    if "learnt" in name:
        expected["mean_exponent"] = sum(p) / 3
    assert {key: value.item() for key, value in terms.terms.items()} == pytest.approx(expected, rel=1e-9)
    assert terms.total.item() == pytest.approx(total, rel=1e-9)


def test_unweighted_isa_tcvae_is_the_isa_vae():
    x = _images()
    losses = [
        _build(name, beta=1.0).loss(x, generator=torch.Generator().manual_seed(0)).total.item()
        for name in ("isa-tcvae", "isa-vae")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_parameter_and_moves_learnt_exponents(name):
    # Two coordinates at least in each: the exponent of a single one drops out.
    model, x = _build(name, sizes=(2, 4)), _images(16)
    (optimizer,) = model.optimizers()
    before, losses = model.prior.exponents().tolist(), []
    for _ in range(10):
        optimizer.zero_grad()
        terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        terms.total.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        optimizer.step()
        losses.append(terms.total.item())
    assert losses[-1] < losses[0] - 0.2
    after = model.prior.exponents().tolist()
    if "learnt" in name:
        assert before == [2.0, 2.0] and all(abs(value - 2.0) > 1e-4 for value in after)
        assert terms.terms["mean_exponent"].item() == pytest.approx(sum(after) / 2, abs=1e-2)
        assert ", ".join(f"{value:.4g}" for value in after) in repr(model)
    else:
        assert before == after == pytest.approx([2.2, 2.2]) and "exponents=[2.2, 2.2]" in repr(model)


@pytest.mark.parametrize("name", NAMES)
def test_saved_models_keep_their_exponents(name, tmp_path):
    model = _build(name)
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.add_(torch.tensor([0.1, 0.2, 0.3]))
    model.save_pretrained(tmp_path)
    loaded = sf.models.load(tmp_path)
    assert type(loaded) is type(model) and loaded.config == model.config and loaded.name == name
    assert torch.equal(loaded.prior.exponents(), model.prior.exponents())
    x = _images()
    loaded.begin_training(None, range(100))
    losses = [m.loss(x, generator=torch.Generator().manual_seed(0)).total for m in (model, loaded)]
    assert torch.equal(*losses)


def test_the_papers_settings():
    model = sf.models.build("isa-vae", channels=1)
    # 4096-1200-1200-40 and 20-1200-1200-1200-4096 with biases.
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_405_640 + 7_826_896
    assert model.config.sizes == (4,) * 5 and model.config.p0 == 2.1 and model.config.p == 2.2
    assert model.latent_groups == [list(range(i, i + 4)) for i in range(0, 20, 4)]
    learnt = sf.models.build("isa-tcvae-learnt", channels=1)
    assert learnt.prior.exponents().tolist() == [2.0] * 5 and learnt.config.beta == 3.0
    faces = sf.models.build("isa-vae", channels=1, latent_dim=10, sizes=(5, 5), p=1.9)
    assert faces.prior.exponents().tolist() == pytest.approx([1.9, 1.9])


def test_prior_samples_have_unit_variance_and_follow_the_generator():
    model = _build("isa-vae")
    z = model.sample_prior(20_000, torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 6) and z.dtype == torch.float32
    torch.testing.assert_close(z.var(dim=0), torch.ones(6), atol=0.05, rtol=0)
    # Inside a subspace the squares are correlated (p_k is not p0); the subspaces are independent.
    assert torch.equal(z, model.sample_prior(20_000, torch.Generator().manual_seed(0)))
    assert not torch.equal(z, model.sample_prior(20_000, torch.Generator().manual_seed(1)))
    images = model.decode(sf.samplers.PriorSampler(model).sample(3))
    assert images.shape == (3, 1, 8, 8) and model.sample_prior(0).shape == (0, 6)
    assert model.double().sample_prior(2).dtype == torch.float64


def test_hybrid_samples_keep_subspaces_together():
    model = _build("isa-vae")
    assert model.latent_groups == [[0, 1], [2, 3, 4], [5]]
    codes = torch.arange(8.0)[:, None].expand(8, 6) + torch.zeros(8, 6)
    rows = sf.samplers.HybridSampler(codes, model.latent_groups).sample(200, torch.Generator().manual_seed(0))
    assert torch.equal(rows[:, 0], rows[:, 1]) and torch.equal(rows[:, 2], rows[:, 4])
    assert (rows[:, 0] != rows[:, 2]).any()


@pytest.mark.parametrize("name", ["isa-vae-learnt", "isa-tcvae"])
def test_autocast_keeps_codes_and_losses_in_float32(name):
    model, x = _build(name), _images()
    exact = model.loss(x, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        assert model.encode(x).mean.dtype == torch.float32
        assert model.decode_logits(model.encode(x).mean).dtype == torch.bfloat16
    assert terms.total.dtype == torch.float32 and terms.total.item() == pytest.approx(exact.total.item(), rel=1e-2)
    terms.total.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_traces_as_one_graph():
    torch._dynamo.reset()
    model, x = _build("isa-tcvae-learnt", sizes=(2, 4)), _images()
    with sf.use_backend("reference"):
        compiled = torch.compile(lambda x: model.loss(x).total, fullgraph=True, backend="aot_eager")
        torch.manual_seed(0)
        found = compiled(x)
        torch.manual_seed(0)
        assert found.item() == pytest.approx(model.loss(x).total.item(), rel=1e-5)
        found.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"sizes": (2, 3)}, ValueError, r"sizes must sum to latent_dim = 6, got \(2, 3\), which sum to 5"),
        ({"sizes": (6, 0)}, ValueError, r"sizes\[1\] must be >= 1, got 0"),
        ({"sizes": 6}, TypeError, "sizes must be a list of ints, got 6"),
        ({"p0": 0.0}, ValueError, "p0 must be finite and > 0, got 0.0"),
        ({"p": -1.0}, ValueError, "p must be finite and > 0, got -1.0"),
        ({"p": (2.0, 2.0)}, ValueError, r"p must be a number or have shape \(3,\), got shape \(2,\)"),
        ({"p": "2"}, TypeError, "p must be float, got '2'"),
        ({"scale": (1.0, 0.0, 1.0)}, ValueError, "scale must be finite and > 0"),
        ({"learn_p": 1}, TypeError, "learn_p must be bool, got 1"),
        ({"estimator": "exact"}, ValueError, "estimator must be one of mss, mws, naive, got 'exact'"),
    ],
)
def test_bad_values(overrides, error, message):
    with pytest.raises(error, match=message):
        sf.models.build("isa-tcvae", **{**TINY, **overrides})


def test_the_tc_term_needs_the_size_of_the_training_set_and_two_images():
    model = sf.models.build("isa-tcvae", **TINY)
    with pytest.raises(ValueError, match="dataset_size of 'isa-tcvae' must be known for the estimator 'mss', got None"):
        model.loss(_images())
    model.begin_training(None, range(100))
    with pytest.raises(ValueError, match="not defined for a batch of 1"):
        model.loss(_images(1))
    sf.models.build("isa-tcvae", **TINY, estimator="naive").loss(_images(1)).total.backward()
