"""Priors as modules: density, samples, learning, saving, errors."""

import math

import pytest
import torch
from helpers.statistics import CLEARLY_WRONG, Z_THRESHOLD, z_score
from torch.distributions import Gumbel, Independent, Laplace, Normal, kl_divergence

from strucfast.distributions import LpNestedISA, priors

# name, options that fix everything, options that learn
DIM = 6
SETTINGS = {
    "normal": ("normal", {}),
    "anisotropic": ("anisotropic", {"std": [0.5, 1.0, 1.5, 2.0, 0.7, 1.2]}),
    "anisotropic, learnt": ("anisotropic", {"std": 1.5, "learn": True}),
    "student-t": ("student-t", {"df": 7.0}),
    "student-t, learnt": ("student-t", {"df": 7.0, "learn": True}),
    "mixture": ("mixture", {"weights": [1, 2, 3, 4]}),
    "mixture, learnt": ("mixture", {"components": 3, "learn": True}),
    "sparse": ("sparse", {}),
    "sparse, authors' code": ("sparse", {"narrow_variance": 0.0025}),
    "isa": ("isa", {"sizes": [3, 2, 1]}),
    "isa, learnt": ("isa", {"sizes": [3, 2, 1], "learn_p": True}),
}


def build(key, **more):
    name, options = SETTINGS[key]
    return priors.build(name, DIM, **{**options, **more})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_name_is_tested():
    assert {name for name, _ in SETTINGS.values()} == set(priors.PRIORS)


@pytest.mark.parametrize("key", SETTINGS)
def test_density_and_samples_belong_together(key):
    prior = build(key)
    assert isinstance(prior, priors.Prior) and prior.dim == DIM
    distribution = prior()
    assert distribution.event_shape == (DIM,) and distribution.batch_shape == ()
    samples = prior.sample(40000, seeded())
    assert samples.shape == (40000, DIM) and samples.dtype == torch.float32 and not samples.requires_grad
    second = distribution.variance.detach() + distribution.mean.detach() ** 2
    assert float(z_score(samples**2, second).max()) < Z_THRESHOLD
    assert torch.equal(prior.log_prob(samples), distribution.log_prob(samples))
    # integration by parts: E z . grad log p(z) = -D
    z = samples.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    stein = (z * gradient).sum(dim=1).detach()
    assert float(z_score(stein, -float(DIM))) < Z_THRESHOLD
    assert float(z_score(stein * 1.1, -float(DIM))) > CLEARLY_WRONG


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", SETTINGS)
def test_half_types_sample_what_they_describe(key, dtype):
    prior = build(key).to(dtype)
    samples = prior.sample(20000, seeded())
    assert samples.dtype == dtype
    exact = prior.double()()
    second = (exact.variance + exact.mean**2).detach()
    assert float(z_score(samples.double() ** 2, second).max()) < Z_THRESHOLD
    assert prior.to(dtype).log_prob(samples).dtype == torch.float32


@pytest.mark.parametrize("key", SETTINGS)
def test_generator_and_global_state(key):
    prior = build(key)
    state = torch.get_rng_state()
    first, second = (prior.sample(5, seeded(3)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, prior.sample(5, seeded(4)))
    torch.manual_seed(0)
    first = prior.sample(5)
    torch.manual_seed(0)
    assert torch.equal(first, prior.sample(5)) and prior.sample(0).shape == (0, DIM)


@pytest.mark.parametrize("key", SETTINGS)
def test_saving_moving_and_learning(key):
    prior = build(key)
    learnt = key.endswith("learnt")
    assert bool(list(prior.parameters())) == learnt
    z = torch.randn(7, DIM, generator=seeded())
    if learnt:
        before = prior.log_prob(z).sum()
        optimizer = torch.optim.SGD(prior.parameters(), lr=1e-3)
        (-before).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())
        optimizer.step()
        assert prior.log_prob(z).sum() > before
    # A prior built with other values takes them over from the file.
    other = {"anisotropic": {"std": 3.0}, "student-t": {"df": 3.0}, "isa": {"p": 1.3, "scale": 0.5}}
    copy = build(key, **other.get(SETTINGS[key][0], {}))
    copy.load_state_dict(prior.state_dict())
    assert torch.equal(copy.log_prob(z), prior.log_prob(z))
    wide = copy.double()
    torch.testing.assert_close(wide.log_prob(z.double()).float(), prior.log_prob(z))
    assert wide.sample(3, seeded()).dtype == torch.float64
    # on the meta device a tensor left behind on the CPU is an error
    with torch.device("meta"):
        built = build(key)
    for moved in (prior.to("meta"), built):
        assert moved.log_prob(z.to("meta")).shape == (7,) and moved.sample(3).device.type == "meta"


@pytest.mark.parametrize("key", ["normal", "anisotropic, learnt", "mixture", "isa", "isa, learnt"])
def test_under_compile(key):
    torch._dynamo.reset()
    prior = build(key)
    z = torch.randn(5, DIM, generator=seeded())
    compiled = torch.compile(prior.log_prob, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z), prior.log_prob(z))


def test_standard_normal_has_a_closed_kl():
    posterior = Independent(Normal(torch.ones(4, DIM), torch.full((4, DIM), 0.5)), 1)
    expected = DIM * 0.5 * (0.25 + 1 - 1 - math.log(0.25))
    for prior in (build("normal"), build("anisotropic", std=1.0)):
        torch.testing.assert_close(kl_divergence(posterior, prior()), torch.full((4,), expected))


def test_isa_prior():
    prior = priors.LpNestedISAPrior((4, 4))
    torch.testing.assert_close(prior().variance, torch.ones(8))
    assert isinstance(prior(), LpNestedISA) and float(prior.p0) == pytest.approx(2.1)
    torch.testing.assert_close(prior.exponents(), torch.full((2,), 2.2))
    assert float(prior.scale[0]) == pytest.approx(2.09312, abs=1e-5)
    learnt = priors.LpNestedISAPrior((4, 4), learn_p=True)
    torch.testing.assert_close(learnt.exponents(), torch.full((2,), 2.0))
    assert [name for name, _ in learnt.named_parameters()] == ["log_p"]
    # the scale stays, the variance moves with the exponent
    with torch.no_grad():
        learnt.log_p.fill_(math.log(2.2))
    torch.testing.assert_close(learnt().variance, torch.full((8,), 1.0834), rtol=1e-4, atol=0)
    code = priors.LpNestedISAPrior((2, 3), p=[1.9, 2.5], scale=1.0)
    expected = LpNestedISA((2, 3), 2.1, torch.tensor([1.9, 2.5]), 1.0)
    z = torch.randn(3, 5, generator=seeded())
    torch.testing.assert_close(code.log_prob(z), expected.log_prob(z))
    assert "sizes=(2, 3), learn_p=False" in repr(code)


def test_isa_prior_learns_the_exponents_of_data():
    data = priors.LpNestedISAPrior((3, 3), p=[1.3, 3.0], scale=2.0).sample(10000, seeded())
    prior = priors.LpNestedISAPrior((3, 3), scale=2.0, learn_p=True)
    optimizer = torch.optim.LBFGS(prior.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -prior.log_prob(data).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(prior.exponents().detach(), torch.tensor([1.3, 3.0]), rtol=0.03, atol=0)


def test_anisotropic_prior_keeps_its_total_variance_and_learns_it_from_data():
    a = torch.tensor([0.189453125, -0.5224609375, -0.4130859375, -2.44140625])
    prior = priors.AnisotropicNormalPrior(4, learn=True)
    with torch.no_grad():
        prior.logits.copy_(a)
    # golden "aniso"
    torch.testing.assert_close(prior().scale.detach(), torch.tensor([1.37681093, 0.96445980, 1.01867256, 0.36947959]))
    assert float((prior.std.detach() ** 2).sum()) == pytest.approx(4.0)
    scales = torch.tensor([3.0, 0.5, 1.0, 0.1, 2.0])
    data = 100 + torch.randn(2000, 5, generator=seeded()) * scales
    wanted = torch.tensor([3.0, 2.0, 1.0])
    wanted = wanted / (wanted**2).mean().sqrt()
    for learn in (False, True):
        for samples in (data, data[:, :, None], data[:200]):
            prior = priors.AnisotropicNormalPrior(3, learn=learn)
            assert prior.initialise_from(samples) is prior
            torch.testing.assert_close(prior.std.detach(), wanted, rtol=0.1, atol=0)
            assert float((prior.std.detach() ** 2).sum()) == pytest.approx(3.0, rel=1e-5)
    flat = data[:1] * torch.arange(5.0)[:, None]
    with pytest.raises(ValueError, match="at least dim = 3 directions, got 1"):
        priors.AnisotropicNormalPrior(3).initialise_from(flat)


def test_mixture_prior():
    prior = priors.build("mixture", 3)
    means = prior().means
    torch.testing.assert_close(means[:, :2], torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]]))
    assert (means[:, 2] == 0).all()
    torch.testing.assert_close(prior().weights, torch.full((4,), 0.25))
    given = priors.build("mixture", 1, components=2, means=[[-1.0], [1.0]], stds=[[0.5], [2.0]], weights=[1, 3])
    torch.testing.assert_close(given().weights, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(given().stds, torch.tensor([[0.5], [2.0]]))


@pytest.mark.parametrize("distribution", [Laplace, Gumbel, Normal])
def test_a_prior_of_ones_own(distribution):
    class Own(priors.Prior):
        def forward(self):
            return Independent(distribution(torch.zeros(self.dim), torch.ones(self.dim)), 1)

    prior = Own(3)
    state = torch.get_rng_state()
    first, second = (prior.sample(5, seeded(1)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert prior.sample(5).shape == (5, 3) and prior.log_prob(first).shape == (5,)
    assert float(z_score(prior.sample(40000, seeded()), prior().mean).max()) < Z_THRESHOLD


def test_bad_options():
    with pytest.raises(ValueError, match="name must be one of normal, anisotropic, .* got 'gaussian'"):
        priors.build("gaussian", 3)
    with pytest.raises(TypeError, match="prior 'normal' has no option 'std'; its options: none"):
        priors.build("normal", 3, std=1.0)
    with pytest.raises(TypeError, match="prior 'isa' needs the option 'sizes'"):
        priors.build("isa", 4)
    with pytest.raises(ValueError, match="must have dim = 4 dims, but its options give 3"):
        priors.build("isa", 4, sizes=[2, 1])
    for name, options, said in (
        ("isa", {"p": -1.0}, "p must be finite and > 0, got -1.0"),
        ("isa", {"p": [2.0, math.nan]}, "p must be finite and > 0"),
        ("isa", {"p": [2.0]}, r"p must be a number or have shape \(2,\), got shape \(1,\)"),
        ("isa", {"p0": 0.0}, "p0 must be finite and > 0"),
        ("isa", {"scale": math.inf}, "scale must be finite and > 0"),
        ("student-t", {"df": 0.0}, "df must be finite and > 0"),
        ("sparse", {"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ("sparse", {"gamma": math.nan}, r"gamma must be in \[0, 1\]"),
        ("sparse", {"narrow_variance": 0.0}, "narrow_variance must be finite and > 0"),
        ("anisotropic", {"std": [1.0, 1.0]}, r"std must be a number or have shape \(3,\), got shape \(2,\)"),
        ("mixture", {"means": [[0.0, 0.0, 0.0]]}, r"means must have shape .* \(4, 3\), got \(1, 3\)"),
        ("mixture", {"means": [[math.nan] * 3] * 4}, "means must be finite"),
        ("mixture", {"weights": [0.0, 1.0, 1.0, 1.0]}, "weights must be finite and > 0"),
        ("mixture", {"radius": -1.0}, "radius must be finite and > 0"),
        ("mixture", {"components": 0}, "components must be >= 1, got 0"),
    ):
        needed = {"sizes": [2, 1]} if name == "isa" else {}
        with pytest.raises(ValueError, match=said):
            priors.build(name, 3, **needed, **options)
    with pytest.raises(ValueError, match="means must be given where dim < 2"):
        priors.build("mixture", 1)
    with pytest.raises(ValueError, match="dim must be >= 1, got 0"):
        priors.build("normal", 0)
    with pytest.raises(TypeError, match="dim must be an int, got float"):
        priors.build("normal", 2.0)


def test_bad_calls():
    prior = build("isa")
    with pytest.raises(ValueError, match=r"z must have shape \(N, 6\), got \(4, 5\)"):
        prior.log_prob(torch.zeros(4, 5))
    with pytest.raises(TypeError, match="n must be an int, got float"):
        prior.sample(2.0)
    with pytest.raises(ValueError, match="n must be >= 0, got -1"):
        prior.sample(-1)
