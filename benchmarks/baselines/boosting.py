"""DCI as disentanglement_lib computes it: one scikit-learn classifier a factor, one after the other."""

from types import SimpleNamespace

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier

from strucfast.metrics import dci_from_importance


def dci(codes, factors, test_codes, test_factors):
    """Scores of ``GradientBoostingClassifier()`` with its defaults."""
    importance, accuracy = [], []
    for k in range(factors.shape[1]):
        model = GradientBoostingClassifier(random_state=0).fit(codes, factors[:, k])
        importance.append(model.feature_importances_)
        accuracy.append(model.score(test_codes, test_factors[:, k]))
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
