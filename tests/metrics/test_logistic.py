"""The joint solver of logistic regressions against scikit-learn's, one factor at a time."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from strucfast.metrics import _logistic
from strucfast.metrics._logistic import LogisticRegressions


def problem(rows=500, classes=(4, 2, 9), codes=3, noise=0.7, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation(np.arange(rows) % c) for c in classes], axis=1)
    values = labels @ rng.normal(size=(len(classes), codes)) + noise * rng.normal(size=(rows, codes))
    return (values - values.mean(axis=0)) / values.std(axis=0), labels


def objective(weights, values, label):
    """scikit-learn's loss of (C, D + 1) weights; with two classes it has one vector, their difference."""
    logits = values @ weights[:, :-1].T + weights[:, -1]
    loss = np.log(np.exp(logits).sum(axis=1)).sum() - logits[np.arange(len(label)), label].sum()
    own = weights[1:, :-1] - weights[:1, :-1] if len(weights) == 2 else weights[:, :-1]
    return loss + 0.5 * np.square(own).sum()


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("noise", [0.7, 0.0])
def test_the_minimum_is_scikit_learns(blocks, noise, monkeypatch):
    if not blocks:
        monkeypatch.setattr(_logistic, "_WIDEST", 0)
    values, labels = problem(noise=noise)
    found = LogisticRegressions(values, labels, tolerance=1e-8)
    assert found.converged.all()
    for k, probabilities in enumerate(found.probabilities(values)):
        model = LogisticRegression(tol=1e-8, max_iter=5000).fit(values, labels[:, k])
        np.testing.assert_allclose(probabilities.T, model.predict_proba(values), atol=1e-5)
        own = found.weights[found.starts[k] : found.starts[k + 1]]
        assert own[:, :-1].sum(axis=0) == pytest.approx(0, abs=1e-6)
        if len(own) > 2:
            np.testing.assert_allclose(own[:, :-1], model.coef_, atol=1e-4)


def test_at_scikit_learns_tolerance_the_loss_is_no_larger():
    values, labels = problem(rows=3000, classes=(10, 15), codes=6, noise=0.2)
    found = LogisticRegressions(values, labels)
    for k, label in enumerate(labels.T):
        model = LogisticRegression().fit(values, label)
        theirs = objective(np.column_stack([model.coef_, model.intercept_]), values, label)
        assert objective(found.weights[found.starts[k] : found.starts[k + 1]], values, label) < theirs * 1.0005


def test_factors_do_not_touch_each_other():
    values, labels = problem(rows=2500)
    both = LogisticRegressions(values, labels, tolerance=1e-9)
    for k in range(3):
        alone = LogisticRegressions(values, labels[:, [k]], tolerance=1e-9)
        np.testing.assert_allclose(both.weights[both.starts[k] : both.starts[k + 1]], alone.weights, atol=1e-5)


def test_rows_ordered_by_class_and_rare_classes():
    values, labels = problem(rows=2500, classes=(5,))
    order = np.argsort(labels[:, 0], kind="stable")
    # One row of a sixth class, which the sample for the curvature is likely to miss.
    labels[order[-1], 0] = 5
    found = LogisticRegressions(values[order], labels[order], tolerance=1e-7)
    assert found.converged.all()
    model = LogisticRegression(tol=1e-7, max_iter=5000).fit(values, labels[:, 0])
    np.testing.assert_allclose(found.probabilities(values)[0].T, model.predict_proba(values), atol=1e-4)


def test_outliers_and_no_inputs():
    values, labels = problem(rows=300, classes=(3,))
    values[0] = 1e6
    found = LogisticRegressions(values, labels)
    assert np.isfinite(found.weights).all() and found.converged.all()
    nothing = LogisticRegressions(np.empty((300, 0)), np.minimum(labels, 1))
    np.testing.assert_allclose(nothing.probabilities(np.empty((2, 0)))[0], [[1 / 3] * 2, [2 / 3] * 2], atol=1e-3)


def test_the_limit_of_iterations():
    values, labels = problem()
    assert not LogisticRegressions(values, labels, iterations=2).converged.any()
