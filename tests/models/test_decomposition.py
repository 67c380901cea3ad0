"""The decomposition VAE: L_{alpha,beta} against plain float64 sums for every prior and divergence, PCA, sampling."""

import itertools
import math

import numpy as np
import pytest
import torch

import strucfast as sf

TINY = {"image_size": 8, "width": 8, "blocks": 2, "latent_dim": 4, "num_groups": 4}
PRIORS = {
    "normal": {},
    "anisotropic": {"std": [0.5, 1.0, 1.5, 2.0], "learn": True},
    "student-t": {"df": 4.0, "learn": True},
    "mixture": {"components": 3, "stds": 0.7, "learn": True},
    "sparse": {"gamma": 0.6},
    "isa": {"sizes": [1, 3], "learn_p": True},
}
DIVERGENCES = ("kl_pq", "kl_qp", "mmd", "mmd_dimwise")


class Data:
    """Images that vary along four directions with standard deviations 8:4:2:1."""

    def __init__(self, count=3000):
        generator = np.random.default_rng(0)
        directions = np.linalg.qr(generator.standard_normal((8 * 8 * 3, 4)))[0]
        codes = generator.uniform(-1, 1, (count, 4)) * [8, 4, 2, 1]
        self.values = (128 + 90 * codes @ directions.T).reshape(count, 8, 8, 3).clip(0, 255).astype(np.uint8)

    def images(self, indices):
        self.asked = len(indices)
        return self.values[indices]


def _build(prior="normal", **overrides):
    torch.manual_seed(0)
    options = {"prior": prior, "prior_options": PRIORS[prior], **TINY, **overrides}
    return sf.models.build("decomposition", **options)


def _images(count=5):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _log_normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def _log_sum(values):
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _log_prior(model, z):
    """Log-density of one code, from the parameters that the prior shows."""
    prior = model.prior
    name = model.config.prior
    if name == "normal":
        return sum(_log_normal(x, 0.0, 1.0) for x in z)
    if name == "anisotropic":
        return sum(_log_normal(x, 0.0, s) for x, s in zip(z, prior.std.tolist()))
    if name == "student-t":
        total = 0.0
        for x, df in zip(z, prior.df.tolist()):
            total += math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
            total -= (df + 1) / 2 * math.log1p(x * x / df)
        return total
    if name == "mixture":
        weights = torch.softmax(prior.logits, dim=0).tolist()
        means, stds = prior.means.tolist(), prior.log_stds.exp().tolist()
        parts = [sum(map(_log_normal, z, mean, std)) for mean, std in zip(means, stds)]
        return _log_sum([math.log(weight) + part for weight, part in zip(weights, parts)])
    if name == "sparse":
        gamma, narrow = prior.gamma[0].item(), math.sqrt(prior.narrow_variance[0].item())
        return sum(
            _log_sum([math.log(1 - gamma) + _log_normal(x, 0.0, 1.0), math.log(gamma) + _log_normal(x, 0.0, narrow)])
            for x in z
        )
    p0, p, scale = prior.p0.item(), prior.exponents().tolist(), prior.scale.tolist()
    total = 0.0
    for part, p_k, s_k in zip((z[:1], z[1:]), p, scale):
        n = len(part)
        energy = sum(abs(x) ** p_k for x in part) ** (p0 / p_k) / s_k
        total += math.lgamma(1 + n / p_k) - math.lgamma(1 + n / p0) - n * (math.log(2) + math.lgamma(1 + 1 / p_k))
        total += -n / p0 * math.log(s_k) - energy
    return total


def _imq(a, b, constants):
    distance = sum((x - y) ** 2 for x, y in zip(a, b))
    return sum(c / (c + distance) for c in constants)


def _mmd(x, y, constants):
    n, m = len(x), len(y)
    own = sum(_imq(a, b, constants) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    foreign = sum(_imq(a, b, constants) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return own + foreign - 2 * sum(_imq(a, b, constants) for a in x for b in y) / (n * m)


def _divergence(model, z, mean, std, prior_z):
    name = model.config.divergence
    mixture = [
        _log_sum([sum(map(_log_normal, code, m, s)) for m, s in zip(mean, std)]) - math.log(len(mean))
        for code in (prior_z if name == "kl_pq" else z)
    ]
    if name == "kl_pq":
        return sum(_log_prior(model, code) - q for code, q in zip(prior_z, mixture)) / len(prior_z)
    if name == "kl_qp":
        return sum(q - _log_prior(model, code) for code, q in zip(z, mixture)) / len(z)
    if name == "mmd":
        return _mmd(z, prior_z, [2 * 4 * s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)])
    scales = [2 * s for s in (0.1, 0.2, 0.5, 1, 2, 5)]
    return sum(_mmd([[code[d]] for code in z], [[code[d]] for code in prior_z], scales) for d in range(4))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("prior", PRIORS)
def test_loss_matches_an_independent_float64_computation(prior, divergence):
    model = _build(prior, divergence=divergence, alpha=1.5, beta=2.5).double()
    x, generator = _images().double(), torch.Generator().manual_seed(5)
    terms = model.loss(x, generator=torch.Generator().manual_seed(5))
    mean, logvar = model.posterior(x)
    std = torch.exp(0.5 * logvar)
    z = mean + std * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    probability = model.decode(z)
    nll = -(x * probability.log() + (1 - x) * torch.log1p(-probability)).sum().item() / 5
    z, mean, std = z.tolist(), mean.tolist(), std.tolist()
    if prior in ("normal", "anisotropic"):
        wide = model.prior.std.tolist() if prior == "anisotropic" else [1.0] * 4
        # KL(N(m, s^2) || N(0, t^2)) = [ (s^2 + m^2)/t^2 - 1 - log(s^2/t^2) ] / 2
        parts = [(m, s, t) for ms, ss in zip(mean, std) for m, s, t in zip(ms, ss, wide)]
        kl = sum(0.5 * ((s * s + m * m) / t**2 - 1 - math.log(s * s / t**2)) for m, s, t in parts) / 5
    else:
        log_q = [sum(map(_log_normal, code, m, s)) for code, m, s in zip(z, mean, std)]
        kl = sum(q - _log_prior(model, code) for q, code in zip(log_q, z)) / 5
    # The draws come after the posterior's noise from the same generator.
    prior_z = model.prior.sample(5, generator).tolist()
    expected = {"reconstruction": nll, "kl": kl, "divergence": _divergence(model, z, mean, std, prior_z)}
    assert {key: value.item() for key, value in terms.terms.items()} == pytest.approx(expected, rel=1e-8)
    assert terms.total.item() == pytest.approx(nll + 2.5 * kl + 1.5 * expected["divergence"], rel=1e-9)


def test_without_alpha_there_is_no_divergence():
    model, x = _build(beta=3.0), _images()
    terms = model.loss(x, generator=torch.Generator().manual_seed(0))
    assert set(terms.terms) == {"reconstruction", "kl"}
    torch.manual_seed(0)
    plain = sf.models.build("beta-vae", **TINY, beta=3.0)
    assert terms.total.item() == pytest.approx(plain.loss(x, generator=torch.Generator().manual_seed(0)).total.item())


@pytest.mark.parametrize("divergence", ["kl_pq", "mmd_dimwise"])
@pytest.mark.parametrize("prior", PRIORS)
def test_training_reaches_every_parameter_also_under_autocast(prior, divergence):
    options = {"sizes": [2, 2], "learn_p": True} if prior == "isa" else PRIORS[prior]
    model, x = _build(prior, prior_options=options, divergence=divergence, alpha=1.0), _images(8)
    (optimizer,) = model.optimizers()
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=step == 0):
            terms = model.loss(x, generator=torch.Generator().manual_seed(0))
        assert all(value.dtype == torch.float32 for value in (terms.total, *terms.terms.values()))
        terms.total.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        optimizer.step()
        losses.append(terms.total.item())
    assert losses[-1] < losses[0] - 0.5


def test_the_divergence_moves_a_learnt_prior_through_its_draws():
    """beta = 0 leaves the prior to the divergence; the MMD knows it through its samples alone."""
    model = _build("anisotropic", divergence="mmd", alpha=1.0, beta=0.0)
    model.loss(_images(8)).total.backward()
    assert model.prior.logits.grad.abs().sum() > 0


def test_principal_components_initialise_the_prior_once():
    data = Data()
    model = sf.models.build("decomposition", **TINY)
    assert model.config.pca and model.config.prior_options == {"learn": True} and model.latent_dim == 4
    model.begin_training(data, np.arange(1000, 3000))
    assert model.dataset_size == 2000 and data.asked == 1024
    # Uniform codes of half-widths 8:4:2:1, total variance 4 as before.
    expected = torch.tensor([8.0, 4.0, 2.0, 1.0]) * math.sqrt(4 / 85)
    torch.testing.assert_close(model.prior.std.detach(), expected, rtol=0.06, atol=0.0)
    resumed = sf.models.build("decomposition", **TINY)
    resumed.begin_training(data, np.arange(2000), resumed=True)
    torch.testing.assert_close(resumed.prior.std.detach(), torch.ones(4))
    fixed = sf.models.build("decomposition", prior_options={"learn": False}, **TINY)
    fixed.begin_training(data, np.arange(100))
    assert data.asked == 100 and not any(True for _ in fixed.prior.parameters())
    torch.testing.assert_close(fixed.prior.std, expected, rtol=0.25, atol=0.0)
    given = _build("anisotropic")
    given.begin_training(data, np.arange(100))
    torch.testing.assert_close(given.prior.std.detach(), torch.tensor([0.5, 1.0, 1.5, 2.0]))


@pytest.mark.parametrize("prior", PRIORS)
def test_saved_models_and_prior_samples(prior, tmp_path):
    model = _build(prior)
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape))
    model.save_pretrained(tmp_path)
    loaded = sf.models.load(tmp_path)
    assert loaded.config == model.config and type(loaded.prior) is type(model.prior)
    draws = [m.sample_prior(4000, torch.Generator().manual_seed(0)) for m in (model, loaded)]
    assert torch.equal(*draws) and draws[0].shape == (4000, 4)
    images = model.decode(sf.samplers.PriorSampler(model).sample(2))
    assert images.shape == (2, 3, 8, 8)
    groups = [[0], [1, 2, 3]] if prior == "isa" else [[0], [1], [2], [3]]
    assert model.latent_groups == groups
    rows = sf.samplers.HybridSampler(torch.arange(8.0)[:, None].expand(8, 4), groups).sample(50)
    assert torch.equal(rows[:, 1], rows[:, 2]) == (prior == "isa")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"prior": "cauchy"}, ValueError, "prior must be one of normal, .*, got 'cauchy'"),
        ({"prior": "isa", "prior_options": {}}, TypeError, "prior 'isa' needs the option 'sizes'"),
        ({"prior": "isa", "prior_options": {"sizes": [2, 3]}}, ValueError, "must have dim = 4 dims, .* give 5"),
        ({"prior": "sparse", "prior_options": {"df": 3}}, TypeError, "prior 'sparse' has no option 'df'"),
        ({"prior": "student-t", "prior_options": {"df": -1.0}}, ValueError, "df must be finite and > 0, got -1.0"),
        ({"prior_options": [1]}, TypeError, "prior_options must be a mapping"),
        ({"divergence": "js"}, ValueError, "divergence must be one of kl_pq, .*, none, got 'js'"),
        ({"divergence": "none", "alpha": 2.0}, ValueError, "divergence must not be 'none' with alpha = 2"),
        ({"alpha": -1.0}, ValueError, "alpha must be finite and >= 0, got -1.0"),
        ({"pca": True}, ValueError, "pca must be off with prior = 'normal'"),
    ],
)
def test_bad_values(overrides, error, message):
    with pytest.raises(error, match=message):
        sf.models.build("decomposition", **{**TINY, "prior": "normal", **overrides})


def test_data_without_enough_directions_are_refused():
    model = sf.models.build("decomposition", **TINY)
    data = Data(100)
    data.values[:] = data.values[:1]
    with pytest.raises(ValueError, match="vary along at least dim = 4 directions, got 0"):
        model.begin_training(data, np.arange(100))
