"""FactorVAE score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names
from ._interventions import SharedValues, check_counts
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Votes whose batches are gathered at once: some MiB.
_CHUNK = 256


@dataclass(frozen=True, repr=False)
class FactorVAEScoreResult(Result):
    """What :func:`factor_vae_score` returns.

    Attributes:
        score: accuracy of the majority vote on ``eval_votes``.
        train_accuracy: on ``train_votes``.
        per_factor: (K,) accuracy on the evaluation votes with that factor fixed; NaN for a factor that cannot be fixed.
        train_votes, eval_votes: (K, D) how often code d varied least when factor k was fixed.
        classifier: (D,) the factor that a vote for the code stands for, -1 for a code that was left out.
        std: (D,) standard deviations over the pool. active: (D,) which codes took part.
        batch_size, num_samples: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    train_accuracy: float
    per_factor: np.ndarray
    train_votes: np.ndarray
    eval_votes: np.ndarray
    classifier: np.ndarray
    std: np.ndarray
    active: np.ndarray
    batch_size: int
    num_samples: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "factor_vae_score"

    def __str__(self) -> str:
        codes, factors = self._names()
        rows = [(name, [*row, std]) for name, row, std in zip(codes, self._shares(), self.std)]
        rows += [("accuracy", [*self.per_factor, np.nan])]
        votes = f"{self.train_votes.sum()}/{self.eval_votes.sum()} votes, batches of {self.batch_size}"
        title = f"FactorVAE score {self.score:.4f}  ({votes}, {self.num_samples} samples; shares of votes)"
        return table(title, [*factors, "std"], rows, rules=(len(codes),))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The shares of each factor's votes as a D x K matrix, on ``ax`` or a new figure."""
        return matrix_axes(self._shares(), *self._names(), f"FactorVAE score {self.score:.3f}", ax)

    def _shares(self) -> np.ndarray:
        return (self.eval_votes / np.maximum(self.eval_votes.sum(axis=1, keepdims=True), 1)).T

    def _names(self) -> tuple[list[str], list[str]]:
        factors, codes = self.eval_votes.shape
        return default_names(self.code_names, "z", codes), default_names(self.factor_names, "v", factors)


def majority_vote(train_votes: Any, eval_votes: Any) -> tuple[np.ndarray, float, float]:
    """The majority-vote classifier of a table of votes (Kim & Mnih 2018, section 4).

    Args:
        train_votes, eval_votes: (K, D) counts.

    Returns:
        (D,) the factor with most training votes for each code (the first on ties, and where there is none); its
        accuracy on the training and on the evaluation votes, 0 where there are no votes.
    """
    train_votes, eval_votes = (np.asarray(votes) for votes in (train_votes, eval_votes))
    if train_votes.ndim != 2 or 0 in train_votes.shape or train_votes.shape != eval_votes.shape:
        shapes = f"{train_votes.shape} and {eval_votes.shape}"
        raise ValueError(f"train_votes, eval_votes: expected two non-empty arrays (K, D), got {shapes}")
    classifier = train_votes.argmax(axis=0)
    right = [votes[classifier, np.arange(votes.shape[1])].sum() for votes in (train_votes, eval_votes)]
    return classifier, *(float(r / max(votes.sum(), 1)) for r, votes in zip(right, (train_votes, eval_votes)))


def least_varying(batches: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(V,) which code of (V, L, D) batches has the least variance relative to ``variance`` (D,), the first on ties.

    A code with no variance at all can win nothing: 0/0 is not small.
    """
    alive = np.flatnonzero(variance > 0)
    if len(alive) == 0:
        raise ValueError("variance: expected a code that varies, got zeros only")
    # From each batch's first row: codes that do not move in the batch then have exactly 0.
    shifted = batches[:, :, alive] - batches[:, :1, alive]
    total = shifted.sum(axis=1)
    square = np.einsum("vld,vld->vd", shifted, shifted) - total * total / batches.shape[1]
    return alive[(square / variance[alive]).argmin(axis=1)]


def factor_vae_score(
    codes: Any,
    factors: Any,
    *,
    num_train: int = 10000,
    num_eval: int = 5000,
    batch_size: int = 64,
    min_std: float = 0.05,
    seed: int = 0,
    code_names: Any = None,
    factor_names: Any = None,
) -> FactorVAEScoreResult:
    """FactorVAE score (Kim & Mnih 2018, "Disentangling by Factorising", section 4).

    A batch in which one factor is fixed votes for the code whose variance, over the code's variance in all rows, is
    least; the score is the accuracy with which a majority vote tells the factor from the code. Batches are drawn from
    the rows given, with replacement, so that 960,000 rows are looked up instead of encoded.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values. The grid of combinations may have holes.
        num_train, num_eval: votes that train the classifier, and votes it is judged by.
        batch_size: rows a vote.
        min_std: codes with a smaller standard deviation over all rows are left out, as they carry nothing (Kim & Mnih
            leave out those that collapsed to the prior). Codes that do not vary at all are always left out.
        seed: of the drawn batches.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`FactorVAEScoreResult`. The score is 0 where no code is left. Factors with one value, or none that two
        rows share, cannot be fixed and are left out; with a single factor left every vote is right.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor that can be fixed, counts below 1. TypeError: not numbers.
    """
    check_counts(num_train=num_train, num_eval=num_eval, batch_size=batch_size)
    if not (isinstance(min_std, (int, float)) and 0 <= min_std < np.inf) or isinstance(min_std, bool):
        raise ValueError(f"min_std: expected a finite number of at least 0, got {min_std!r}")
    codes = check_codes(codes)
    check_finite(codes)
    factors = check_factors(factors, len(codes))
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    groups = SharedValues(factors)
    varies = codes.min(axis=0) < codes.max(axis=0)
    std = np.where(varies, codes.std(axis=0, ddof=1, dtype=np.float64), 0.0)
    active = varies & (std >= min_std)
    votes = np.zeros((2, factors.shape[1], codes.shape[1]), np.int64)
    if active.any():
        rng = np.random.default_rng(seed)
        # Scaled here once; constants and what is too small never enter.
        scaled = codes[:, active].astype(np.float64) / std[active]
        ones = np.ones(scaled.shape[1])
        for part, total in zip(votes, (num_train, num_eval)):
            for factor, count in groups.fixed(total, _CHUNK, rng):
                rows = groups.draw(factor, count, batch_size, rng)
                winners = np.bincount(least_varying(scaled[rows], ones), minlength=len(ones))
                part[factor, active] += winners
    classifier, train_accuracy, score = majority_vote(*votes)
    classifier = np.where(active, classifier, -1)
    asked = votes[1].sum(axis=1)
    right = np.where(classifier[None, :] == np.arange(factors.shape[1])[:, None], votes[1], 0).sum(axis=1)
    per_factor = np.where(asked > 0, right / np.maximum(asked, 1), np.nan)
    return FactorVAEScoreResult(
        score=score,
        train_accuracy=train_accuracy,
        per_factor=per_factor,
        train_votes=votes[0],
        eval_votes=votes[1],
        classifier=classifier,
        std=std,
        active=active,
        batch_size=int(batch_size),
        num_samples=len(codes),
        code_names=code_names,
        factor_names=factor_names,
    )
