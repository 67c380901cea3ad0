"""Explicitness as disentanglement_lib computes it: one LogisticRegression a factor, areas by roc_auc_score."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits


def explicitness(codes, factors, test_codes, test_factors):
    """Areas per factor and class of the test rows; the fitted rows' are computed, too, as there."""
    mean, std = codes.mean(axis=0, dtype=np.float64), codes.std(axis=0, dtype=np.float64)
    codes, test_codes = (codes - mean) / std, (test_codes - mean) / std
    found = []
    for k in range(factors.shape[1]):
        model = LogisticRegression().fit(codes, factors[:, k])
        for values, labels in ((codes, factors), (test_codes, test_factors)):
            chances = model.predict_proba(values).T
            areas = [roc_auc_score(labels[:, k] == c, p) for c, p in zip(model.classes_, chances)]
        found.append(areas)
    return found


def explicitness_one_blas_thread(*arrays):
    """The same where its small matrix products are fastest: several BLAS threads only wait for each other."""
    with threadpool_limits(1):
        return explicitness(*arrays)
