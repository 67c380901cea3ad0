"""LpNestedISA: golden values, an exact sampler, gradients that belong to it."""

import json
import math
from pathlib import Path

import pytest
import scipy.special
import scipy.stats
import torch
from helpers.statistics import CLEARLY_WRONG, KS_THRESHOLD, Z_THRESHOLD, ks, rank_correlation, z_score

from strucfast.distributions import LpNestedISA, _random, unit_variance_scale

CASES = json.loads((Path(__file__).parents[1] / "data" / "lpnested.json").read_text())["cases"]
ISA = [case for case in CASES if case["kind"] == "isa"]
(MOMENTS,) = [case for case in CASES if case["kind"] == "moments"]
# sizes, p0, p, scale: exponents on both sides of the root's and of 1, a subspace of one
SETTINGS = {
    "paper": ((4, 4), 2.1, (2.2, 1.9), (1.0, 1.5)),
    "ragged": ((1, 3, 2), 1.3, (1.0, 0.7, 4.0), (0.5, 2.0, 1.0)),
}


def double(*values, grad=False):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=grad) for value in values]


def build(name, grad=False):
    sizes, *rest = SETTINGS[name]
    return LpNestedISA(sizes, *double(*rest, grad=grad))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", ISA, ids=lambda case: case["name"])
@pytest.mark.parametrize("batched", [False, True])
def test_golden(case, batched):
    given, expected = case["inputs"], case["expected"]
    z, p0, p, scale, upstream = double(*(given[key] for key in ("z", "p0", "pk", "sk", "upstream")))
    parameters = [t.requires_grad_() for t in (z, p0, p, scale)]
    # A batch of two equal distributions does not go through the fused op.
    isa = LpNestedISA(given["nk"], p0.expand(2) if batched else p0, p, scale)
    log_prob = isa.log_prob(z[:, None])[:, 1] if batched else isa.log_prob(z)
    torch.testing.assert_close(log_prob, *double(expected["logpdf"]), rtol=1e-12, atol=1e-12)
    (grad_z,) = torch.autograd.grad(log_prob.sum(), z, retain_graph=True)
    torch.testing.assert_close(grad_z, *double(expected["grad_z"]), rtol=1e-11, atol=1e-12)
    gradients = torch.autograd.grad((log_prob * upstream).sum(), parameters[1:])
    for gradient, key in zip(gradients, ("grad_p0", "grad_pk", "grad_sk")):
        torch.testing.assert_close(gradient, double(expected[key])[0].reshape(gradient.shape), rtol=1e-11, atol=1e-11)


def test_golden_moments():
    given, expected = MOMENTS["inputs"], MOMENTS["expected"]
    sizes = given["nk"]
    p0, p, scale = double(given["p0"], given["pk"], given["sk"])
    isa = LpNestedISA(sizes, p0, p, scale)
    first = [sum(sizes[:k]) for k in range(len(sizes))]
    torch.testing.assert_close(isa.variance[first], *double(expected["variance"]), rtol=1e-13, atol=0)
    unit = unit_variance_scale(sizes, p0, p)
    torch.testing.assert_close(unit, *double(expected["unit_variance_scale"]), rtol=1e-13, atol=0)
    torch.testing.assert_close(LpNestedISA(sizes, p0, p, unit).variance, torch.ones(7).double())
    points = double(given["cdf_points"])[0][:, None].expand(-1, 7)
    cdf = isa.coordinate_cdf(points)
    torch.testing.assert_close(cdf[:, first].T, *double(expected["marginal_cdf"]), rtol=0, atol=1e-14)
    # every coordinate of a subspace alike
    assert torch.equal(cdf[:, 0], cdf[:, 3])


def test_coordinate_cdf_where_the_beta_density_has_poles():
    """Exponent 50: most of |z|'s share of its subspace lies at 0 or 1. Against adaptive quadrature."""
    isa = LpNestedISA((3,), *double(2.0, [50.0], [1.0]))
    for x in (1e-3, 0.3, 0.9):

        def integrand(energy):
            share = (x**2 / energy) ** 25
            return scipy.stats.gamma(1.5).pdf(energy) * scipy.special.betainc(1 / 50, 2 / 50, min(share, 1.0))

        outside, _ = scipy.integrate.quad(integrand, x**2, math.inf, epsabs=1e-11, epsrel=1e-11, limit=200)
        expected = 0.5 + 0.5 * (scipy.stats.gamma(1.5).cdf(x**2) + outside)
        found = isa.coordinate_cdf(torch.full((3,), x).double())
        assert abs(float(found[0]) - expected) < 1e-8, x
    ends, expected = double([-math.inf, 0.0, math.inf], [0.0, 0.5, 1.0])
    assert torch.equal(isa.coordinate_cdf(ends), expected)
    with pytest.raises(NotImplementedError, match="coordinate_cdf"):
        isa.cdf(torch.zeros(3))


def test_standard_normal_and_generalised_normal():
    z = torch.randn(50, 5, dtype=torch.float64, generator=seeded())
    normal = LpNestedISA((2, 3), *double(2.0, 2.0, 2.0))
    torch.testing.assert_close(normal.log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1))
    torch.testing.assert_close(normal.entropy(), double(5 * 0.5 * math.log(2 * math.pi * math.e))[0])
    same = LpNestedISA((2, 3), *double(1.3, 1.3, 0.7))
    expected = scipy.stats.gennorm(1.3, scale=0.7 ** (1 / 1.3)).logpdf(z.numpy()).sum(axis=1)
    torch.testing.assert_close(same.log_prob(z), torch.from_numpy(expected))


@pytest.mark.parametrize("name", SETTINGS)
def test_euler_and_scaling(name):
    """``z . dlogp/dz = -p0 sum_k E_k``; logpdf(c z; s c^p0) = logpdf(z; s) - n log c."""
    isa = build(name)
    z = torch.randn(9, sum(isa.sizes), dtype=torch.float64, generator=seeded()).requires_grad_()
    log_prob = isa.log_prob(z)
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    energy = isa.log_prob(torch.zeros_like(z)) - log_prob
    torch.testing.assert_close((gradient * z).sum(dim=1), -isa.p0 * energy)
    larger = LpNestedISA(isa.sizes, isa.p0, isa.p, isa.scale * 3.0**isa.p0)
    torch.testing.assert_close(larger.log_prob(3 * z), log_prob - sum(isa.sizes) * math.log(3.0))


def statistics_of_sampler(isa, samples):
    """KS statistics of a sampler's subspace radii, shares inside a subspace and coordinate marginals."""
    found = {}
    for k, part in enumerate(samples.split(isa.sizes, dim=1)):
        p0, p, scale = (float(t) for t in (isa.p0, isa.p[k], isa.scale[k]))
        n = isa.sizes[k]
        powers = part.abs() ** p
        norm = powers.sum(dim=1) ** (1 / p)
        found[f"radius {k}"] = ks(norm**p0 / scale, scipy.stats.gamma(n / p0).cdf)
        if n > 1:
            found[f"share {k}"] = ks(powers[:, 0] / powers.sum(dim=1), scipy.stats.beta(1 / p, (n - 1) / p).cdf)
        # 769 points of quadrature per value: a subset
        first = sum(isa.sizes[:k])
        value = torch.zeros(2000, sum(isa.sizes), dtype=torch.float64)
        value[:, first] = part[:2000, 0].sort().values
        cdf = isa.coordinate_cdf(value)[:, first].numpy()
        found[f"coordinate {k}"] = ks(part[:2000, 0], lambda points, cdf=cdf: cdf)
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_sampler_is_exact(name):
    isa = build(name)
    samples = isa.sample((40000,), generator=seeded())
    found = statistics_of_sampler(isa, samples)
    assert max(found.values()) < KS_THRESHOLD, found
    assert float(z_score((samples > 0).double(), 0.5).max()) < Z_THRESHOLD
    assert float(z_score(samples**2, isa.variance).max()) < Z_THRESHOLD
    assert float(z_score(-isa.log_prob(samples), isa.entropy())) < Z_THRESHOLD


def test_a_wrong_sampler_is_seen(monkeypatch):
    isa = build("ragged")
    correct = _random.log_node_value

    def without_boost(size, p, generator=None):
        return _random.standard_gamma(1 + size / p, generator).log() / p

    def exponent_off_by_a_quarter(size, p, generator=None):
        return correct(size, p * 1.25, generator)

    for wrong in (without_boost, exponent_off_by_a_quarter):
        monkeypatch.setattr("strucfast.distributions.lp_nested_isa.log_node_value", wrong)
        found = statistics_of_sampler(isa, isa.sample((40000,), generator=seeded()))
        assert max(value for key, value in found.items() if key.startswith("radius")) > CLEARLY_WRONG, found
        assert max(value for key, value in found.items() if key.startswith("share")) > 2 * KS_THRESHOLD, found


def test_subspaces_are_independent_and_their_coordinates_are_not():
    isa = build("ragged")
    samples = isa.sample((40000,), generator=seeded()).abs()
    first = [0, 1, 4]
    for a in range(3):
        for b in range(a):
            assert abs(rank_correlation(samples[:, first[a]], samples[:, first[b]])) < Z_THRESHOLD
            assert abs(rank_correlation(samples[:, first[a]], samples[:, -1])) < Z_THRESHOLD or a == 2
    assert abs(rank_correlation(samples[:, 1], samples[:, 2])) > CLEARLY_WRONG
    assert abs(rank_correlation(samples[:, 4], samples[:, 5])) > CLEARLY_WRONG


def test_sampler_at_a_large_exponent():
    """At 50 the shares pile up at 0 and 1 beyond what floats tell apart: a grid of |z| and the middle of the shares."""
    isa = LpNestedISA((3,), *double(2.0, [50.0], [1.0]))
    samples = isa.sample((40000,), generator=seeded())
    assert samples.isfinite().all() and (samples != 0).all()
    grid = torch.tensor([1e-3, 0.05, 0.3, 0.7, 0.9, 1.2, 2.0]).double()
    expected = 2 * isa.coordinate_cdf(grid[:, None].expand(-1, 3))[:, 0] - 1
    assert float(z_score((samples[:, :1].abs() <= grid).double(), expected).max()) < Z_THRESHOLD
    size = samples.abs()
    log_share = 50 * (size.log() - size.amax(dim=1, keepdim=True).log())
    share = (log_share - log_share.logsumexp(dim=1, keepdim=True)).exp()[:, 0]
    middle = share[(share > 1e-3) & (share < 1 - 1e-3)]
    beta = scipy.stats.beta(1 / 50, 2 / 50)
    low, high = beta.cdf([1e-3, 1 - 1e-3])
    assert ks(middle, lambda x: (beta.cdf(x) - low) / (high - low)) < KS_THRESHOLD
    single = LpNestedISA((3,), 2.0, 50.0, 1.0).sample((40000,), generator=seeded())
    assert single.dtype == torch.float32 and single.isfinite().all() and (single != 0).all()


def scores(name, samples):
    """dlogp/d(p0, p, scale) of each sample, (N, 1 + 2K)."""
    sizes, *rest = SETTINGS[name]
    n = samples.shape[0]
    p0, p, scale = (t.expand(n, *t.shape).clone().requires_grad_() for t in double(*rest))
    gradients = torch.autograd.grad(LpNestedISA(sizes, p0, p, scale).log_prob(samples).sum(), (p0, p, scale))
    return torch.cat([gradients[0][:, None], *gradients[1:]], dim=1)


@pytest.mark.parametrize("name", SETTINGS)
def test_score_identity(name):
    """The mean gradient of log p over exact samples is 0: sampler and gradient belong together."""
    samples = build(name).sample((40000,), generator=seeded())
    found = scores(name, samples)
    score = z_score(found)
    # a subspace of one does not depend on its exponent
    alone = torch.tensor([size == 1 for size in SETTINGS[name][0]])
    exponents = found[:, 1 : 1 + len(alone)]
    assert exponents[:, alone].abs().max() < 1e-12 if alone.any() else True
    assert float(score[score.isfinite()].max()) < Z_THRESHOLD, score
    # the fused op's gradients are the sum of these
    isa = build(name, grad=True)
    total = torch.autograd.grad(isa.log_prob(samples).sum(), (isa.p0, isa.p, isa.scale))
    flat = torch.cat([t.reshape(-1) for t in total])
    torch.testing.assert_close(flat, found.sum(dim=0), rtol=1e-9, atol=1e-6)


def test_score_identity_sees_a_wrong_exponent():
    sizes, p0, p, scale = SETTINGS["paper"]
    wrong = LpNestedISA(sizes, *double(p0 * 1.05, p, scale)).sample((40000,), generator=seeded())
    assert float(z_score(scores("paper", wrong))[0]) > CLEARLY_WRONG
    wrong = LpNestedISA(sizes, *double(p0, (p[0] * 1.1, p[1]), scale)).sample((40000,), generator=seeded())
    assert float(z_score(scores("paper", wrong))[1]) > CLEARLY_WRONG


@pytest.mark.parametrize("name", SETTINGS)
def test_rsample_gradients(name):
    """Gradient of the mean of z^2 through the samples against that of the variance in closed form."""
    sizes, *rest = SETTINGS[name]
    n = 40000
    parameters = [t.expand(n, *t.shape).clone().requires_grad_() for t in double(*rest)]
    torch.manual_seed(0)
    samples = LpNestedISA(sizes, *parameters).rsample()
    found = torch.autograd.grad((samples**2).sum(), parameters)
    exact = build(name, grad=True)
    leaves = double(*rest, grad=True)
    expected = torch.autograd.grad(LpNestedISA(sizes, *leaves).variance.sum(), leaves)
    for given, wanted in zip(found, expected):
        # torch differentiates Gamma samples to about 1e-3
        score = z_score(given, wanted, slack=2e-3)
        assert float(score[score.isfinite()].max()) < Z_THRESHOLD, (given.mean(dim=0), wanted)
    alone = [k for k, size in enumerate(exact.sizes) if size == 1]
    assert all(found[1][:, k].abs().max() < 1e-12 for k in alone)


def test_gradcheck_and_double_backward():
    z, p0, p, scale = double([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], 1.7, [2.2, 1.0], [0.5, 2.0], grad=True)
    for batch in ((), (2,)):

        def log_prob(z, p0, p, scale):
            return LpNestedISA((2, 1), p0.expand(batch), p, scale).log_prob(z)

        assert torch.autograd.gradcheck(log_prob, (z, p0, p, scale))
        assert torch.autograd.gradgradcheck(log_prob, (z, p0, p, scale))
    assert torch.autograd.gradcheck(lambda *t: LpNestedISA((2, 1), *t).entropy(), (p0, p, scale))
    assert torch.autograd.gradcheck(lambda *t: unit_variance_scale((2, 1), *t), (p0, p))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1.0, 1e15])
def test_float32_extremes(magnitude):
    """Batched parameters, whose formula is this module's own: float32 follows float64, zeros and all."""
    z = magnitude * torch.randn(20, 1, 4, generator=seeded())
    z[0] = 0
    z[1, :, 1] = 0
    found, wanted = [], []
    for dtype, out in ((torch.float32, found), (torch.float64, wanted)):
        x = z.to(dtype).requires_grad_()
        p0 = torch.full((2,), 2.125, dtype=dtype, requires_grad=True)
        p = torch.tensor([2.25, 0.75], dtype=dtype, requires_grad=True)
        log_prob = LpNestedISA((2, 2), p0, p, 1.0).log_prob(x)
        out += [log_prob, *torch.autograd.grad(log_prob.sum(), (x, p0, p))]
    assert all(tensor.isfinite().all() for tensor in found)
    for given, expected, rtol in zip(found, wanted, (2e-5, 5e-5, 5e-5, 5e-5)):
        torch.testing.assert_close(given.double(), expected, rtol=rtol, atol=1e-37)
    assert (found[1][0] == 0).all() and (found[1][1, :, 1] == 0).all()


def test_half_types_are_computed_in_float32():
    z = torch.randn(5, 4, generator=seeded())
    for dtype in (torch.bfloat16, torch.float16):
        for batch in ((), (3,)):
            isa = LpNestedISA((2, 2), torch.full(batch, 2.1), 2.2, 1.0)
            x = z.to(dtype)[:, None]
            found = isa.log_prob(x)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, isa.log_prob(x.float()))


def test_shapes_broadcast_and_expand():
    isa = LpNestedISA((2, 1), torch.full((4, 1), 2.0), torch.full((3, 2), 1.5), 1.0)
    assert isa.batch_shape == (4, 3) and isa.event_shape == (3,)
    assert isa.rsample((5,)).shape == isa.sample((5,)).shape == (5, 4, 3, 3)
    assert isa.mean.shape == isa.mode.shape == isa.variance.shape == isa.stddev.shape == (4, 3, 3)
    assert isa.entropy().shape == (4, 3)
    assert isa.log_prob(torch.zeros(3)).shape == (4, 3) and isa.log_prob(torch.zeros(6, 1, 1, 3)).shape == (6, 4, 3)
    assert isa.coordinate_cdf(torch.zeros(4, 3, 3)).shape == (4, 3, 3)
    one = LpNestedISA((2, 1), 2.0, 1.5, 1.0)
    wide = one.expand((4, 3))
    z = torch.randn(4, 3, 3, generator=seeded())
    assert wide.batch_shape == (4, 3) and wide.rsample().shape == (4, 3, 3)
    torch.testing.assert_close(wide.log_prob(z), isa.log_prob(z))
    torch.testing.assert_close(one.log_prob(z), isa.log_prob(z))
    assert wide.log_prob(torch.zeros(3)).shape == (4, 3)
    # torch's check of a real vector cannot take an empty batch
    unchecked = LpNestedISA((2, 1), 2.0, 1.5, 1.0, validate_args=False)
    assert unchecked.log_prob(torch.zeros(0, 3)).shape == (0,) and unchecked.sample((0,)).shape == (0, 3)
    assert isa.expand((2, 4, 3)).log_prob(z).shape == (2, 4, 3)


def test_numbers_and_integer_tensors():
    z = torch.randn(5, 3, generator=seeded())
    expected = LpNestedISA((2, 1), *(torch.tensor(v) for v in (2.0, [2.0, 1.0], 2.0))).log_prob(z)
    torch.testing.assert_close(LpNestedISA((2, 1), 2, torch.tensor([2, 1]), 2).log_prob(z), expected)
    assert LpNestedISA((2, 1), 2, torch.tensor([2, 1]).double(), 2).sample().dtype == torch.float64


def test_samples_are_repeatable_and_leave_the_global_generator():
    isa = build("paper")
    state = torch.get_rng_state()
    first, second = (isa.sample((3,), generator=seeded(7)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    first = isa.sample((3,))
    torch.manual_seed(1)
    assert torch.equal(first, isa.rsample((3,))) and not first.requires_grad


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_bad_values(bad):
    for name, arguments in {
        "p0": (bad, 2.0, 1.0),
        "p": (2.0, torch.tensor([2.0, bad]), 1.0),
        "scale": (2.0, 2.0, torch.tensor([bad, 1.0])),
    }.items():
        with pytest.raises(ValueError, match=f"Expected parameter {name} "):
            LpNestedISA((2, 1), *arguments, validate_args=True)


def test_bad_sizes_and_shapes():
    with pytest.raises(ValueError, match=r"sizes\[1\] must be >= 1, got 0"):
        LpNestedISA((2, 0), 2.0, 2.0)
    with pytest.raises(TypeError, match=r"sizes\[0\] must be an int, got float"):
        LpNestedISA((2.0, 1), 2.0, 2.0)
    with pytest.raises(TypeError, match="sizes must be a sequence of ints, got 4"):
        LpNestedISA(4, 2.0, 2.0)
    with pytest.raises(ValueError, match="at least one subspace"):
        LpNestedISA((), 2.0, 2.0)
    with pytest.raises(ValueError, match=r"p must be .* 2 subspaces .* got shape \(3,\)"):
        LpNestedISA((2, 1), 2.0, torch.ones(3))
    with pytest.raises(ValueError, match=r"scale must be .* got shape \(3,\)"):
        LpNestedISA((2, 1), 2.0, 2.0, torch.ones(3))
    with pytest.raises(ValueError):
        LpNestedISA((2, 1), 2.0, 2.0, validate_args=True).log_prob(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="value argument"):
        LpNestedISA((2, 1), 2.0, 2.0, validate_args=True).log_prob(torch.full((3,), torch.nan))


def test_maximum_likelihood_recovers_the_exponents():
    truth = LpNestedISA((2, 3), *double(2.1, [1.2, 3.0], [1.0, 2.0]))
    samples = truth.sample((20000,), generator=seeded())
    log_p, log_scale = double([0.7, 0.7], [0.0, 0.0], grad=True)
    optimizer = torch.optim.LBFGS([log_p, log_scale], max_iter=30, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -LpNestedISA((2, 3), truth.p0, log_p.exp(), log_scale.exp()).log_prob(samples).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(log_p.detach().exp(), truth.p, rtol=0.04, atol=0)
    torch.testing.assert_close(log_scale.detach().exp(), truth.scale, rtol=0.04, atol=0)
