"""The boosting kernel against scikit-learn, whose defaults are its meaning."""

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

from strucfast import _native
from strucfast.metrics._boosting import bin_features, boost

needs_host = pytest.mark.skipif(_native.missing("host") is not None, reason="needs the host module: make build")
pytestmark = needs_host


def problem(rows=600, classes=(5, 2, 3), features=4, seed=0, noise=0.4):
    """Codes that mix the factors with noise, distinct with probability one, and the factors."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(0, c, rows) for c in classes], axis=1)
    mix = rng.normal(size=(len(classes), features))
    codes = (factors @ mix + noise * rng.normal(size=(rows, features))).astype(np.float32)
    return codes, factors


def raw_of(model, codes, classes):
    """scikit-learn's raw predictions in our form; with two classes it keeps the one log-odds only."""
    raw = model.decision_function(codes)
    if classes > 2:
        return raw
    return np.stack([-raw / 2, raw / 2], axis=1)


def centred(raw):
    return raw - raw.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("rounds", [1, 5, 40])
def test_raw_predictions_are_scikit_learns(rounds):
    codes, factors = problem()
    unseen, _ = problem(seed=1)
    found = boost(codes, factors, unseen, rounds=rounds)
    for k, classes in enumerate((5, 2, 3)):
        model = GradientBoostingClassifier(n_estimators=rounds, random_state=0).fit(codes, factors[:, k])
        np.testing.assert_allclose(centred(found.train[k]), centred(raw_of(model, codes, classes)), atol=1e-5)
        # Features that split the fitted rows alike are chosen at random by both, and unseen rows tell them apart.
        theirs = raw_of(model, unseen, classes)
        if rounds == 1:
            np.testing.assert_allclose(centred(found.test[k]), centred(theirs), atol=1e-5)
        assert (theirs.argmax(axis=1) == found.test[k].argmax(axis=1)).mean() > 0.95
        atol = 1e-5 if rounds == 1 else 0.01
        np.testing.assert_allclose(found.importance[:, k], model.feature_importances_, atol=atol)


def test_regression_is_scikit_learns():
    codes, factors = problem()
    wanted = np.stack([np.sin(factors[:, 0]) + 0.1 * codes[:, 1], codes[:, 2] ** 2], axis=1)
    unseen, _ = problem(seed=1)
    found = boost(codes, wanted, unseen, continuous=True, rounds=30)
    for k in range(2):
        model = GradientBoostingRegressor(n_estimators=30, random_state=0).fit(codes, wanted[:, k])
        off = np.abs(found.test[k][:, 0] - model.predict(unseen)) > 1e-3
        assert off.mean() <= 0.03
        np.testing.assert_allclose(found.importance[:, k], model.feature_importances_, atol=1e-3)


def test_ties_in_the_codes():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, (500, 3)).astype(np.float32)
    codes[:, 2] += rng.normal(size=500) * (codes[:, 2] > 2)
    labels = ((codes[:, 0] > 2).astype(int) + (codes[:, 1] > 3)).astype(int)[:, None]
    found = boost(codes, labels, codes, rounds=20)
    model = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(codes, labels[:, 0])
    np.testing.assert_allclose(found.importance[:, 0], model.feature_importances_, atol=1e-4)
    np.testing.assert_allclose(centred(found.train[0]), centred(raw_of(model, codes, labels.max() + 1)), atol=1e-3)
    # Rows that were fitted are predicted alike through their ranks and through thresholds.
    np.testing.assert_array_equal(found.train[0], found.test[0])


def test_the_same_on_any_number_of_threads():
    codes, factors = problem(rows=5000)
    one = boost(codes, factors, codes[:100], rounds=10, threads=1)
    four = boost(codes, factors, codes[:100], rounds=10, threads=4)
    np.testing.assert_array_equal(one.importance, four.importance)
    for a, b in zip(one.train + one.test, four.train + four.test):
        np.testing.assert_array_equal(a, b)


def test_more_outputs_than_lanes():
    """Thirty-five classes take three vectors; every factor scores as it does alone."""
    codes, factors = problem(classes=(20, 15))
    both = boost(codes, factors, codes[:50], rounds=5)
    for k in range(2):
        alone = boost(codes, factors[:, k : k + 1], codes[:50], rounds=5)
        np.testing.assert_allclose(both.importance[:, k], alone.importance[:, 0], atol=0.01)
        # Its outputs lie in other lanes and ask features in another order, which matters in ties only.
        np.testing.assert_allclose(both.train[k], alone.train[0], atol=0.2)
        assert np.median(np.abs(both.train[k] - alone.train[0])) < 1e-5


def test_nothing_to_split():
    codes = np.full((20, 2), 3.0, np.float32)
    labels = np.stack([np.arange(20) % 2, np.zeros(20, int)], axis=1)
    found = boost(codes, labels, codes)
    assert (found.importance == 0).all()
    np.testing.assert_allclose(found.train[0], np.log(0.5), atol=1e-6)
    single = boost(np.arange(20.0)[:, None], labels, np.arange(20.0)[:, None])
    assert (single.importance[:, 1] == 0).all() and (single.train[1] == 0).all()


def test_bins():
    values = np.array([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0 + 5e-8], [2.0, 5.0]], np.float32)
    binned = bin_features(values, None)
    np.testing.assert_array_equal(binned.ranks.T, [[2, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(binned.bins, [3, 2])
    np.testing.assert_array_equal(binned.low[0], [1, 2, 3])
    np.testing.assert_array_equal(binned.starts[0], [0, 1, 3, 4])
    many = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    merged = bin_features(many, 16)
    assert merged.bins[0] == 16
    ordered = many[merged.order[0], 0]
    assert (np.diff(ordered) >= 0).all()
    # Three quarters of a step go by weight, one by width; a bin overshoots by a value at most.
    at = merged.starts[0][:16]
    steps = 0.75 * at / 1000 + 0.25 * (ordered[at] - ordered[0]) / (ordered[-1] - ordered[0])
    overshoot = steps - np.arange(16) / 16
    gaps = 0.75 / 1000 + 0.25 * np.diff(ordered, prepend=ordered[0])[at] / (ordered[-1] - ordered[0])
    assert (overshoot >= -1e-6).all() and (overshoot <= gaps + 1e-6).all()


def test_arrays_that_do_not_fit_are_refused():
    host = _native.host()
    codes, factors = problem(rows=10)
    binned = bin_features(codes, None)
    good = {
        "ranks": binned.ranks,
        "order": binned.order,
        "starts": binned.starts,
        "bins": binned.bins,
        "low_values": binned.low,
        "high_values": binned.high,
        "initial": np.zeros(5, np.float32),
        "labels": factors[:, :1].astype(np.int32),
        "first": np.array([0, 5], np.int32),
        "wanted": None,
        "test_values": codes,
        "rounds": 1,
        "learning_rate": 0.1,
        "seed": 0,
        "threads": 1,
    }
    host.boost(**good)
    bad = {
        "order": binned.order + 1,
        "ranks": binned.ranks + 100,
        "starts": binned.starts - 5,
        "labels": good["labels"] + 5,
        "first": np.array([0, 9], np.int32),
        "bins": binned.bins + 1,
        "test_values": codes[:, :2],
        "wanted": np.zeros((10, 5), np.float32),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name.removesuffix("_values")):
            host.boost(**good | {name: np.ascontiguousarray(value)})
