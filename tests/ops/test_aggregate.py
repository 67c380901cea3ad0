"""aggregate_log_density: golden numbers on every backend, the estimators' identities, extremes, and bad input."""

import json
import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strucfast as sf
from strucfast import _native
from strucfast.ops import _registry
from strucfast.ops.aggregate import SPEC, _group_labels

GOLDEN = json.loads((Path(__file__).parents[1] / "data/tc.json").read_text())["cases"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = [b for b in _registry.BACKENDS if _registry._why_not(SPEC, b, DEVICE, torch.float32) is None]
on_every_backend = pytest.mark.parametrize("backend", ("reference", *NATIVE))
both_dtypes = pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
density = sf.ops.aggregate_log_density


def cases(kind):
    return [pytest.param(c, id=c["name"]) for c in GOLDEN if c["kind"] == kind]


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=torch.float64, device=DEVICE).to(dtype)


def check(name, found, expected, dtype, *, gradient):
    """The tolerances that the golden file states, widened by what A, B and E lose when float32 stores them."""
    expected = torch.tensor(expected, dtype=torch.float64)
    found = found.detach().double().cpu().reshape(expected.shape)
    if dtype == torch.float64:
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    elif gradient:
        error = float((found - expected).abs().max())
        assert error <= 5e-6 * float(expected.abs().max()), f"{name}: {error}"
    else:
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-5)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("square"))
def test_golden_values_and_gradients(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    leaves = [tensor(inputs[name], dtype).requires_grad_() for name in ("z", "mu", "logvar")]
    with sf.use_backend(backend):
        found = density(
            *leaves, weights=inputs["weights"], dataset_size=inputs["N"], groups=inputs["groups"] or None
        )
        upstream = [tensor(inputs[name], dtype).reshape(out.shape) for name, out in zip(("gA", "gB", "gG"), found)]
        grads = torch.autograd.grad(found, leaves, upstream)
    for name, value in zip(("log_qz", "log_qzd", "log_qzg"), found):
        check(name, value, expected[name], dtype, gradient=False)
    # The golden gradients hold a term of log q(z|x), which the op does not give.
    z, mean, logvar = (tensor(inputs[name]).requires_grad_() for name in ("z", "mu", "logvar"))
    own = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(dim=1)
    rest = torch.autograd.grad(own, (z, mean, logvar), tensor(inputs["gC"]))
    for name, grad, more in zip(("z", "mu", "logvar"), grads, rest):
        check(name, grad.double() + more, expected[f"grad_terms_{name}"], dtype, gradient=True)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("rect"))
def test_golden_foreign_samples(case, backend, dtype):
    """KL(p || q) of samples of p = N(0, I): value and gradients of mean(log p - log q)."""
    inputs, expected = case["inputs"], case["expected"]
    leaves = [tensor(inputs[name], dtype).requires_grad_() for name in ("z", "mu", "logvar")]
    with sf.use_backend(backend):
        joint = density(*leaves, weights="naive").joint
        prior = -0.5 * (leaves[0] * leaves[0] + math.log(2 * math.pi)).sum(dim=1)
        kl = (prior - joint).mean()
        grads = torch.autograd.grad(kl, leaves)
    check("log_qz", joint, expected["log_qz"], dtype, gradient=False)
    check("kl_pq", kl, expected["kl_pq"], dtype, gradient=False)
    for name, grad in zip(("z", "mu", "logvar"), grads):
        check(name, grad, expected[f"grad_{name}"], dtype, gradient=True)


def batch(samples, dims, posteriors=None, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    posteriors = samples if posteriors is None else posteriors
    z, mean, logvar = (
        torch.randn(rows, dims, generator=generator, dtype=torch.float64) for rows in (samples, posteriors, posteriors)
    )
    return z.to(DEVICE, dtype), mean.to(DEVICE, dtype), (0.7 * logvar).to(DEVICE, dtype)


def assert_equal_results(one, other):
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 70),
    posteriors=st.integers(1, 70),
    dims=st.integers(1, 24),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_equals_a_mixture_of_torch_distributions(samples, posteriors, dims, seed, data):
    z, mean, logvar = (t.cpu() for t in batch(samples, dims, posteriors, seed))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=dims, max_size=dims))
    groups = [[d for d in range(dims) if labels[d] == g] for g in sorted(set(labels))]
    found = density(z, mean, logvar, weights="naive", groups=groups)
    pairs = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(z.unsqueeze(1))
    shift = math.log(posteriors)
    torch.testing.assert_close(found.joint, pairs.sum(2).logsumexp(1) - shift, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.marginal, pairs.logsumexp(1) - shift, rtol=1e-10, atol=1e-10)
    for g, group in enumerate(groups):
        sums = pairs[:, :, group].sum(2)
        torch.testing.assert_close(found.grouped[:, g], sums.logsumexp(1) - shift, rtol=1e-10, atol=1e-10)


@on_every_backend
def test_the_partitions_of_one_group_and_of_single_dims(backend):
    z, mean, logvar = batch(21, 6)
    with sf.use_backend(backend):
        whole = density(z, mean, logvar, dataset_size=90, groups=[[3, 0, 1, 5, 4, 2]])
        single = density(z, mean, logvar, dataset_size=90, groups=[[d] for d in (2, 0, 5, 4, 1, 3)])
    torch.testing.assert_close(whole.grouped[:, 0], whole.joint)
    torch.testing.assert_close(single.grouped, single.marginal[:, [2, 0, 5, 4, 1, 3]])


@on_every_backend
def test_samples_permute_with_their_posteriors(backend):
    z, mean, logvar = batch(37, 5)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    dims = torch.tensor([4, 2, 0, 1, 3], device=DEVICE)
    with sf.use_backend(backend):
        plain = density(z, mean, logvar, dataset_size=500)
        rows = density(z[order], mean[order], logvar[order], dataset_size=500)
        columns = density(z[:, dims], mean[:, dims], logvar[:, dims], dataset_size=500)
    torch.testing.assert_close(rows.joint, plain.joint[order])
    torch.testing.assert_close(rows.marginal, plain.marginal[order])
    torch.testing.assert_close(columns.joint, plain.joint)
    torch.testing.assert_close(columns.marginal, plain.marginal[:, dims])


@on_every_backend
def test_an_offset_is_a_slice_of_the_square(backend):
    """What one of several processes computes: its rows of z against everybody's posteriors."""
    z, mean, logvar = batch(30, 4)
    groups = [[1, 3], [0, 2]]
    with sf.use_backend(backend):
        whole = density(z, mean, logvar, dataset_size=40, groups=groups)
        for start, stop in ((0, 10), (10, 11), (13, 30)):
            part = density(z[start:stop], mean, logvar, dataset_size=40, groups=groups, _diagonal_offset=start)
            assert_equal_results(part, [full[start:stop] for full in whole])


@on_every_backend
def test_equal_posteriors_are_their_own_aggregate(backend):
    z, mean, logvar = batch(19, 3)
    mean, logvar = mean[:1].expand(19, 3), logvar[:1].expand(19, 3)
    expected = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(z)
    with sf.use_backend(backend):
        for weights, constant in (("mss", 0.0), ("naive", 0.0), ("mws", -math.log(70))):
            found = density(z, mean, logvar, weights=weights, dataset_size=70)
            torch.testing.assert_close(found.joint, expected.sum(1) + constant)
            torch.testing.assert_close(found.marginal, expected + constant)


@pytest.mark.parametrize("size,seed", ((6, 0), (5, 3)))
def test_stratified_weights_are_unbiased(size, seed):
    """Over every batch of 3 out of N images that holds sample i, exp(joint) averages to the true mixture."""
    z, mean, logvar = (t.cpu() for t in batch(size, 2, seed=seed))
    truth = density(z, mean, logvar, weights="naive").joint.exp()
    sums, counts = torch.zeros(size, dtype=torch.float64), torch.zeros(size)
    for chosen in combinations(range(size), 3):
        chosen = list(chosen)
        sums[chosen] += density(z[chosen], mean[chosen], logvar[chosen], dataset_size=size).joint.exp()
        counts[chosen] += 1
    torch.testing.assert_close(sums / counts, truth)


@on_every_backend
@pytest.mark.parametrize("absent", ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)))
def test_absent_upstream_gradients_count_as_zero(backend, absent):
    leaves = [t.requires_grad_() for t in batch(23, 5)]
    with sf.use_backend(backend):
        found = density(*leaves, dataset_size=60, groups=[[0, 4], [1, 2, 3]])
        weights = [torch.zeros_like(o) if i in absent else torch.randn_like(o) for i, o in enumerate(found)]
        full = torch.autograd.grad(found, leaves, weights, retain_graph=True)
        present = [i for i in range(3) if i not in absent]
        part = torch.autograd.grad([found[i] for i in present], leaves, [weights[i] for i in present])
    assert_equal_results(part, full)


@on_every_backend
def test_expanded_upstream_gradients(backend):
    """What .mean() and .sum() send back: one number for all elements, with stride 0."""
    leaves = [t.requires_grad_() for t in batch(20, 4)]
    with sf.use_backend(backend):
        found = density(*leaves, dataset_size=60, groups=[[0], [1, 2, 3]])
        expanded = [torch.full((), 0.25, dtype=o.dtype, device=DEVICE).expand(o.shape) for o in found]
        lazy = torch.autograd.grad(found, leaves, expanded, retain_graph=True)
        dense = torch.autograd.grad(found, leaves, [e.contiguous() for e in expanded])
    assert_equal_results(lazy, dense)


@on_every_backend
@both_dtypes
def test_posteriors_of_a_point(backend, dtype):
    """logvar -88: sigma is 8e-20 and (z - mean)^2 / sigma^2 infinite in float32, off the diagonal."""
    _, mean, _ = batch(18, 3, dtype=dtype)
    logvar = torch.full_like(mean, -88.0)
    leaves = [(30.0 * mean).clone().requires_grad_(), (30.0 * mean).requires_grad_(), logvar.requires_grad_()]
    with sf.use_backend(backend):
        found = density(*leaves, weights="mws", dataset_size=50)
        grads = torch.autograd.grad(found.joint.sum() + found.marginal.sum(), leaves)
    constant = -math.log(50) - math.log(18)
    own = 44.0 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found.joint, torch.full_like(found.joint, 3 * own + constant))
    torch.testing.assert_close(found.marginal, torch.full_like(found.marginal, own + constant))
    if backend != "reference":
        # Autograd of the plain expression has 0 * inf here; the analytic backward has not.
        assert grads[0].abs().max() == 0 and grads[1].abs().max() == 0
        torch.testing.assert_close(grads[2], torch.full_like(grads[2], -1.0))


@on_every_backend
@both_dtypes
def test_samples_far_from_every_posterior(backend, dtype):
    """exp of every density underflows; log q(z) is that of the nearest posterior all the same."""
    z, mean, logvar = batch(33, 4, 50, dtype=dtype)
    z = 300.0 + z
    with sf.use_backend(backend):
        found = density(z, mean, logvar, weights="naive", groups=[[0, 1], [2, 3]])
    truth = sf.reference.aggregate_log_density(
        z.double(), mean.double(), logvar.double(), weights="naive", groups=[[0, 1], [2, 3]]
    )
    for value, exact in zip(found, truth):
        assert exact.max() < -1000
        torch.testing.assert_close(value.double(), exact, rtol=3e-6, atol=0)


@on_every_backend
@pytest.mark.parametrize("bad", (math.inf, -math.inf, math.nan))
def test_values_that_are_not_finite_show(backend, bad):
    z, mean, logvar = batch(40, 3, dtype=torch.float32)
    z[17, 1] = bad
    with sf.use_backend(backend):
        found = density(z, mean, logvar, dataset_size=100)
        expected = -math.inf if math.isinf(bad) else math.nan
        for value in (found.joint[17], found.marginal[17, 1]):
            assert float(value) == expected or (math.isnan(expected) and math.isnan(value))
        rest = torch.ones(40, dtype=torch.bool)
        rest[17] = False
        assert found.joint[rest.to(DEVICE)].isfinite().all()
        mean[5, 2] = math.nan
        found = density(z[:17], mean, logvar, weights="naive")
    assert found.joint.isnan().all() and found.marginal[:, 2].isnan().all() and found.marginal[:, :2].isfinite().all()


def test_half_types_are_computed_in_float32():
    z, mean, logvar = batch(9, 3, dtype=torch.bfloat16)
    found = density(z, mean, logvar, dataset_size=20)
    expected = density(z.float(), mean.float(), logvar.float(), dataset_size=20)
    for a, b in zip(found, expected):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    leaf = z.requires_grad_()
    assert torch.autograd.grad(density(leaf, mean, logvar, dataset_size=20).joint.sum(), leaf)[0].dtype == z.dtype


def test_nothing_of_the_size_of_the_pairs_is_kept():
    """2000 samples against 2000 posteriors in 8 dims are 32 million pairs; the graph keeps inputs and outputs alone."""
    if _native.missing("cpu") is not None:
        pytest.skip(f"needs the CPU half: {_native.missing('cpu')}")
    leaves = [t.cpu().requires_grad_() for t in batch(2000, 8, dtype=torch.float32)]
    kept = []

    def pack(t):
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), sf.use_backend("cpp"):
        density(*leaves, dataset_size=2000)
    assert sum(kept) <= 5 * 2000 * 8


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the process that the test starts")
def test_golden_numbers_on_triton_in_the_interpreter():
    """TRITON_INTERPRET is read when a kernel is decorated, so the Triton cases run in a process of their own."""
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the kernels themselves are tested above")
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", __file__, "-k", "triton and golden"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:]
    assert "16 passed" in result.stdout


Z = torch.zeros(4, 3)


@pytest.mark.parametrize(
    "error,message,arguments,options",
    [
        (TypeError, "z must be a torch.Tensor, got list", ([1.0], Z, Z), {}),
        (TypeError, "mean must be float32.*got torch.int64", (Z, Z.long(), Z), {}),
        (ValueError, r"z must be \(S, D\) with D >= 1, got shape \(4,\)", (Z[:, 0], Z, Z), {}),
        (ValueError, r"z must be \(S, D\) with D >= 1, got shape \(4, 0\)", (Z[:, :0], Z[:, :0], Z[:, :0]), {}),
        (ValueError, r"mean must be \(M, D\) with M >= 1 and D = 3, got shape \(4, 2\)", (Z, Z[:, :2], Z[:, :2]), {}),
        (ValueError, r"mean must be \(M, D\) with M >= 1.*\(0, 3\)", (Z, Z[:0], Z[:0]), {"weights": "naive"}),
        (ValueError, r"logvar must have mean's shape \(4, 3\), got shape \(3, 3\)", (Z, Z, Z[:3]), {}),
        (ValueError, "weights must be one of.*got 'exact'", (Z, Z, Z), {"weights": "exact"}),
        (TypeError, "dataset_size must be an int under weights='mss', got NoneType", (Z, Z, Z), {}),
        (TypeError, "dataset_size must be an int.*got bool", (Z, Z, Z), {"dataset_size": True}),
        (ValueError, "at least the batch of 4 posteriors, got 3", (Z, Z, Z), {"dataset_size": 3}),
        (ValueError, "needs one posterior per sample.*use weights='naive'", (Z[:2], Z, Z), {"dataset_size": 9}),
        (ValueError, "needs one posterior per sample", (Z[:2], Z, Z), {"weights": "mws", "dataset_size": 9}),
        (
            ValueError,
            r"_diagonal_offset must be in \[0, 2\].*got 3",
            (Z[:2], Z, Z),
            {"dataset_size": 9, "_diagonal_offset": 3},
        ),
        (ValueError, "not defined for a batch of 1 unless", (Z[:1], Z[:1], Z[:1]), {"dataset_size": 9}),
        (ValueError, "groups must not overlap, dim 1 is in groups 0 and 1", (Z, Z, Z), {"groups": [[0, 1], [1, 2]]}),
        (ValueError, r"groups must name every dim of z, dims \[0, 2\] are in none", (Z, Z, Z), {"groups": [[1]]}),
        (ValueError, r"groups\[1\] must name at least one dim", (Z, Z, Z), {"groups": [[0, 1, 2], []]}),
        (ValueError, r"groups\[0\] must hold dims in \[0, 3\), got 3", (Z, Z, Z), {"groups": [[3, 0, 1]]}),
        (ValueError, r"groups\[0\] must hold dims in \[0, 3\), got -1", (Z, Z, Z), {"groups": [[-1, 0, 1]]}),
        (TypeError, r"groups\[0\] must hold ints, got float", (Z, Z, Z), {"groups": [[1.0, 0, 2]]}),
    ],
)
def test_bad_input_is_named(error, message, arguments, options):
    if "groups" in options:
        options = {"weights": "naive", **options}
    with pytest.raises(error, match=message):
        density(*arguments, **options)


def test_labels_of_groups():
    assert _group_labels("density", 5, [[3, 0], [1, 2, 4]]) == (0, 1, 1, 0, 1)
    # One posterior is the whole mixture, and no sample asks nothing.
    one = density(Z[:1], Z[:1], Z[:1], dataset_size=1)
    torch.testing.assert_close(one.joint, torch.full((1,), -1.5 * math.log(2 * math.pi)))
    none = density(Z[:0], Z, Z, weights="naive", groups=[[0, 1, 2]])
    assert [tuple(t.shape) for t in none] == [(0,), (0, 3), (0, 1)]
