"""aggregate's launchers against tests/data/tc.json and the reference: tiles, groups, offsets, absent gradients."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from common import assert_close, gradients, random
from strucfast.triton_kernels import aggregate_backward, aggregate_forward
from strucfast.triton_kernels.aggregate import AggregateConfig

from strucfast import reference
from strucfast.reference.aggregate import WEIGHTS

CASES = json.loads((Path(__file__).parents[2] / "data" / "tc.json").read_text())["cases"]
DTYPES = [torch.float32, torch.float64]
# None is the heuristic; the others cut both sides into several ragged parts.
CONFIGS = [None, AggregateConfig(32, 16, 1, 3), AggregateConfig(64, 32, 2, 2)]
SMALL = AggregateConfig(32, 8, 1, 1)
LOG_TERMS = ("joint", "marginal", "grouped")


def labels_of(groups):
    return [g for _, g in sorted((dim, g) for g, dims in enumerate(groups) for dim in dims)]


def run(tensors, statics, grads, mask=7, config=None):
    outputs = aggregate_forward(*tensors, *statics, config=config)
    return outputs, aggregate_backward(*grads, *tensors, *outputs, *statics, mask, config=config)


def close(found, expected, kind, dtype):
    """The tolerances that the golden file states."""
    expected = torch.tensor(expected, dtype=torch.float64).reshape(found.shape)
    if dtype == torch.float64:
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    elif kind == "value":
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-5)
    else:
        assert float((found - expected).abs().max()) <= 5e-6 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "square"], ids=lambda c: c["name"])
def test_golden_square(case, dtype):
    inputs, expected = case["inputs"], case["expected"]
    z, mean, logvar, *grads = (
        torch.tensor(inputs[k], dtype=dtype) for k in ("z", "mu", "logvar", "gA", "gB", "gG")
    )
    statics = (WEIGHTS.index(inputs["weights"]), inputs["N"], 0, labels_of(inputs["groups"]))
    outputs, found = run((z, mean, logvar), statics, grads, config=SMALL)
    for value, name in zip(outputs, ("log_qz", "log_qzd", "log_qzg")):
        close(value, expected[name], "value", dtype)
    # The file's gradient has the term of log q(z|x) in it, which is no output of the op.
    leaves = [t.double().requires_grad_() for t in (z, mean, logvar)]
    own = -0.5 * ((leaves[0] - leaves[1]) ** 2 * torch.exp(-leaves[2]) + leaves[2])
    rest = torch.autograd.grad((own.sum(dim=1) * torch.tensor(inputs["gC"], dtype=torch.float64)).sum(), leaves)
    for value, more, name in zip(found, rest, ("z", "mu", "logvar")):
        close(value.double() + more, expected[f"grad_terms_{name}"], "gradient", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "rect"], ids=lambda c: c["name"])
def test_golden_foreign_samples(case, dtype):
    tensors = [torch.tensor(case["inputs"][k], dtype=dtype) for k in ("z", "mu", "logvar")]
    outputs = aggregate_forward(*tensors, WEIGHTS.index("naive"), 0, 0, ())
    close(outputs[0], case["expected"]["log_qz"], "value", dtype)
    # kl_pq = mean(log p(z) - log q(z)): the posteriors' gradients are the density's alone.
    grads = (torch.full_like(outputs[0], -1.0 / len(outputs[0])), None, None)
    _, dmean, dlogvar = aggregate_backward(*grads, *tensors, *outputs, WEIGHTS.index("naive"), 0, 0, (), 6)
    close(dmean, case["expected"]["grad_mu"], "gradient", dtype)
    close(dlogvar, case["expected"]["grad_logvar"], "gradient", dtype)


def problem(samples, posteriors, dims, dtype=torch.float32):
    z, mean = random((samples, dims), dtype, 1), random((posteriors, dims), dtype, 2)
    return z, mean, 0.5 * random((posteriors, dims), dtype, 3)


def upstream(outputs, dtype=torch.float32):
    return [random(tuple(out.shape), dtype, 4 + i) for i, out in enumerate(outputs)]


@pytest.mark.parametrize(
    ("samples", "posteriors", "weights", "offset", "groups", "config"),
    [
        (41, 41, "mss", 0, [[0, 2], [1]], CONFIGS[0]),
        (41, 41, "mss", 0, [[0, 2], [1]], CONFIGS[1]),
        (33, 75, "mss", 40, [], CONFIGS[1]),
        (70, 131, "mss", 61, [[2], [1, 0]], CONFIGS[2]),
        (130, 40, "naive", 0, [], CONFIGS[0]),
        (5, 150, "mws", 3, [[0], [1], [2]], CONFIGS[1]),
    ],
)
def test_tiles_parts_and_offsets(samples, posteriors, weights, offset, groups, config):
    tensors = problem(samples, posteriors, 3)

    def function(*t):
        return tuple(
            reference.aggregate_log_density(
                *t, weights=weights, dataset_size=1000, groups=groups or None, _diagonal_offset=offset
            )
        )

    statics = (WEIGHTS.index(weights), 1000, offset, labels_of(groups))
    shapes = [(samples,), (samples, 3), (samples, len(groups))]
    grads = [random(shape, torch.float32, 4 + i) for i, shape in enumerate(shapes)]
    truth, truth_grads = gradients(function, tensors, grads, torch.float64)
    eager, eager_grads = gradients(function, tensors, grads, torch.float32)
    outputs, found = run(tensors, statics, grads, config=config)
    for name, value, t, e in zip(LOG_TERMS, outputs, truth, eager):
        assert_close(value, t, e, label=name)
    for name, value, t, e in zip(("dz", "dmean", "dlogvar"), found, truth_grads, eager_grads):
        assert_close(value, t, e, slack=64.0, label=name)


@pytest.mark.parametrize("absent", [a for n in range(4) for a in itertools.combinations(range(3), n)])
def test_absent_gradients_are_zeros(absent):
    tensors, statics = problem(9, 9, 4), (0, 50, 0, [1, 0, 0, 1])
    outputs = aggregate_forward(*tensors, *statics, config=SMALL)
    grads = upstream(outputs)
    some = [None if i in absent else g for i, g in enumerate(grads)]
    zeros = [torch.zeros_like(g) if i in absent else g for i, g in enumerate(grads)]
    found = aggregate_backward(*some, *tensors, *outputs, *statics, 7, config=SMALL)
    for a, b in zip(found, aggregate_backward(*zeros, *tensors, *outputs, *statics, 7, config=SMALL)):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", (0, 1, 2, 4, 6))
def test_masks_and_repeats_bitwise(mask):
    tensors, statics = problem(10, 10, 3), (0, 500, 0, ())
    outputs = aggregate_forward(*tensors, *statics)
    assert all(torch.equal(a, b) for a, b in zip(outputs, aggregate_forward(*tensors, *statics)))
    grads = [*upstream(outputs)[:2], None]
    whole = aggregate_backward(*grads, *tensors, *outputs, *statics, 7)
    part = aggregate_backward(*grads, *tensors, *outputs, *statics, mask)
    for bit in range(3):
        assert torch.equal(part[bit], whole[bit]) if mask >> bit & 1 else part[bit].shape == (0,)


def test_other_strides():
    dense = problem(6, 6, 4)
    strided = [t.t().contiguous().t() for t in dense]
    wide = [torch.cat([t, t], dim=1)[:, ::2] for t in dense]
    for tensors in (strided, wide):
        expected = aggregate_forward(*(t.contiguous() for t in tensors), 0, 60, 0, ())
        grads = [random((12,), torch.float32, 5)[::2], random((4, 6), torch.float32, 6).t(), None]
        found, got = run(tensors, (0, 60, 0, ()), grads)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        plain = [g if g is None else g.contiguous() for g in grads]
        want = aggregate_backward(*plain, *(t.contiguous() for t in tensors), *expected, 0, 60, 0, (), 7)
        assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_density_that_underflows_everywhere():
    """Exponents of -1e30: the largest is taken out first, so the logarithm is right and nothing is NaN."""
    z, mean, logvar = torch.tensor([[1e3, 0.0]]), torch.zeros(3, 2), torch.full((3, 2), -60.0)
    outputs, found = run((z, mean, logvar), (2, 0, 0, ()), [torch.ones(1), torch.ones(1, 2), None])
    exact = reference.aggregate_log_density(z.double(), mean.double(), logvar.double(), weights="naive")
    torch.testing.assert_close(outputs[0].double(), exact.joint, rtol=1e-6, atol=0)
    assert all(bool(torch.isfinite(t).all()) for t in (*outputs, *found))


def test_infinite_samples_have_density_zero():
    """Of no posterior, and of none of the padding: log 0, not NaN."""
    z, mean, logvar = problem(3, 3, 2)
    z[1, 0] = float("inf")
    joint, marginal, _ = aggregate_forward(z, mean, logvar, 2, 0, 0, (), config=SMALL)
    assert torch.isneginf(joint).tolist() == [False, True, False]
    assert torch.isneginf(marginal).tolist() == [[False, False], [True, False], [False, False]]
    assert bool(torch.isfinite(joint[[0, 2]]).all()) and bool(torch.isfinite(marginal[:, 1]).all())


def test_errors():
    z, mean, logvar = problem(3, 3, 2)
    with pytest.raises(TypeError, match="mean must be float32 or float64 like z, got torch.float64 and torch.float32"):
        aggregate_forward(z, mean.double(), logvar, 2, 0, 0, ())
    with pytest.raises(TypeError, match="z must be float32 or float64"):
        aggregate_forward(z.half(), mean.half(), logvar.half(), 2, 0, 0, ())
