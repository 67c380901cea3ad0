"""kl_terms as an op: golden numbers on every backend, the prior left out, absent terms, extremes, and bad input."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

import strucfast as sf
from strucfast.ops import _registry
from strucfast.ops.kl_terms import SPEC
from strucfast.reference.kl_terms import KLTerms

GOLDEN = json.loads((Path(__file__).parents[1] / "data/tc.json").read_text())["cases"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = [b for b in _registry.BACKENDS if _registry._why_not(SPEC, b, DEVICE, torch.float32) is None]
on_every_backend = pytest.mark.parametrize("backend", ("reference", *NATIVE))
WEIGHTS = torch.tensor([1.0, 6.0, 2.0, 3.0, 4.0], dtype=torch.float64, device=DEVICE)


def batch(size, dims, posteriors=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((size, dims), (posteriors or size, dims), (posteriors or size, dims))
    z, mean, logvar = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [t.to(DEVICE, dtype) for t in (z, mean, 0.5 * logvar)]


def total(terms):
    return sum(weight * term for weight, term in zip(WEIGHTS.to(terms[0].dtype), terms))


@on_every_backend
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in GOLDEN if c["kind"] == "square"])
def test_golden_values_and_gradients(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    leaves = [torch.tensor(inputs[k], dtype=dtype, device=DEVICE).requires_grad_() for k in ("z", "mu", "logvar")]
    with sf.use_backend(backend):
        terms = sf.ops.kl_terms(
            *leaves, weights=inputs["weights"], dataset_size=inputs["N"], groups=inputs["groups"] or None
        )
        loss = sum(inputs[weight] * term for weight, term in zip(("alpha", "beta", "gamma"), terms))
        grads = torch.autograd.grad(loss, leaves)
    double = dtype == torch.float64
    for name, value in zip(("mi", "tc", "dwkl", "tc_between_groups", "tc_within_groups"), terms):
        assert value.dtype == dtype
        bound = 1e-11 if double else 2e-5
        assert abs(float(value.detach()) - expected[name]) <= bound * max(1.0, abs(expected[name])), name
    for name, grad in zip(("z", "mu", "logvar"), grads):
        exact = torch.tensor(expected[f"grad_loss_{name}"], dtype=torch.float64)
        error = float((grad.double().cpu() - exact).abs().max())
        assert error <= (1e-10 if double else 5e-6) * max(1.0, float(exact.abs().max())), name


@on_every_backend
@pytest.mark.parametrize("groups", (None, [[0, 2], [1, 3]]))
def test_without_the_prior_the_rest_is_the_same(backend, groups):
    tensors = batch(21, 4)
    with sf.use_backend(backend):
        whole = sf.ops.kl_terms(*tensors, dataset_size=90, groups=groups)
        part = sf.ops.kl_terms(*tensors, dataset_size=90, groups=groups, standard_normal=False)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(tensors[0]).sum(dim=1).mean()
    torch.testing.assert_close(part.dimwise_kl - density, whole.dimwise_kl)
    for name in ("index_code_mi", "total_correlation", "between_groups", "within_groups"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name))
    assert (whole.within_groups == 0) == (groups is None)


@on_every_backend
def test_a_share_of_the_samples_uses_its_own_posteriors(backend):
    """The shares of several processes average to the whole batch, gradients included."""
    z, mean, logvar = (t.requires_grad_() for t in batch(30, 4))
    with sf.use_backend(backend):
        whole = sf.ops.kl_terms(z, mean, logvar, dataset_size=40)
        shares = [
            sf.ops.kl_terms(z[start : start + 10], mean, logvar, dataset_size=40, _diagonal_offset=start)
            for start in (0, 10, 20)
        ]
        averaged = KLTerms(*(sum(terms) / 3 for terms in zip(*shares)))
        for found, expected in zip(averaged, whole):
            torch.testing.assert_close(found, expected)
        expected = torch.autograd.grad(total(whole), (z, mean, logvar))
        for found, exact in zip(torch.autograd.grad(total(averaged), (z, mean, logvar)), expected):
            torch.testing.assert_close(found, exact)


@on_every_backend
@pytest.mark.parametrize("groups", (None, [[0, 4], [1, 2, 3]]))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_terms_that_nothing_depends_on(backend, groups, count):
    leaves = [t.requires_grad_() for t in batch(13, 5)]
    with sf.use_backend(backend):
        for chosen in combinations(range(5), count):
            terms = sf.ops.kl_terms(*leaves, dataset_size=60, groups=groups)
            found = torch.autograd.grad([terms[i] for i in chosen], leaves, [WEIGHTS[i] for i in chosen])
            terms = sf.reference.kl_terms(*leaves, dataset_size=60, groups=groups)
            exact = torch.autograd.grad(sum(WEIGHTS[i] * terms[i] for i in chosen), leaves, materialize_grads=True)
            for a, b in zip(found, exact):
                torch.testing.assert_close(a, b)


@on_every_backend
def test_inputs_may_have_any_strides(backend):
    z, mean, logvar = batch(37, 6, dtype=torch.float32)
    layouts = (
        (z, *torch.cat((mean, logvar), dim=1).chunk(2, dim=1)),
        [t.t().contiguous().t() for t in (z, mean, logvar)],
        [torch.stack((t, t), dim=2)[..., 0] for t in (z, mean, logvar)],
    )
    with sf.use_backend(backend):
        results = []
        for tensors in ((z, mean, logvar), *layouts):
            leaves = [t.detach().requires_grad_() for t in tensors]
            terms = sf.ops.kl_terms(*leaves, dataset_size=100)
            results.append([*terms, *torch.autograd.grad(total(terms), leaves)])
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", ((), (0, 1, 0)))
@pytest.mark.parametrize("standard_normal", (True, False))
def test_without_a_kernel_the_same_in_plain_operations(groups, standard_normal):
    """What torch.compile and installs without binaries run: values and gradients of the raw op."""
    tensors = batch(9, 3, 14)
    statics = (0, 50, 4, groups, standard_normal)
    raw = SPEC.aten(*tensors, *statics)
    leaves = [t.requires_grad_() for t in tensors]
    expected = SPEC.reference(leaves, statics)
    for a, b in zip(raw[:5], expected, strict=True):
        torch.testing.assert_close(a, b.detach())
    exact = torch.autograd.grad(total(expected), leaves)
    plain = [t.detach() for t in leaves]
    found = SPEC.aten_backward(*WEIGHTS, *plain, *raw[5:], *statics, 7)
    for a, b in zip(found, exact):
        torch.testing.assert_close(a, b)
    alone = SPEC.aten_backward(None, None, WEIGHTS[2], None, None, *plain, *raw[5:], *statics, 1)
    exact = torch.autograd.grad(2.0 * SPEC.reference(leaves, statics).dimwise_kl, leaves[0])
    torch.testing.assert_close(alone[0], exact[0])
    assert [tuple(t.shape) for t in alone[1:]] == [(0,), (0,)]


@pytest.mark.parametrize("backend", NATIVE)
def test_a_loss_is_one_node_between_its_inputs_and_its_terms(backend):
    leaves = [t.requires_grad_() for t in batch(8, 3, dtype=torch.float32)]
    with sf.use_backend(backend):
        terms = sf.losses.kl_terms(*leaves, dataset_size=100)
    nodes = {term.grad_fn for term in terms}
    assert len(nodes) == 1
    (node,) = nodes
    assert [edge.variable is leaf for (edge, _), leaf in zip(node.next_functions[-3:], leaves)] == [True] * 3


@pytest.mark.parametrize("backend", NATIVE)
def test_an_infinite_term_without_weight(backend):
    """A sample far from its own posterior, a point: log q(z|x) is -inf, and only terms that hold it show that."""
    z, mean, logvar = batch(5, 2, dtype=torch.float32)
    z[0], logvar[0] = mean[0] + 1.0, -100.0
    leaves = [t.requires_grad_() for t in (z, mean, logvar)]
    with sf.use_backend(backend):
        terms = sf.ops.kl_terms(*leaves, weights="naive")
        assert terms.index_code_mi == -float("inf")
        grads = torch.autograd.grad(terms.total_correlation + terms.dimwise_kl, leaves)
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_bad_input_is_named():
    z, mean, logvar = batch(6, 3)
    with pytest.raises(ValueError, match=r"kl_terms: z must have at least one row, got shape \(0, 3\)"):
        sf.ops.kl_terms(z[:0], mean, logvar, weights="naive")
    with pytest.raises(ValueError, match=r"kl_terms: mean must have a row for each of the 4 rows of z.*\(6, 3\)"):
        sf.ops.kl_terms(z[:4], mean, logvar, weights="naive")
    with pytest.raises(ValueError, match="kl_terms: weights must be one of.*got 'exact'"):
        sf.ops.kl_terms(z, mean, logvar, weights="exact")
    with pytest.raises(TypeError, match="kl_terms: dataset_size must be an int.*NoneType"):
        sf.ops.kl_terms(z, mean, logvar)
    with pytest.raises(ValueError, match=r"kl_terms: _diagonal_offset must be in \[0, 2\] for 4 samples"):
        sf.ops.kl_terms(z[:4], mean, logvar, weights="naive", _diagonal_offset=3)
    with pytest.raises(ValueError, match="kl_terms: groups must name every dim of z"):
        sf.ops.kl_terms(z, mean, logvar, dataset_size=9, groups=[[0]])
