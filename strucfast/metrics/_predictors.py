"""One predictor per factor: importances of the codes, and how well the factors are predicted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import _boosting_device
from ._boosting import boost
from ._histogram import host

PREDICTORS = ("gbt", "random_forest", "extra_trees", "logistic", "lasso")


@dataclass(frozen=True)
class Fitted:
    """Importances (D, K), columns normalised to 1, and the scores (K,): accuracy, or R^2 of continuous factors."""

    importance: np.ndarray
    train: np.ndarray
    test: np.ndarray


def fit(
    predictor: str,
    codes: np.ndarray,
    factors: np.ndarray,
    test_codes: np.ndarray,
    test_factors: np.ndarray,
    *,
    continuous: bool = False,
    bins: int | None = None,
    seed: int = 0,
) -> Fitted:
    """Fit ``predictor`` to every factor of checked arrays, or, for "gbt", of checked tensors on a GPU."""
    if isinstance(codes, torch.Tensor):
        if _boosting_device.takes(codes):
            return _boosted_on_device(codes, factors, test_codes, test_factors, continuous, bins, seed)
        arrays = (codes, factors, test_codes, test_factors)
        codes, factors, test_codes, test_factors = (a.cpu().numpy() for a in arrays)
    if predictor == "gbt" and host() is not None:
        return _boosted(codes, factors, test_codes, test_factors, continuous, bins, seed)
    columns = range(factors.shape[1])
    parts = [
        _scikit(predictor, codes, factors[:, k], test_codes, test_factors[:, k], continuous, seed) for k in columns
    ]
    importance = np.stack([part[0] for part in parts], axis=1)
    return Fitted(_normalised(importance), np.array([p[1] for p in parts]), np.array([p[2] for p in parts]))


def _boosted(codes, factors, test_codes, test_factors, continuous: bool, bins: int | None, seed) -> Fitted:
    if continuous:
        # Trees do not mind an affine map of what they predict; float32 does.
        middle, spread = factors.mean(axis=0), factors.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        targets, wanted = (factors - middle) / spread, (test_factors - middle) / spread
        found = boost(codes, targets, test_codes, continuous=True, max_bins=bins, seed=seed)
        pairs = ((targets, found.train), (wanted, found.test))
        scores = [[r_squared(true[:, k], raw[:, 0]) for k, raw in enumerate(guess)] for true, guess in pairs]
    else:
        values = [np.unique(column, return_inverse=True) for column in factors.T]
        labels = np.stack([inverse for _, inverse in values], axis=1)
        found = boost(codes, labels, test_codes, max_bins=bins, seed=seed)
        # A value that training never saw equals no class, and counts as an error.
        pairs = ((factors, found.train), (test_factors, found.test))
        scores = [
            [float((values[k][0][raw.argmax(axis=1)] == true[:, k]).mean()) for k, raw in enumerate(guess)]
            for true, guess in pairs
        ]
    return Fitted(found.importance, *(np.array(part) for part in scores))


def _boosted_on_device(codes, factors, test_codes, test_factors, continuous: bool, bins: int | None, seed) -> Fitted:
    """As :func:`_boosted`, of tensors."""
    if continuous:
        middle, spread = factors.mean(dim=0), factors.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        targets, wanted = (factors - middle) / spread, (test_factors - middle) / spread
        found = _boosting_device.boost(codes, targets, test_codes, continuous=True, max_bins=bins, seed=seed)
        pairs = ((targets, found.train), (wanted, found.test))
        scores = [[r_squared(true[:, k], raw[:, 0]) for k, raw in enumerate(guess)] for true, guess in pairs]
    else:
        values = [torch.unique(column, return_inverse=True) for column in factors.t()]
        labels = torch.stack([inverse for _, inverse in values], dim=1)
        found = _boosting_device.boost(codes, labels, test_codes, max_bins=bins, seed=seed)
        pairs = ((factors, found.train), (test_factors, found.test))
        scores = [
            [_share(values[k][0][_first_of_greatest(raw)] == true[:, k]) for k, raw in enumerate(guess)]
            for true, guess in pairs
        ]
    return Fitted(found.importance, *(np.array(part) for part in scores))


def _share(hits: torch.Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _first_of_greatest(raw: torch.Tensor) -> torch.Tensor:
    # torch's argmax may give any of several equal ones.
    classes = torch.arange(raw.shape[1], device=raw.device)
    return torch.where(raw == raw.amax(dim=1, keepdim=True), classes, raw.shape[1]).amin(dim=1)


def _normalised(importance: np.ndarray) -> np.ndarray:
    total = importance.sum(axis=0)
    return importance / np.where(total > 0, total, 1.0)


def r_squared(true: np.ndarray, guess: np.ndarray) -> float:
    """Coefficient of determination; a constant that is met counts 1, one that is missed 0."""
    residual, total = ((true - guess) ** 2).sum(), ((true - true.mean()) ** 2).sum()
    if total == 0:
        return float(residual <= 1e-10 * max(1.0, float((true**2).sum())))
    return float(1 - residual / total)


def _scikit(predictor, codes, factor, test_codes, test_factor, continuous: bool, seed: int) -> tuple[Any, float, float]:
    if not continuous and (factor == factor[0]).all():
        return np.zeros(codes.shape[1]), 1.0, float((test_factor == factor[0]).mean())
    model = _model(predictor, continuous, seed)
    with warnings.catch_warnings():
        # A fit that stops at its iteration limit is what the other implementations score, too.
        warnings.filterwarnings("ignore", message=".*converge.*")
        model.fit(codes, factor)
    score = r_squared if continuous else lambda true, guess: float((true == guess).mean())
    if hasattr(model, "feature_importances_"):
        importance = model.feature_importances_
    else:
        # Coefficients are comparable between codes because the pipeline standardises them.
        importance = np.abs(np.atleast_2d(model[-1].coef_)).sum(axis=0)
    return importance, score(factor, model.predict(codes)), score(test_factor, model.predict(test_codes))


def _model(predictor: str, continuous: bool, seed: int) -> Any:
    from sklearn import ensemble, linear_model, pipeline, preprocessing

    trees = {"gbt": "GradientBoosting", "random_forest": "RandomForest", "extra_trees": "ExtraTrees"}
    if predictor in trees:
        kind = getattr(ensemble, trees[predictor] + ("Regressor" if continuous else "Classifier"))
        return kind(random_state=seed)
    if (predictor == "lasso") is not continuous:
        kinds = "continuous" if predictor == "lasso" else "discrete"
        raise ValueError(f"predictor: {predictor!r} is for {kinds} factors (continuous={not continuous})")
    model = (
        linear_model.LassoCV(random_state=seed)
        if continuous
        else linear_model.LogisticRegression(max_iter=1000, random_state=seed)
    )
    return pipeline.make_pipeline(preprocessing.StandardScaler(), model)
