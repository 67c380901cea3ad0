"""LpNested trees: golden values, exact sampler, gradients to every exponent."""

import json
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from helpers.statistics import CLEARLY_WRONG, KS_THRESHOLD, Z_THRESHOLD, ks, z_score
from torch.distributions import Gamma, LogNormal, Weibull

from strucfast.distributions import LpNested, LpNestedISA

CASES = json.loads((Path(__file__).parents[1] / "data" / "lpnested.json").read_text())["cases"]
TREES = [case for case in CASES if case["kind"] == "tree"]
(SURFACE,) = [case for case in CASES if case["kind"] == "surface"]
(RADIAL,) = [case for case in CASES if case["kind"] == "tree_gamma_radial"]
# pre-order exponents 1.5, 0.875, 3.0, 2.25
DEPTH_3 = next(case for case in TREES if case["name"] == "depth3")["inputs"]["tree"]


def double(value, grad=False):
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def with_exponents(tree, exponents):
    """The tree with its exponents, in pre-order, taken from an iterator."""
    if isinstance(tree, int):
        return tree
    return {"p": next(exponents), "children": [with_exponents(child, exponents) for child in tree["children"]]}


def preorder(tree):
    if isinstance(tree, int):
        return []
    return [tree["p"], *(p for child in tree["children"] for p in preorder(child))]


def parameters(tree, grad=False):
    """The tree with float64 tensors, and the tensors."""
    leaves = [double(p, grad) for p in preorder(tree)]
    return with_exponents(tree, iter(leaves)), leaves


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", TREES, ids=lambda case: case["name"])
def test_golden(case):
    given, expected = case["inputs"], case["expected"]
    tree, exponents = parameters(given["tree"], grad=True)
    scale, z = double(given["s"], grad=True), double(given["z"], grad=True)
    nested = LpNested(tree, scale)
    log_prob = nested.log_prob(z)
    (grad_z,) = torch.autograd.grad(log_prob.sum(), z, retain_graph=True)
    gradients = torch.autograd.grad((log_prob * double(given["upstream"])).sum(), [*exponents, scale])
    found = {
        "f": nested.radius(z),
        "logpdf": log_prob,
        "log_surface": nested.log_surface,
        "log_volume": nested.log_volume,
        "grad_z": grad_z,
        "grad_p_preorder": torch.stack(gradients[:-1]),
        "grad_s": gradients[-1],
    }
    assert set(found) == set(expected)
    for key, value in found.items():
        torch.testing.assert_close(value, double(expected[key]), rtol=1e-12, atol=1e-12, msg=key)


def test_golden_surfaces():
    for tree, surface, volume in zip(SURFACE["inputs"]["trees"], *SURFACE["expected"].values(), strict=True):
        nested = LpNested(parameters(tree)[0])
        assert float(nested.log_surface) == pytest.approx(surface, abs=1e-14)
        assert float(nested.log_volume) == pytest.approx(volume, abs=1e-14)
    assert list(SURFACE["expected"]) == ["log_surface", "log_volume"]


def test_golden_general_radius():
    given = RADIAL["inputs"]
    gamma = Gamma(double(given["shape"]), 1 / double(given["scale"]))
    nested = LpNested(parameters(given["tree"])[0], radial=gamma)
    expected = double(RADIAL["expected"]["logpdf"])
    torch.testing.assert_close(nested.log_prob(double(given["z"])), expected, rtol=1e-12, atol=1e-12)


def test_depth_two_is_isa():
    exponents = double(2.1), double([2.2, 0.8]), double(1.3)
    tree = {"p": exponents[0], "children": [{"p": exponents[1][0], "children": [0, 1]}, _node(exponents[1][1], 2, 3)]}
    nested, isa = LpNested(tree, exponents[2]), LpNestedISA((2, 2), *exponents)
    z = torch.randn(7, 4, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(nested.log_prob(z), isa.log_prob(z))
    torch.testing.assert_close(nested.entropy(), isa.entropy())
    torch.testing.assert_close(nested.variance, isa.variance)
    torch.testing.assert_close(nested.mode, isa.mode)


def _node(p, *children):
    return {"p": p, "children": list(children)}


@pytest.mark.parametrize("radial", [None, Gamma(double(4.0), double(2.0))])
def test_density_integrates_to_one(radial):
    nested = LpNested(_node(double(1.5), 0, _node(double(3.0), 1)), radial=radial)
    axis = torch.linspace(-12, 12, 1601, dtype=torch.float64)
    step = float(axis[1] - axis[0])
    # a grid that misses the axes, where the density has kinks
    grid = torch.cartesian_prod(axis + step / 3, axis + step / 3)
    assert float(nested.log_prob(grid).exp().sum() * step**2) == pytest.approx(1, abs=2e-5)


def sampler_statistics(nested, samples):
    """KS of the radius, of the shares at the root and at the inner nodes of DEPTH_3, given by hand."""
    size = samples.abs()
    p0, pa, pb, pc = (float(p) for p in nested.p)
    b = (size[:, 1] ** pb + size[:, 2] ** pb) ** (1 / pb)
    a = (size[:, 0] ** pa + b**pa) ** (1 / pa)
    c = (size[:, 3] ** pc + size[:, 4] ** pc) ** (1 / pc)
    total = a**p0 + c**p0 + size[:, 5] ** p0
    beta = scipy.stats.beta
    return {
        "radius": (total, None),
        "root, first": (a**p0 / total, beta(3 / p0, 3 / p0)),
        "root, leaf": (size[:, 5] ** p0 / total, beta(1 / p0, 5 / p0)),
        "a": ((b / a) ** pa, beta(2 / pa, 1 / pa)),
        "b": ((size[:, 1] / b) ** pb, beta(1 / pb, 1 / pb)),
        "c": ((size[:, 3] / c) ** pc, beta(1 / pc, 1 / pc)),
    }


@pytest.mark.parametrize("radial", [None, Gamma(double(4.0), double(2.0)), LogNormal(double(0.0), double(0.3))])
def test_sampler_is_exact(radial):
    tree, _ = parameters(DEPTH_3)
    nested = LpNested(tree, 0.75 if radial is None else None, radial)
    samples = nested.sample((40000,), generator=seeded())
    p0 = float(nested.p[0])
    for name, (values, law) in sampler_statistics(nested, samples).items():
        if law is None and radial is None:
            values, law = values / 0.75, scipy.stats.gamma(6 / p0)
        elif law is None:
            values = values ** (1 / p0)
            gamma, normal = scipy.stats.gamma(4.0, scale=0.5), scipy.stats.lognorm(0.3)
            law = gamma if isinstance(radial, Gamma) else normal
        assert ks(values, law.cdf) < KS_THRESHOLD, name
    assert float(z_score((samples > 0).double(), 0.5).max()) < Z_THRESHOLD
    assert float(z_score(samples**2, nested.variance).max()) < Z_THRESHOLD
    assert float(z_score(-nested.log_prob(samples), nested.entropy())) < Z_THRESHOLD
    if radial is None:
        # the same statistics see an exponent that is off by a tenth
        exponents = iter([p * (1.1 if i == 1 else 1.0) for i, p in enumerate(nested.p)])
        wrong = LpNested(with_exponents(DEPTH_3, exponents), 0.75).sample((40000,), generator=seeded())
        values, law = sampler_statistics(nested, wrong)["a"]
        assert ks(values, law.cdf) > 1.5 * KS_THRESHOLD


def test_score_identity_and_rsample_gradients():
    """Of every exponent and the scale: the mean score is 0, and gradients through samples are those of the variance."""
    n = 40000
    _, leaves = parameters(DEPTH_3, grad=True)
    scale = double(0.75, grad=True)
    nested = LpNested(with_exponents(DEPTH_3, iter(leaves)), scale)
    expected = torch.autograd.grad(nested.variance.sum(), [*leaves, scale])
    rows = [leaf.detach().expand(n).clone().requires_grad_() for leaf in (*leaves, scale)]
    batched = LpNested(with_exponents(DEPTH_3, iter(rows[:-1])), rows[-1])
    samples = batched.rsample(generator=seeded())
    pathwise = torch.autograd.grad((samples**2).sum(), rows)
    samples = samples.detach()
    scores = torch.autograd.grad(batched.log_prob(samples).sum(), rows)
    for found, wanted, score in zip(pathwise, expected, scores):
        assert float(z_score(score)) < Z_THRESHOLD
        assert float(z_score(found, wanted, slack=2e-3)) < Z_THRESHOLD
    wrong = LpNested(with_exponents(DEPTH_3, iter([1.5, 0.875, 3.0, 2.25 * 1.15])), 0.75)
    scores = torch.autograd.grad(batched.log_prob(wrong.sample((n,), generator=seeded())).sum(), rows)
    assert float(z_score(scores[3])) > CLEARLY_WRONG


def test_zeros():
    """At a zero coordinate or a zero subtree: finite values, and 0 where the derivative is one-sided or infinite."""
    tree = _node(0.8, 0, _node(1.0, 1, 2), _node(0.5, 3, 4))
    tree, leaves = parameters(tree, grad=True)
    z = double([[0.0] * 5, [1.0, 0.0, 2.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0, 3.0]], grad=True)
    nested = LpNested(tree, 1.0)
    log_prob = nested.log_prob(z)
    gradients = torch.autograd.grad(log_prob.sum(), [z, *leaves])
    assert log_prob.isfinite().all() and all(g.isfinite().all() for g in gradients)
    assert ((gradients[0] == 0) == (z == 0)).all()
    # the value there is the limit
    torch.testing.assert_close(log_prob, nested.log_prob(z.abs() + 1e-60))
    # a general radius: the limit of g(f)/f^(n-1), here that of the radius of independent subspaces with n = 5, p0 = 1
    flat = LpNested(_node(double(1.0), *range(5)), radial=Gamma(double(5.0), double(1.0)))
    torch.testing.assert_close(flat.log_prob(torch.zeros(5).double()), double(-5 * math.log(2)))


def test_function_transforms():
    """Per-sample scores by vmap of grad, and forward mode, against reverse mode."""
    z = torch.randn(5, 6, dtype=torch.float64, generator=seeded())

    def log_prob(exponents, z):
        return LpNested(with_exponents(DEPTH_3, iter(exponents)), 0.75, validate_args=False).log_prob(z)

    exponents = double(preorder(DEPTH_3))
    reverse = torch.autograd.functional.jacobian(lambda p: log_prob(p, z), exponents)
    per_sample = torch.func.vmap(torch.func.grad(log_prob), (None, 0))(exponents, z)
    torch.testing.assert_close(per_sample, reverse)
    torch.testing.assert_close(torch.func.jacfwd(log_prob)(exponents, z), reverse)
    by_value = torch.func.vmap(torch.func.grad(log_prob, argnums=1), (None, 0))(exponents, z)
    tangent = torch.func.jvp(lambda z: log_prob(exponents, z), (z,), (z,))[1]
    torch.testing.assert_close(tangent, (by_value * z).sum(dim=1))


@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 1e12])
def test_float32_extremes(magnitude):
    exponents = [1.5, 0.875, 3.0, 2.25]
    z = magnitude * torch.randn(20, 6, generator=seeded())
    found, wanted = [], []
    for dtype, out in ((torch.float32, found), (torch.float64, wanted)):
        leaves = [torch.tensor(p, dtype=dtype, requires_grad=True) for p in exponents]
        x = z.to(dtype).requires_grad_()
        nested = LpNested(with_exponents(DEPTH_3, iter(leaves)), 1.0)
        log_prob = nested.log_prob(x)
        out += [log_prob, *torch.autograd.grad(log_prob.sum(), [x, *leaves])]
    for given, expected in zip(found, wanted):
        torch.testing.assert_close(given.double(), expected, rtol=5e-5, atol=1e-36)


def test_shapes_expand_and_generator():
    p = torch.full((3,), 1.5)
    nested = LpNested(_node(2.0, 1, _node(p, 0, 2)), torch.ones(4, 1))
    assert nested.batch_shape == (4, 3) and nested.event_shape == (3,)
    assert nested.rsample((5,)).shape == (5, 4, 3, 3) and nested.log_prob(torch.zeros(3)).shape == (4, 3)
    assert nested.variance.shape == nested.mean.shape == (4, 3, 3)
    assert nested.entropy().shape == nested.log_volume.shape == nested.radius(torch.zeros(3)).shape == (4, 3)
    radial = LpNested(_node(2.0, 0, 1), radial=Gamma(torch.ones(2), 1.0))
    for distribution in (nested, radial):
        wide = distribution.expand((2, *([4, 3] if distribution is nested else [2])))
        assert wide.sample((5,)).shape == (5, *wide.batch_shape, *wide.event_shape)
        z = torch.randn(wide.event_shape, generator=seeded())
        torch.testing.assert_close(wide.log_prob(z)[1], distribution.log_prob(z))
        state = torch.get_rng_state()
        first, second = (wide.sample((3,), generator=seeded(1)) for _ in range(2))
        assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert nested.has_rsample and radial.has_rsample
    with pytest.raises(NotImplementedError, match="Gamma and LogNormal only, got Weibull"):
        LpNested(_node(2.0, 0, 1), radial=Weibull(torch.ones(2), 1.0)).entropy()
    with pytest.raises(NotImplementedError, match="radial"):
        _ = radial.mode


def test_bad_trees():
    with pytest.raises(TypeError, match="inner node of tree must be .* got 3"):
        LpNested(3)
    with pytest.raises(TypeError, match="inner node of tree must be .* got 1.5"):
        LpNested(_node(1.0, 0, 1.5))
    with pytest.raises(TypeError, match="inner node of tree"):
        LpNested({"p": 1.0, "nodes": [0]})
    with pytest.raises(ValueError, match="children must be a sequence of at least one node"):
        LpNested(_node(1.0))
    for leaves in ((0, 0), (1, 2), (0, 2), (-1, 0)):
        with pytest.raises(ValueError, match="must be the coordinates 0 to 1, each once"):
            LpNested(_node(1.0, *leaves))
    for bad in (0.0, -2.0, math.nan):
        with pytest.raises(ValueError, match="Expected parameter p "):
            LpNested(_node(1.0, 0, _node(bad, 1)), validate_args=True)
        with pytest.raises(ValueError, match="Expected parameter scale "):
            LpNested(_node(1.0, 0), bad, validate_args=True)
    with pytest.raises(ValueError, match="exclude each other"):
        LpNested(_node(1.0, 0), 1.0, Gamma(1.0, 1.0))
    with pytest.raises(TypeError, match="radial must be a torch Distribution, got float"):
        LpNested(_node(1.0, 0), radial=2.0)
    with pytest.raises(ValueError, match=r"radial must have event shape \(\), got \(2,\)"):
        LpNested(_node(1.0, 0), radial=LpNestedISA((2,), 2.0, 2.0))
