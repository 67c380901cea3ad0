"""MIG as disentanglement_lib formulates it: numpy.histogram and numpy.digitize per code, scikit-learn per pair."""

import numpy as np
from sklearn.metrics import mutual_info_score


def mig(codes: np.ndarray, factors: np.ndarray, bins: int = 20) -> float:
    """MIG of codes (N, D) and integer factors (N, K)."""
    labels = []
    for code in codes.T:
        edges = np.histogram(code, bins)[1]
        labels.append(np.digitize(code, edges[:-1]))
    information = np.array([[mutual_info_score(factor, label) for factor in factors.T] for label in labels])
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    top = np.sort(information, axis=0)[::-1]
    return float(np.mean((top[0] - top[1]) / entropy))
