import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from strucfast import _native
from strucfast.metrics import _histogram

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]


def cases(kind):
    return [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == kind]


@pytest.fixture(params=["host", "numpy"])
def backend(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(_histogram, "host", lambda: None)
    elif _native.missing("host") is not None:
        pytest.skip(f"needs the host module (make build): {_native.missing('host')}")
    return request.param


def exact_labels(column, edges):
    return np.array([sum(e <= float(x) for e in edges[:-1]) - 1 for x in column])


@pytest.mark.parametrize("case", cases("binning"))
def test_golden_binning(backend, case):
    x = np.array(case["inputs"]["x"])[:, None]
    edges = _histogram.bin_edges(x, case["inputs"]["num_bins"])
    np.testing.assert_array_equal(edges[0], case["expected"]["edges"])
    np.testing.assert_array_equal(_histogram.bin_labels(x, edges)[:, 0], case["expected"]["labels"])


@pytest.mark.parametrize("case", cases("mi"))
def test_golden_mutual_information(backend, case):
    a, b = np.array(case["inputs"]["a"]), np.array(case["inputs"]["b"])
    # One bin for each of the integers a.
    counts = _histogram.joint_counts(a[:, None].astype(float), b[:, None], int(np.ptp(a)) + 1)
    expected = case["expected"]
    assert counts.mutual_information()[0, 0] == pytest.approx(expected["mi"], rel=1e-12, abs=1e-12)
    assert counts.code_entropy()[0] == pytest.approx(expected["h_a"], rel=1e-12)
    assert counts.factor_entropy()[0] == pytest.approx(expected["h_b"], rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [1, 2, 20, 64, 65, 300])
def test_labels_and_counts_are_exact(backend, dtype, bins):
    rng = np.random.default_rng(bins)
    # Long enough for several blocks, with a last block that is not full.
    n = 9001
    codes = np.stack(
        [
            rng.normal(size=n),
            rng.integers(0, 11, n) * 0.1 - 0.3,
            np.full(n, 0.7),
            1e6 + rng.normal(size=n),
            rng.integers(0, bins + 1, n) / bins,
        ],
        axis=1,
    ).astype(dtype)
    factors = np.stack([rng.integers(-2, 3, n), rng.integers(0, 9, n), np.full(n, 4), rng.integers(0, 300, n)], axis=1)
    edges = _histogram.bin_edges(codes, bins)
    for d, column in enumerate(codes.T):
        low, high = float(column.min()), float(column.max())
        if low == high:
            low, high = low - 0.5, high + 0.5
        np.testing.assert_array_equal(edges[d], np.linspace(low, high, bins + 1))
    labels = _histogram.bin_labels(codes, edges)
    some = rng.choice(n, 300, replace=False)
    for d in range(codes.shape[1]):
        np.testing.assert_array_equal(labels[some, d], exact_labels(codes[some, d], edges[d]))
    joint = _histogram.joint_counts(codes, factors, bins)
    np.testing.assert_array_equal(joint.starts, [0, 5, 14, 15, 315])
    for k, factor in enumerate(factors.T):
        for d in range(codes.shape[1]):
            expected = np.zeros((bins, np.ptp(factor) + 1), int)
            np.add.at(expected, (labels[:, d], factor - factor.min()), 1)
            np.testing.assert_array_equal(joint.counts[d, :, joint.starts[k] : joint.starts[k + 1]], expected)


def test_values_on_edges(backend):
    # Exactly the edges, and their neighbours: what an estimate without correction gets wrong.
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, width = rng.normal() * 10.0 ** rng.integers(-3, 4), 10.0 ** rng.integers(-6, 6)
        edges = np.linspace(low, low + width, 21)
        x = np.concatenate([edges, np.nextafter(edges[1:], -np.inf), np.nextafter(edges[:-1], np.inf)])
        x = rng.permutation(x)[:, None]
        found = _histogram.bin_edges(x, 20)
        np.testing.assert_array_equal(_histogram.bin_labels(x, found)[:, 0], exact_labels(x[:, 0], found[0]))


def test_extreme_ranges(backend):
    # Neighbouring floats: edges coincide. Subnormal range: the step underflows.
    for values in ([1.0, np.nextafter(1.0, 2)], [0.0, 5e-324], [-1e308, 5e307], [1e300, 1e300]):
        x = np.array(values)[:, None]
        edges = _histogram.bin_edges(x, 20)
        np.testing.assert_array_equal(_histogram.bin_labels(x, edges)[:, 0], exact_labels(x[:, 0], edges[0]))
    with pytest.raises(ValueError, match="the range of column 1 overflows"):
        _histogram.bin_edges(np.array([[0.0, -1e308], [1.0, 1e308]]), 20)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_column_range(backend, rows, dtype):
    values = (np.random.default_rng(rows).normal(size=(rows, 7)) * 1000).astype(dtype)
    low, high = _histogram.column_range(values, "x")
    np.testing.assert_array_equal(low, values.min(axis=0))
    np.testing.assert_array_equal(high, values.max(axis=0))
    assert low.dtype == dtype


@pytest.mark.parametrize("row", [0, 3, 4998, 4999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(backend, row, value):
    values = np.zeros((5000, 3), np.float32)
    values[row, 2] = value
    with pytest.raises(ValueError, match=rf"codes: expected finite values, got {value} in row {row}, column 2"):
        _histogram.column_range(values, "codes")


def test_sparse_and_huge_factor_values(backend):
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 3, 500)
    codes = rng.normal(size=(500, 2)) + ranks[:, None]
    plain = _histogram.joint_counts(codes, np.stack([ranks, ranks], 1), 20)
    far = np.array([-(2**63), 0, 2**63 - 1])[ranks]
    joint = _histogram.joint_counts(codes, np.stack([ranks, far], 1), 20)
    np.testing.assert_array_equal(joint.counts, plain.counts)
    assert far.min() == -(2**63), "the caller's factors stay as they are"


def test_against_scikit_learn(backend):
    rng = np.random.default_rng(2)
    factors = rng.integers(0, [4, 7, 2], (3000, 3))
    codes = factors @ rng.normal(size=(3, 5)) + rng.normal(size=(3000, 5))
    joint = _histogram.joint_counts(codes, factors, 20)
    labels = _histogram.bin_labels(codes, _histogram.bin_edges(codes, 20))
    expected = [[mutual_info_score(label, factor) for factor in factors.T] for label in labels.T]
    np.testing.assert_allclose(joint.mutual_information(), expected, rtol=1e-10, atol=1e-12)


def test_threads_do_not_change_counts():
    if _native.missing("host") is not None:
        pytest.skip(f"needs the host module (make build): {_native.missing('host')}")
    host, rng = _native.host(), np.random.default_rng(3)
    # Enough for eight threads; a range takes 2^20 values a thread.
    codes, factors = rng.normal(size=(200_000, 3)), rng.integers(0, 10, (200_000, 2))
    edges, low, sizes = _histogram.bin_edges(codes, 20), np.zeros(2, np.int64), np.full(2, 10)
    one, *more = (host.joint_histogram(codes, edges, factors, low, sizes, threads) for threads in (1, 2, 3, 8))
    for other in more:
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(*(host.bin_labels(codes, edges, threads) for threads in (1, 8)))
    wide = rng.normal(size=(800_000, 4)).astype(np.float32)
    for threads in (1, 3):
        low, high, finite = host.column_range(wide, threads)
        np.testing.assert_array_equal((low, high), (wide.min(axis=0), wide.max(axis=0)))
        assert finite
    # The last thread's rows count too.
    wide[-1, 2] = np.nan
    assert not host.column_range(wide, 3)[2]


def test_native_module_checks_its_arguments():
    if _native.missing("host") is not None:
        pytest.skip(f"needs the host module (make build): {_native.missing('host')}")
    host = _native.host()
    codes, factors = np.array([[0.0], [1.0]]), np.array([[0], [3]])
    edges, low = np.array([[0.0, 0.5, 1.0]]), np.array([0])
    with pytest.raises(ValueError, match="a value lies outside"):
        host.joint_histogram(codes, edges, factors, low, np.array([3]), 1)
    with pytest.raises(ValueError, match=r"edges: expected shape \(1, \*\)"):
        host.bin_labels(codes, np.zeros((2, 3)), 1)
    with pytest.raises(TypeError):
        host.bin_labels(codes.astype(np.float16), edges, 1)
    # Values that no caller may pass still stay inside the table.
    strange = np.array([[np.nan], [1e300], [-1e300], [5.0]])
    labels = host.bin_labels(strange, edges, 1)
    assert labels.min() >= 0 and labels.max() <= 1
    many = host.bin_labels(strange, np.linspace(0, 1, 101)[None], 1)
    assert many.min() >= 0 and many.max() <= 99
