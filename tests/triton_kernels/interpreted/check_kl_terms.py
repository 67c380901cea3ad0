"""kl_terms' launchers against the reference: groups, offsets, several parts of the sums, absent gradients, strides."""

import itertools

import pytest
import torch
from common import assert_close, gradients, random
from strucfast.triton_kernels import kl_terms_backward, kl_terms_forward

from strucfast import reference
from strucfast.reference.aggregate import WEIGHTS

NAMES = ("index_code_mi", "total_correlation", "dimwise_kl", "between_groups", "within_groups")


def problem(samples, posteriors, dims, dtype=torch.float32):
    z, mean = random((samples, dims), dtype, 1), random((posteriors, dims), dtype, 2)
    return z, mean, 0.5 * random((posteriors, dims), dtype, 3)


def labels_of(groups):
    return [g for _, g in sorted((dim, g) for g, dims in enumerate(groups) for dim in dims)]


def run(tensors, statics, grads, mask=7):
    outputs = kl_terms_forward(*tensors, *statics)
    return outputs[:5], kl_terms_backward(*grads, *tensors, *outputs[5:], *statics, mask)


CASES = [
    (41, 41, 3, "mss", 0, [[0, 2], [1]], True),
    (33, 75, 3, "mss", 40, [], True),
    (70, 70, 9, "naive", 0, [], False),
    (5, 150, 3, "mws", 3, [[0], [1], [2]], True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("samples", "posteriors", "dims", "weights", "offset", "groups", "standard_normal"), CASES)
def test_values_and_gradients(samples, posteriors, dims, weights, offset, groups, standard_normal, dtype):
    tensors = problem(samples, posteriors, dims, dtype)

    def function(*t):
        return tuple(
            reference.kl_terms(
                *t, weights=weights, dataset_size=1000, groups=groups or None, standard_normal=standard_normal,
                _diagonal_offset=offset,
            )
        )  # fmt: skip

    grads = [torch.tensor(value, dtype=dtype) for value in (1.0, 6.0, -2.0, 3.0, 0.5)]
    truth, truth_grads = gradients(function, tensors, grads, torch.float64)
    eager, eager_grads = gradients(function, tensors, grads, dtype)
    statics = (WEIGHTS.index(weights), 1000, offset, labels_of(groups), standard_normal)
    values, found = run(tensors, statics, grads)
    for name, value, t, e in zip(NAMES, values, truth, eager):
        # A difference of log-densities, which are some nats a dim.
        assert_close(value, t, e, floor=2.0 * dims, label=name)
    for name, value, t, e in zip(("dz", "dmean", "dlogvar"), found, truth_grads, eager_grads):
        assert_close(value, t, e, slack=64.0, label=name)


def test_a_program_adds_up_several_tiles():
    tensors, statics = problem(300, 300, 5), (1, 500, 0, [0, 1, 0, 1, 0], True)
    expected = kl_terms_forward(*tensors, *statics)
    for parts in (1, 2):
        for name, a, b in zip(NAMES, kl_terms_forward(*tensors, *statics, parts=parts), expected):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("absent", [a for n in (0, 1, 4, 5) for a in itertools.combinations(range(5), n)])
@pytest.mark.parametrize("groups", [[], [1, 0, 0, 1]], ids=["dims", "groups"])
def test_absent_gradients_are_zeros(groups, absent):
    tensors, statics = problem(9, 9, 4), (0, 50, 0, groups, True)
    grads = [torch.tensor(value) for value in (1.0, 6.0, -2.0, 3.0, 0.5)]
    some = [None if i in absent else g for i, g in enumerate(grads)]
    zeros = [torch.zeros(()) if i in absent else g for i, g in enumerate(grads)]
    for a, b in zip(run(tensors, statics, some)[1], run(tensors, statics, zeros)[1]):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", (0, 1, 2, 4, 6))
def test_masks_and_repeats_bitwise(mask):
    tensors, statics = problem(10, 10, 3), (0, 500, 0, (), True)
    grads = [torch.tensor(value) for value in (1.0, 6.0, -2.0)] + [None, None]
    terms, whole = run(tensors, statics, grads)
    again, part = run(tensors, statics, grads, mask)
    assert all(torch.equal(a, b) for a, b in zip(terms, again))
    for bit in range(3):
        assert torch.equal(part[bit], whole[bit]) if mask >> bit & 1 else part[bit].shape == (0,)


def test_other_strides():
    z, mean, logvar = problem(6, 6, 4)
    halves = torch.cat([mean, logvar], dim=1).chunk(2, dim=1)
    columns = [t.t().contiguous().t() for t in (z, mean, logvar)]
    grads = [torch.tensor(1.0)] * 5
    expected, want = run((z, mean, logvar), (0, 60, 0, (), True), grads)
    for tensors in ((z, *halves), columns):
        found, got = run(tensors, (0, 60, 0, (), True), grads)
        assert all(torch.equal(a, b) for a, b in zip((*found, *got), (*expected, *want)))
