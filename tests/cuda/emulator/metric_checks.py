"""The metrics' CUDA kernels against the host's, in a process where the emulator runs them on CPU tensors."""

import functools

import emulated_backend
import numpy as np
import pytest
import torch

import strucfast as sf
from strucfast import _native
from strucfast.metrics import _boosting, _boosting_device, _device, _histogram, _predictors

needs_host = pytest.mark.skipif(_native.missing("host") is not None, reason="needs the host module: make build")


@pytest.fixture(autouse=True)
def every_tensor_is_on_a_gpu(monkeypatch):
    monkeypatch.setattr(_device, "takes", lambda values: isinstance(values, torch.Tensor))


def problem(rows, dtype=np.float32, seed=0):
    """Codes of every awkward kind, and factors with negative, constant, sparse and huge values."""
    rng = np.random.default_rng(seed)
    codes = np.stack(
        [
            rng.normal(size=rows),
            rng.integers(0, 11, rows) * 0.1 - 0.3,
            np.full(rows, 0.7),
            1e6 + rng.normal(size=rows),
            rng.integers(0, 21, rows) / 20,
        ],
        axis=1,
    ).astype(dtype)
    far = np.array([-(2**63), 0, 2**63 - 1])[rng.integers(0, 3, rows)]
    factors = np.stack([rng.integers(-2, 3, rows), rng.integers(0, 9, rows), np.full(rows, 4), far], axis=1)
    return codes, factors


def assert_same_counts(codes, factors, bins):
    expected = _histogram.joint_counts(codes, factors, bins)
    found = _histogram.joint_counts(torch.from_numpy(codes), torch.from_numpy(factors), bins)
    np.testing.assert_array_equal(found.starts, expected.starts)
    np.testing.assert_array_equal(found.counts, expected.counts)
    return found


@pytest.fixture
def shared_limit():
    yield emulated_backend.controls.emulator_set_shared_limit
    emulated_backend.controls.emulator_set_shared_limit(227 * 1024)


@pytest.mark.parametrize("dtype", (np.float32, np.float64), ids=str)
@pytest.mark.parametrize("bins", (1, 2, 20, 65, 300))
def test_joint_counts(bins, dtype):
    for rows in (1, 7, 2003):
        assert_same_counts(*problem(rows, dtype), bins)


@pytest.mark.parametrize("kilobytes", (227, 37, 34, 33))
def test_joint_counts_in_less_shared_memory(kilobytes, shared_limit):
    """All codes in one block's tables, a few, one, and none: then every count is made in global memory."""
    codes, factors = problem(3001)
    shared_limit(kilobytes * 1024)
    start = emulated_backend.controls.emulator_launches()
    assert_same_counts(codes, factors, 20)
    # The range of codes and of factors is two launches each, the counts are one.
    assert emulated_backend.controls.emulator_launches() - start == 5


def test_more_codes_than_threads_and_more_factors_than_wait_in_shared_memory():
    rng = np.random.default_rng(1)
    assert_same_counts(rng.normal(size=(11, 1030)), rng.integers(0, 3, (11, 2)), 3)
    assert_same_counts(rng.normal(size=(11, 2)).astype(np.float32), rng.integers(0, 2, (11, 4099)), 2)
    assert_same_counts(rng.normal(size=(5000, 1)).astype(np.float32), rng.integers(0, 2, (5000, 5)), 4)


@pytest.mark.parametrize("dtype", (np.float32, np.float64), ids=str)
def test_codes_on_edges_and_beside_them(dtype):
    rng = np.random.default_rng(2)
    for _ in range(25):
        low, width = rng.normal() * 10.0 ** rng.integers(-3, 4), 10.0 ** rng.integers(-6, 6)
        edges = np.linspace(low, low + width, 21).astype(dtype)
        down, up = dtype(-np.inf), dtype(np.inf)
        values = np.concatenate([edges, np.nextafter(edges[1:], down), np.nextafter(edges[:-1], up)])
        codes = rng.permutation(values)[:, None]
        # Every row a class of its own: the counts are the labels.
        assert_same_counts(codes, np.arange(len(codes))[:, None], 20)


def test_extreme_ranges():
    for values in ([1.0, np.nextafter(1.0, 2)], [0.0, 5e-324], [-1e308, 5e307], [1e300, 1e300]):
        assert_same_counts(np.array(values)[:, None], np.array([[0], [1]]), 20)
    top = np.finfo(np.float32).max
    for values in ([0.0, 1e-45], [-top, top], [top, top], [1.0, np.nextafter(np.float32(1), np.float32(2))]):
        assert_same_counts(np.array(values, np.float32)[:, None], np.array([[0], [1]]), 20)
    with pytest.raises(ValueError, match="the range of column 1 overflows"):
        _histogram.bin_edges(torch.tensor([[0.0, -1e308], [1.0, 1e308]], dtype=torch.float64), 20)


@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.int64), ids=str)
@pytest.mark.parametrize("shape", ((1, 1), (5000, 7), (40, 300), (3000, 1)), ids=str)
def test_column_range(shape, dtype):
    values = (np.random.default_rng(3).normal(size=shape) * 1000).astype(dtype)
    low, high = _histogram.column_range(torch.from_numpy(values), "x")
    np.testing.assert_array_equal(low, values.min(axis=0))
    np.testing.assert_array_equal(high, values.max(axis=0))
    assert low.dtype == dtype


@pytest.mark.parametrize("row", (0, 3, 4998, 4999))
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_values_that_are_not_finite_are_found(row, value):
    values = torch.zeros(5000, 3)
    values[row, 2] = value
    with pytest.raises(ValueError, match=rf"codes: expected finite values, got {value} in row {row}, column 2"):
        sf.metrics.mig(values, np.arange(5000)[:, None] % 3)


def test_factors_outside_their_range_are_not_counted():
    codes, edges = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([[0.0, 0.5, 1.0]])
    factors = torch.tensor([[5], [7], [-(2**63)]])
    counts = torch.ops.strucfast._joint_histogram_cuda(
        codes, edges, factors, torch.tensor([5]), torch.tensor([0, 2]), 2
    )
    assert counts.tolist() == [[[1, 0], [0, 0]]]


def test_mig_is_the_hosts():
    codes, factors = problem(2000)
    expected = sf.metrics.mig(codes, factors)
    for device_factors in (factors, torch.from_numpy(factors)):
        found = sf.metrics.mig(torch.from_numpy(codes), device_factors)
        assert found.to_dict() == expected.to_dict()
    half = torch.from_numpy(codes).bfloat16()
    assert sf.metrics.mig(half, factors).to_dict() == sf.metrics.mig(half.float().numpy(), factors).to_dict()
    whole = torch.from_numpy(factors[:, :3])
    assert sf.metrics.mig(whole, whole.float()).to_dict() == sf.metrics.mig(whole.numpy(), whole.numpy()).to_dict()


def test_bad_input_says_the_same():
    codes = torch.randn(4, 2)
    for bad, error, match in (
        (np.zeros((3, 1), int), ValueError, "factors: expected 4 rows, as many as codes, got 3"),
        (np.zeros((4, 0), int), ValueError, r"factors: expected a non-empty array \(N, K\), got shape \(4, 0\)"),
        (np.zeros(4, int), ValueError, r"factors: expected a non-empty array \(N, K\), got shape \(4,\)"),
        ([[0], [1], [0.5], [1]], ValueError, "factors: expected integers, got 0.5 in row 2, column 0"),
        ([[0], [1], [np.nan], [1]], ValueError, "factors: expected integers, got nan in row 2, column 0"),
        ([[0], [1, 2], [0], [1]], ValueError, "factors: expected a rectangular array"),
        ([["a"], ["b"], ["a"], ["b"]], TypeError, "factors: expected real numbers"),
        (torch.ones(4, 1, dtype=torch.complex64), TypeError, "factors: expected real numbers"),
        (np.zeros((4, 1), int), ValueError, "factors: expected a factor with at least two values"),
    ):
        with pytest.raises(error, match=match):
            sf.metrics.mig(codes, bad)
    for bad, error in ((torch.zeros(0, 2), ValueError), (torch.zeros(4), ValueError), (codes + 1j, TypeError)):
        with pytest.raises(error, match="codes: expected"):
            sf.metrics.mig(bad, np.arange(4)[:, None])


def test_the_ops_check_what_belongs_together():
    codes, edges = torch.zeros(4, 2), torch.zeros(2, 3)
    factors, low, starts = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(1).long(), torch.tensor([0, 3])
    call = torch.ops.strucfast._joint_histogram_cuda
    assert call(codes, edges, factors, low, starts, 3).shape == (2, 2, 3)
    for bad in (
        (codes, edges[:1], factors, low, starts, 3),
        (codes, edges.double(), factors, low, starts, 3),
        (codes, edges, factors.int(), low, starts, 3),
        (codes, edges, factors[:3], low, starts, 3),
        (codes, edges, factors, low, starts[:1], 3),
        (codes.half(), edges.half(), factors, low, starts, 3),
        (codes, edges, factors, low, starts, 2**31),
    ):
        with pytest.raises(RuntimeError, match="_joint_histogram_cuda: "):
            call(*bad)
    with pytest.raises(RuntimeError, match="_column_range_cuda: values must be"):
        torch.ops.strucfast._column_range_cuda(codes.half())


def boosting_problem(rows=250, classes=(5, 2, 3), features=4, seed=0):
    """Codes that mix the factors with noise, distinct with probability one, and the factors."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(0, c, rows) for c in classes], axis=1)
    mix = rng.normal(size=(len(classes), features))
    return (factors @ mix + 0.4 * rng.normal(size=(rows, features))).astype(np.float32), factors


def both_boosted(codes, factors, unseen, **options):
    expected = _boosting.boost(codes, factors, unseen, **options)
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (codes, factors, unseen)]
    found = _boosting_device.boost(*tensors, **options)
    return found, expected


def assert_same_trees(found, expected):
    """The sums run in another order: a few roundings, of which a tenth of the bound is used."""
    np.testing.assert_allclose(found.importance, expected.importance, atol=1e-5)
    for ours, theirs in zip(found.train, expected.train):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=5e-6)
    # Splits that part the fitted rows alike are told apart by rounding alone, and unseen rows may tell them apart.
    for ours, theirs in zip(found.test, expected.test):
        assert (np.abs(ours.numpy() - theirs) > 5e-6).mean() <= 0.2


@needs_host
@pytest.mark.parametrize("seed", (0, 7))
@pytest.mark.parametrize("max_bins", (None, 16))
def test_boosted_trees_are_the_hosts(max_bins, seed):
    codes, factors = boosting_problem()
    unseen, _ = boosting_problem(seed=1, rows=37)
    assert_same_trees(*both_boosted(codes, factors, unseen, max_bins=max_bins, rounds=3, seed=seed))


@pytest.mark.parametrize("max_bins", (None, 5))
def test_fitted_rows_are_predicted_alike_through_ranks_and_thresholds(max_bins):
    codes, factors = (torch.from_numpy(a) for a in boosting_problem(rows=120))
    found = _boosting_device.boost(codes, factors, codes, max_bins=max_bins, rounds=2)
    for fitted, unseen in zip(found.train, found.test):
        assert torch.equal(fitted, unseen)


@needs_host
def test_boosted_regression_is_the_hosts():
    codes, factors = boosting_problem()
    wanted = np.stack([np.sin(factors[:, 0]) + 0.1 * codes[:, 1], codes[:, 2] ** 2], axis=1)
    assert_same_trees(*both_boosted(codes, wanted, codes[:50], continuous=True, rounds=4))


@needs_host
def test_boosted_rows_that_do_not_fit_into_shared_memory(shared_limit):
    codes, factors = boosting_problem(rows=90)
    inside, _ = both_boosted(codes, factors, codes[:11], rounds=2)
    shared_limit(3 * 1024)
    outside, _ = both_boosted(codes, factors, codes[:11], rounds=2)
    for a, b in zip(inside.train + inside.test, outside.train + outside.test):
        assert torch.equal(a, b)


@needs_host
@pytest.mark.parametrize("rows", (1, 2, 31, 32, 33, 65))
def test_boosting_few_rows_and_ties(rows):
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 4, (rows, 3)).astype(np.float32)
    codes[:, 1] = 2.5
    labels = (codes[:, :1] > 1).astype(int)
    labels[: len(labels) // 5] = 0
    labels = np.unique(labels, return_inverse=True)[1].reshape(-1, 1)
    assert_same_trees(*both_boosted(codes, labels, codes, rounds=3))


@needs_host
def test_more_features_than_warps_and_more_outputs_than_lanes():
    codes, factors = boosting_problem(rows=130, classes=(17, 9), features=19)
    codes[:, 5] = codes[:, 3]
    assert_same_trees(*both_boosted(codes, np.unique(factors[:, 0], return_inverse=True)[1][:, None], codes, rounds=2))


def test_boosting_is_two_launches_a_round():
    codes, factors = (torch.from_numpy(a) for a in boosting_problem(rows=40))
    start = emulated_backend.controls.emulator_launches()
    _boosting_device.boost(codes, factors, codes, rounds=3)
    assert emulated_backend.controls.emulator_launches() - start == 6


@pytest.mark.parametrize("max_bins", (None, 16))
def test_bins_are_the_hosts(max_bins):
    codes = problem(200)[0]
    expected = _boosting.bin_features(codes, max_bins)
    order, ranks, low, high = (t.numpy() for t in _boosting_device.bin_features(torch.from_numpy(codes), max_bins))
    np.testing.assert_array_equal(order & (2**31 - 1), expected.order)
    np.testing.assert_array_equal(ranks, expected.ranks.T)
    for f, count in enumerate(expected.bins):
        np.testing.assert_array_equal(np.flatnonzero(order[f] < 0) + 1, expected.starts[f, 1:count])
        np.testing.assert_array_equal(low[f, :count], expected.low[f, :count])
        np.testing.assert_array_equal(high[f, :count], expected.high[f, :count])


@needs_host
@pytest.mark.parametrize("continuous", (False, True))
def test_dci_is_the_hosts(continuous, monkeypatch):
    # A hundred rounds are what the host is for.
    for module in (_boosting_device, _predictors):
        monkeypatch.setattr(module, "boost", functools.partial(module.boost, rounds=2))
    codes, factors = boosting_problem(rows=130)
    arrays = codes[:80], factors[:80], codes[80:], factors[80:]
    expected = sf.metrics.dci(*arrays, continuous=continuous)
    tensors = [torch.from_numpy(a) for a in arrays]
    # Only the training codes decide; the rest may lie anywhere.
    for given in (tensors, [tensors[0], *arrays[1:]]):
        found = sf.metrics.dci(*given, continuous=continuous)
        np.testing.assert_allclose(found.importance, expected.importance, atol=1e-4)
        np.testing.assert_allclose(found.accuracy_train, expected.accuracy_train, atol=1e-4)
        # Of unseen rows a few, as in assert_same_trees.
        np.testing.assert_allclose(found.accuracy_test, expected.accuracy_test, atol=0.05)
        assert found.num_test == 50
    # Other predictors take the same tensors through the host.
    if not continuous:
        theirs = sf.metrics.dci(*tensors, predictor="extra_trees")
        np.testing.assert_array_equal(theirs.importance, sf.metrics.dci(*arrays, predictor="extra_trees").importance)


@needs_host
def test_dci_of_more_features_than_the_kernel_takes(monkeypatch):
    monkeypatch.setattr(_boosting_device, "MOST_FEATURES", 3)
    codes, factors = boosting_problem(rows=60)
    arrays = codes[:40], factors[:40], codes[40:], factors[40:]
    found = sf.metrics.dci(*(torch.from_numpy(a) for a in arrays))
    np.testing.assert_array_equal(found.importance, sf.metrics.dci(*arrays).importance)


def test_dci_says_what_is_wrong_with_tensors():
    codes, factors = (torch.from_numpy(a) for a in boosting_problem(rows=20))
    broken = codes.clone()
    broken[3, 1] = float("nan")
    for arguments, match in (
        ((broken, factors, codes, factors), "codes_train: expected finite values, got nan in row 3, column 1"),
        ((codes, factors, broken, factors), "codes_test: expected finite values, got nan in row 3, column 1"),
        ((codes, factors, codes[:, :2], factors), "codes_test: expected 4 columns as codes_train, got 2"),
        ((codes, factors[:5], codes, factors), "factors_train: expected 20 rows"),
        ((codes, factors, codes, factors + 0.5), "factors_test: expected integers, got"),
        ((codes, factors * 0, codes, factors), "factors_train: expected a factor with at least two values"),
    ):
        with pytest.raises(ValueError, match=match):
            sf.metrics.dci(*arguments)


def test_the_boosting_op_checks_what_belongs_together():
    codes, factors = (torch.from_numpy(a) for a in boosting_problem(rows=20))
    order, ranks, low, high = _boosting_device.bin_features(codes, None)
    raw, test_raw, factor = torch.zeros(5, 20), torch.zeros(5, 3), torch.ones(5)
    labels, first = factors[:, :1].t().int(), torch.tensor([0, 5], dtype=torch.int32)
    good = [order, ranks, low, high, raw, test_raw, factor, labels, first, None, codes[:3].t(), 1, 0]
    torch.ops.strucfast._boost_cuda(*good)
    for at, value, name in (
        (1, ranks.long(), "ranks"),
        (2, low[:, 1:], "low"),
        (3, high.double(), "high"),
        (4, raw[:, 1:], "raw"),
        (5, test_raw[:4], "test_raw"),
        (6, factor[:4], "factor"),
        (7, labels.long(), "labels"),
        (7, None, "labels and first"),
        (8, first.long(), "first"),
        (9, raw, "labels and first, or wanted"),
        (10, codes[:3].t().double(), "test_values"),
    ):
        with pytest.raises(RuntimeError, match=f"_boost_cuda: {name}"):
            torch.ops.strucfast._boost_cuda(*good[:at], value, *good[at + 1 :])
