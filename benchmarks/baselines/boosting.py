"""DCI as disentanglement_lib computes it: one scikit-learn classifier a factor, one after the other.

XGBoost and LightGBM are what people put in its place because scikit-learn is slow. Their gain is of second order and
regularised, so the importances, and with them D and C, are others: they are peers in speed, no exact substitutes.
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier

from strucfast.metrics import dci_from_importance


def dci(codes, factors, test_codes, test_factors):
    """Scores of ``GradientBoostingClassifier()`` with its defaults."""
    return _dci(lambda: GradientBoostingClassifier(random_state=0), codes, factors, test_codes, test_factors)


def xgboost_dci(xgboost: ModuleType, codes, factors, test_codes, test_factors, threads: int):
    """scikit-learn's number of stages, depth and rate, histograms of 256 bins; importance is the gain of all splits."""

    def model():
        return xgboost.XGBClassifier(
            n_estimators=100, max_depth=3, learning_rate=0.1, tree_method="hist", importance_type="total_gain",
            n_jobs=threads, random_state=0,
        )  # fmt: skip

    return _dci(model, codes, factors, test_codes, test_factors)


def lightgbm_dci(lightgbm: ModuleType, codes, factors, test_codes, test_factors, threads: int):
    """The same with LightGBM; depth 3 is eight leaves."""

    def model():
        return lightgbm.LGBMClassifier(
            n_estimators=100, max_depth=3, num_leaves=8, learning_rate=0.1, importance_type="gain", n_jobs=threads,
            random_state=0, verbose=-1,
        )  # fmt: skip

    return _dci(model, codes, factors, test_codes, test_factors)


def _dci(build: Callable, codes, factors, test_codes, test_factors):
    """D, C, importances (normalised per factor) and accuracy with one classifier of ``build()`` a factor."""
    importance, accuracy = [], []
    for k in range(factors.shape[1]):
        model = build().fit(codes, factors[:, k])
        shares = np.asarray(model.feature_importances_, np.float64)
        importance.append(shares / shares.sum())
        accuracy.append(np.mean(model.predict(test_codes) == test_factors[:, k]))
    matrix = np.stack(importance, axis=1)
    disentanglement, completeness, _, _ = dci_from_importance(matrix)
    return SimpleNamespace(
        importance=matrix, disentanglement=disentanglement, completeness=completeness, test=np.mean(accuracy)
    )


def hist_boosting(codes, factors, test_codes, test_factors):
    """Accuracies of ``HistGradientBoostingClassifier()`` with as many stages and the same depth."""
    accuracy = []
    for k in range(factors.shape[1]):
        model = HistGradientBoostingClassifier(max_iter=100, max_depth=3, early_stopping=False, random_state=0)
        accuracy.append(model.fit(codes, factors[:, k]).score(test_codes, test_factors[:, k]))
    return accuracy
