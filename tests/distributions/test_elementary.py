"""Generalised normal, Student-t, sparse and Gaussian mixtures, anisotropic normal: golden values, torch and scipy."""

import json
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from helpers.statistics import CLEARLY_WRONG, KS_THRESHOLD, Z_THRESHOLD, ks, z_score
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal, StudentT, Uniform

from strucfast.distributions import (
    AnisotropicNormal,
    GeneralizedNormal,
    MixtureOfGaussians,
    ProductStudentT,
    SparseNormal,
)

CASES = json.loads((Path(__file__).parents[1] / "data" / "priors.json").read_text())["cases"]


def cases(kind):
    found = [case for case in CASES if case["kind"] == kind]
    assert found
    return found


def double(value, grad=False):
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def close(found, expected, dtype=torch.float64):
    """The golden file's own tolerances."""
    expected = expected if isinstance(expected, torch.Tensor) else double(expected)
    if dtype == torch.float64:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    else:
        assert ((found.double() - expected).abs() <= 2e-6 * (1 + expected.abs())).all()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_golden_case_is_used():
    assert {case["kind"] for case in CASES} == {"student_t", "student_t_ls", "mog", "sparse", "aniso", "gennorm"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_student_t(dtype):
    for case in cases("student_t"):
        z = double(case["inputs"]["z"]).to(dtype)[None, :, None].expand(4, -1, 1).clone().requires_grad_()
        df = double(case["inputs"]["nu"]).to(dtype)[:, None, None].expand(-1, len(case["inputs"]["z"]), 1)
        df = df.clone().requires_grad_()
        log_prob = ProductStudentT(df).log_prob(z)
        dz, ddf = torch.autograd.grad(log_prob.sum(), (z, df))
        close(log_prob, case["expected"]["logpdf"], dtype)
        close(dz[..., 0], case["expected"]["dz"], dtype)
        close(ddf[..., 0], case["expected"]["dnu"], dtype)
    for case in cases("student_t_ls"):
        given = {key: double(value).to(dtype) for key, value in case["inputs"].items()}
        student = ProductStudentT(given["nu"], given["loc"], given["scale"].expand(1))
        close(student.log_prob(given["z"][:, None]), case["expected"]["logpdf"], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_mixture(dtype):
    for case in cases("mog"):
        given = {key: double(value).to(dtype) for key, value in case["inputs"].items()}
        z = given["z"].requires_grad_()
        mixture = MixtureOfGaussians(given["weights"], given["means"], given["stds"])
        log_prob = mixture.log_prob(z)
        close(log_prob, case["expected"]["logpdf"], dtype)
        close(torch.autograd.grad(log_prob.sum(), z)[0], case["expected"]["grad_z"], dtype)
        close(mixture.responsibilities(z), case["expected"]["responsibilities"], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_sparse(dtype):
    for case in cases("sparse"):
        z = double(case["inputs"]["z"]).to(dtype).requires_grad_()
        gamma, variance = (double(case["inputs"][key]).to(dtype) for key in ("gamma", "var0"))
        log_prob = SparseNormal(gamma, variance).log_prob(z)
        close(log_prob, case["expected"]["logpdf"], dtype)
        close(torch.autograd.grad(log_prob.sum(), z)[0], case["expected"]["dz"], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_anisotropic_and_generalised(dtype):
    for case in cases("aniso"):
        std = double(case["expected"]["std"]).to(dtype)
        close(AnisotropicNormal(std).log_prob(double(case["inputs"]["z"]).to(dtype)), case["expected"]["logpdf"], dtype)
    for case in cases("gennorm"):
        given = {key: double(value).to(dtype) for key, value in case["inputs"].items()}
        found = GeneralizedNormal(0.0, given["alpha"], given["p"]).log_prob(given["z"])
        close(found, case["expected"]["logpdf"], dtype)


def test_generalised_normal_against_torch_and_scipy():
    z = torch.linspace(-4, 4, 33, dtype=torch.float64)
    for p, other in ((2.0, Normal(0.5, double(1.5))), (1.0, Laplace(double(0.5), 1.5))):
        scale = 1.5 * math.sqrt(2) if p == 2.0 else 1.5
        ours = GeneralizedNormal(double(0.5), scale, p)
        torch.testing.assert_close(ours.log_prob(z), other.log_prob(z))
        torch.testing.assert_close(ours.entropy(), other.entropy())
        torch.testing.assert_close(ours.variance, torch.as_tensor(other.variance))
        torch.testing.assert_close(ours.cdf(z), other.cdf(z))
    for p in (0.3, 1.7, 12.0):
        ours, theirs = GeneralizedNormal(double(0.5), 1.5, p), scipy.stats.gennorm(p, 0.5, 1.5)
        torch.testing.assert_close(ours.log_prob(z), torch.from_numpy(theirs.logpdf(z.numpy())))
        torch.testing.assert_close(ours.cdf(z), torch.from_numpy(theirs.cdf(z.numpy())))
        assert float(ours.entropy()) == pytest.approx(float(theirs.entropy()))
        assert float(ours.variance) == pytest.approx(float(theirs.var()))
    uniform = GeneralizedNormal(double(0.0), 1.0, 1e6)
    flat = Uniform(double(-1.0), 1.0).log_prob(double(0.5))
    torch.testing.assert_close(uniform.log_prob(double(0.5)), flat, atol=1e-5, rtol=0)


def test_generalised_normal_gradients():
    value, loc, scale, p = (double(v, grad=True) for v in ([0.7, -2.0], 0.5, 1.5, 0.8))
    assert torch.autograd.gradcheck(lambda *t: GeneralizedNormal(*t[1:]).log_prob(t[0]), (value, loc, scale, p))
    assert torch.autograd.gradgradcheck(lambda *t: GeneralizedNormal(*t[1:]).log_prob(t[0]), (value, loc, scale, p))
    assert torch.autograd.gradcheck(lambda *t: GeneralizedNormal(*t[1:], p.detach()).cdf(t[0]), (value, loc, scale))
    for exponent in (0.5, 1.0, 3.0):
        at_mode, power = double(0.5, grad=True), double(exponent, grad=True)
        log_prob = GeneralizedNormal(0.5, double(1.5), power).log_prob(at_mode)
        gradients = torch.autograd.grad(log_prob, (at_mode, power))
        assert float(gradients[0]) == 0 and gradients[1].isfinite()


@pytest.mark.parametrize("df", [0.7, 3.5, 30.0, 59.99, 60.01, 1e4])
def test_student_t_against_torch(df):
    z = torch.linspace(-30, 30, 41, dtype=torch.float64)[:, None]
    ours, theirs = ProductStudentT(double([df]), 0.5, 2.0), StudentT(double(df), 0.5, 2.0)
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z)[:, 0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.variance, theirs.variance.expand(1), equal_nan=True)
    torch.testing.assert_close(ours.mean, theirs.mean.expand(1), equal_nan=True)


def test_student_t_limits():
    z = torch.randn(5, 3, dtype=torch.float64, generator=seeded())
    normal = ProductStudentT(double([1e15] * 3))
    torch.testing.assert_close(normal.log_prob(z), Normal(0, double(1.0)).log_prob(z).sum(dim=1))
    torch.testing.assert_close(normal.entropy(), 3 * Normal(0, double(1.0)).entropy())
    # far out in float32, where the square of y is infinite
    far = torch.tensor([1e25], requires_grad=True)
    log_prob = ProductStudentT(torch.tensor([3.0])).log_prob(far)
    wanted = ProductStudentT(double([3.0])).log_prob(double([1e25]))
    torch.testing.assert_close(log_prob.double(), wanted, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(log_prob, far)
    torch.testing.assert_close(gradient, torch.tensor([-4e-25]), rtol=1e-6, atol=0)
    df, value = double([2.5, 80.0], grad=True), double([0.3, -4.0], grad=True)
    assert torch.autograd.gradcheck(lambda df, value: ProductStudentT(df).log_prob(value), (df, value))
    assert torch.autograd.gradcheck(lambda df: ProductStudentT(df).entropy(), (df,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_student_t_with_infinite_df_is_the_normal(dtype):
    df, scale = torch.tensor([math.inf, math.inf], dtype=dtype), torch.tensor([2.0, 0.5], dtype=dtype)
    ours, normal = ProductStudentT(df, torch.zeros_like(df), scale), Normal(0.0, scale.float())
    z = torch.tensor([[0.0, 0.0], [3.0, -1.5]], dtype=dtype)
    expected = normal.log_prob(z.float()).sum(dim=1)
    torch.testing.assert_close(ours.log_prob(z).float(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.entropy().float(), normal.entropy().sum(), rtol=1e-2, atol=0)
    torch.testing.assert_close(ours.variance.float(), scale.float() ** 2)
    samples = ours.sample((20000,), generator=seeded())
    assert samples.dtype == dtype
    assert float(z_score(samples.double() ** 2, scale.double() ** 2).max()) < Z_THRESHOLD


def test_mixture_against_torch():
    torch.manual_seed(0)
    weights, means, stds = torch.rand(3).double(), torch.randn(3, 2).double(), torch.rand(3, 2).double() + 0.5
    weights = weights / weights.sum()
    ours = MixtureOfGaussians(weights, means, stds)
    theirs = MixtureSameFamily(Categorical(weights), Independent(Normal(means, stds), 1))
    z = torch.randn(9, 2).double()
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    torch.testing.assert_close(ours.responsibilities(z).sum(dim=1), torch.ones(9).double())
    # a component of weight 0 is not there, whatever its parameters do
    weights = torch.tensor([1.0, 0.0]).double().requires_grad_()
    means = torch.tensor([[0.0], [5.0]]).double().requires_grad_()
    log_prob = MixtureOfGaussians(weights, means, double(1.0)).log_prob(double([[5.0]]))
    torch.testing.assert_close(log_prob, Normal(0.0, double(1.0)).log_prob(double([5.0])))
    gradients = torch.autograd.grad(log_prob.sum(), (weights, means))
    assert float(gradients[1][1]) == 0 and all(g.isfinite().all() for g in gradients)
    with pytest.raises(NotImplementedError, match="entropy of a mixture"):
        ours.entropy()
    with pytest.raises(NotImplementedError, match="mode of a mixture"):
        _ = ours.mode


def test_sparse_normal():
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    sparse = SparseNormal(double(0.3))
    mixture = MixtureOfGaussians(double([0.7, 0.3]), double([[0.0], [0.0]]), double([[1.0], [0.05**0.5]]))
    torch.testing.assert_close(sparse.log_prob(z), mixture.log_prob(z[:, None]))
    torch.testing.assert_close(sparse.variance, mixture.variance[0])
    for gamma, scale in ((0.0, 1.0), (1.0, 0.05**0.5)):
        weight, x = double(gamma, grad=True), z.clone().requires_grad_()
        log_prob = SparseNormal(weight).log_prob(x)
        torch.testing.assert_close(log_prob, Normal(0.0, double(scale)).log_prob(z))
        gradients = torch.autograd.grad(log_prob.sum(), (x, weight))
        assert all(g.isfinite().all() for g in gradients)
        samples = SparseNormal(weight.detach()).sample((20000,), generator=seeded())
        assert ks(samples, scipy.stats.norm(scale=scale).cdf) < KS_THRESHOLD
    with pytest.raises(NotImplementedError, match="entropy of a mixture"):
        sparse.entropy()


def test_anisotropic_normal_against_torch():
    scale = double([0.5, 2.0, 1.0])
    ours, theirs = AnisotropicNormal(scale), Independent(Normal(torch.zeros(3).double(), scale), 1)
    z = torch.randn(5, 3, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.variance, theirs.variance)
    assert torch.equal(ours.mean, ours.mode)


def marginals():
    """A distribution, a coordinate of it (None: it has one), and the coordinate's law in scipy."""
    stats = scipy.stats
    student = ProductStudentT(double([0.3, 3.0]), 0.5, 2.0)
    return {
        "gennorm": (GeneralizedNormal(double(0.5), 1.5, 0.6), None, stats.gennorm(0.6, 0.5, 1.5).cdf),
        "gennorm large p": (GeneralizedNormal(double(0.5), 1.5, 30.0), None, stats.gennorm(30.0, 0.5, 1.5).cdf),
        "student heavy": (student, 0, stats.t(0.3, 0.5, 2.0).cdf),
        "student": (student, 1, stats.t(3.0, 0.5, 2.0).cdf),
        "aniso": (AnisotropicNormal(double([0.5, 2.0])), 1, stats.norm(scale=2.0).cdf),
        "sparse": (SparseNormal(double(0.7)), None, lambda x: SparseNormal(double(0.7)).cdf(torch.from_numpy(x))),
        "mixture": (
            MixtureOfGaussians(double([0.3, 0.7]), double([[1.0, -1.0], [0.0, 2.0]]), double(0.5)),
            1,
            lambda x: 0.3 * stats.norm(-1.0, 0.5).cdf(x) + 0.7 * stats.norm(2.0, 0.5).cdf(x),
        ),
    }


@pytest.mark.parametrize("name", marginals())
def test_samplers(name):
    distribution, coordinate, cdf = marginals()[name]
    samples = distribution.sample((40000,), generator=seeded())
    values = samples if coordinate is None else samples[:, coordinate]
    assert ks(values, cdf) < KS_THRESHOLD
    assert ks(values * 1.2 + 0.1, cdf) > 2 * KS_THRESHOLD
    if "student" not in name:
        assert float(z_score(samples, distribution.mean).max()) < Z_THRESHOLD
        assert float(z_score((samples - distribution.mean) ** 2, distribution.variance).max()) < Z_THRESHOLD


def test_rsample_gradients():
    """Through samples, of E x^2, against the closed form."""
    n = 40000
    for build, values in (
        (lambda *t: GeneralizedNormal(*t), (0.5, 1.5, 0.8)),
        (lambda *t: ProductStudentT(*(v[..., None] for v in t)), (9.0, 0.5, 1.5)),
        (lambda t: AnisotropicNormal(t[..., None]), (1.5,)),
    ):
        leaves = [double(value, grad=True) for value in values]
        exact = build(*leaves)
        expected = torch.autograd.grad((exact.variance + exact.mean**2).sum(), leaves)
        rows = [double(value).expand(n).clone().requires_grad_() for value in values]
        found = torch.autograd.grad((build(*rows).rsample(generator=seeded()) ** 2).sum(), rows)
        for given, wanted in zip(found, expected):
            assert float(z_score(given, wanted, slack=2e-3)) < Z_THRESHOLD, (values, given.mean(), wanted)


def test_score_identity():
    n = 40000
    for build, values in (
        (lambda *t: GeneralizedNormal(*t), (0.5, 1.5, 2.8)),
        (lambda *t: ProductStudentT(*(v[..., None] for v in t)), (3.0, 0.5, 1.5)),
        (lambda *t: SparseNormal(*t), (0.6, 0.05)),
        (lambda t: AnisotropicNormal(t[..., None]), (1.5,)),
    ):
        rows = [double(value).expand(n).clone().requires_grad_() for value in values]
        distribution = build(*rows)
        scores = torch.autograd.grad(distribution.log_prob(distribution.sample(generator=seeded())).sum(), rows)
        assert all(float(z_score(score)) < Z_THRESHOLD for score in scores), values
        narrower = build(*(row * 0.9 for row in rows)).sample(generator=seeded())
        scores = torch.autograd.grad(distribution.log_prob(narrower).sum(), rows)
        assert max(float(z_score(score)) for score in scores) > CLEARLY_WRONG, values


def everything():
    """Each distribution with batch shape (4, 3), its event shape, and the tensors it was made of."""
    ones, grid = torch.ones(4, 1), torch.full((3,), 1.5)
    event = torch.ones(4, 1, 2)
    return {
        "gennorm": (GeneralizedNormal(0.0, ones, grid), ()),
        "sparse": (SparseNormal(ones * 0.5, grid), ()),
        "student": (ProductStudentT(event * 2.5, grid[:, None], 1.0), (2,)),
        "aniso": (AnisotropicNormal(torch.ones(4, 3, 2)), (2,)),
        "mixture": (MixtureOfGaussians(torch.full((3, 5), 0.2), torch.zeros(4, 1, 5, 2), 1.0), (2,)),
    }


@pytest.mark.parametrize("name", everything())
def test_shapes_expand_and_generator(name):
    distribution, event = everything()[name]
    assert distribution.batch_shape == (4, 3) and distribution.event_shape == event
    assert distribution.mean.shape == distribution.variance.shape == distribution.stddev.shape == (4, 3, *event)
    z = torch.randn(6, 4, 3, *event, generator=seeded())
    assert distribution.log_prob(z).shape == (6, 4, 3) and distribution.log_prob(z[0, 0, 0]).shape == (4, 3)
    assert distribution.sample().shape == (4, 3, *event) and distribution.sample((5, 2)).shape == (5, 2, 4, 3, *event)
    wide = distribution.expand((2, 4, 3))
    assert type(wide) is type(distribution) and wide.batch_shape == (2, 4, 3)
    assert wide.sample((5,)).shape == (5, 2, 4, 3, *event)
    torch.testing.assert_close(wide.log_prob(z[:, None])[:, 1], distribution.log_prob(z))
    state = torch.get_rng_state()
    first, second = (distribution.sample((3,), generator=seeded(2)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert distribution.has_rsample == (name not in ("sparse", "mixture"))
    if distribution.has_rsample:
        assert distribution.entropy().shape == (4, 3)
        assert torch.equal(distribution.rsample((3,), generator=seeded(2)), first)
    assert distribution.log_prob(z.bfloat16()).dtype == torch.float32
    assert distribution.log_prob(z.double()).dtype == torch.float64


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_bad_values(bad):
    vector = torch.tensor([1.0, bad])
    builders = {
        "scale": [lambda **k: GeneralizedNormal(0.0, bad, 1.0, **k), lambda **k: AnisotropicNormal(vector, **k)],
        "p": [lambda **k: GeneralizedNormal(0.0, 1.0, bad, **k)],
        "df": [lambda **k: ProductStudentT(vector, **k)],
        "narrow_variance": [lambda **k: SparseNormal(0.5, bad, **k)],
        "stds": [lambda **k: MixtureOfGaussians(torch.ones(1), torch.zeros(1, 2), bad, **k)],
    }
    for parameter, constructors in builders.items():
        for build in constructors:
            with pytest.raises(ValueError, match=f"Expected parameter {parameter} "):
                build(validate_args=True)
            build(validate_args=False)


def test_bad_shapes_and_weights():
    with pytest.raises(ValueError, match="Expected parameter gamma "):
        SparseNormal(1.5, validate_args=True)
    with pytest.raises(ValueError, match="Expected parameter weights "):
        MixtureOfGaussians(torch.tensor([0.5, 0.1]), torch.zeros(2, 1), 1.0, validate_args=True)
    with pytest.raises(ValueError, match=r"means must have shape \(..., K, D\), got \(3,\)"):
        MixtureOfGaussians(torch.ones(3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"weights must have shape .* 3 components of means, got \(2,\)"):
        MixtureOfGaussians(torch.ones(2) / 2, torch.zeros(3, 1), 1.0)
    with pytest.raises(ValueError, match="do not broadcast"):
        MixtureOfGaussians(torch.ones(2) / 2, torch.zeros(2, 3), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"scale must have shape \(..., D\), got \(\)"):
        AnisotropicNormal(torch.tensor(1.0))
    with pytest.raises(ValueError, match="got numbers only"):
        ProductStudentT(3.0)
    with pytest.raises(NotImplementedError, match="incomplete gamma"):
        GeneralizedNormal(0.0, 1.0, 2.0).icdf(torch.tensor(0.5))
