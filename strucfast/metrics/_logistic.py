"""Multinomial logistic regressions of several factors at once, with the objective of scikit-learn's.

Each factor's loss is ``sum_n -log softmax(W x_n + b)_{y_n} + |W|^2 / 2``: ``LogisticRegression()`` with C = 1 and an
intercept that is not penalised. They are minimised together by L-BFGS, every factor with its own step and memory, so
that one pass over the rows serves all of them, and preconditioned by each class's own part of the Hessian matrix.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

# Probabilities a pass takes at a time: what stays in the cache.
_BLOCK = 2**17
# Rows that curvature is estimated from, the iterations at which it is, and the most inputs for which that pays.
_SAMPLE = 1000
_ESTIMATES = (0, 3, 8, 30)
_WIDEST = 64
# Pairs that L-BFGS remembers.
_MEMORY = 10


class LogisticRegressions:
    """Logistic regressions that share their inputs.

    Args:
        values: (N, D) float64, standardised as a rule.
        labels: (N, K), class numbers 0 .. C_k - 1 without gaps.
        tolerance: on the largest gradient of the mean loss, scikit-learn's by default.
        iterations: limit.

    Attributes:
        weights: (C, D + 1), the classes of all factors one after the other, the intercepts last.
        starts: (K + 1,) where each factor's classes start.
        converged: (K,) bool.
    """

    def __init__(
        self, values: np.ndarray, labels: np.ndarray, *, tolerance: float = 1e-4, iterations: int = 500
    ) -> None:
        sizes = labels.max(axis=0) + 1
        self.starts = np.concatenate(([0], np.cumsum(sizes)))
        self._inputs = _with_ones(values)
        # At random: rows may be ordered by factors.
        chosen = np.random.default_rng(0).permutation(len(values))[:_SAMPLE]
        self._sample = np.ascontiguousarray(self._inputs[:, chosen])
        sums = [np.stack([np.bincount(column, row) for row in self._inputs], axis=1) for column in labels.T]
        self._sums = np.concatenate(sums)
        # scikit-learn has one vector w = W_1 - W_0 for two classes: |w|^2 is twice |W_0|^2 + |W_1|^2.
        self._penalty = np.repeat(np.where(sizes == 2, 2.0, 1.0), sizes)[:, None] * np.ones(len(self._inputs))
        self._penalty[:, -1] = 0.0
        # Several BLAS threads wait for each other longer than such small products take.
        with one_blas_thread():
            self.weights, self.converged = self._minimise(sizes, tolerance * len(values), iterations)

    def probabilities(self, values: np.ndarray) -> list[np.ndarray]:
        """Per factor (C_k, M): of each class for each row of (M, D) values."""
        logits = self.weights @ _with_ones(values)
        parts = np.split(logits, self.starts[1:-1])
        for part in parts:
            _softmax(part)
        return parts

    def _loss(self, weights: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (K,) and their gradient, of the numbered factors; of the others the part without data."""
        gradient = self._penalty * weights - self._sums
        loss = self._per_factor(weights * (0.5 * self._penalty * weights - self._sums))
        # One product for all of them: those of single factors are too small to be fast.
        rows = np.concatenate([np.arange(self.starts[k], self.starts[k + 1]) for k in factors])
        bounds = np.cumsum([0, *(self.starts[k + 1] - self.starts[k] for k in factors)])
        chosen, total = weights[rows], np.zeros((len(rows), len(self._inputs)))
        count = max(64, _BLOCK // len(rows))
        for begin in range(0, self._inputs.shape[1], count):
            inputs = self._inputs[:, begin : begin + count]
            scores = chosen @ inputs
            for k, (first, last) in zip(factors, itertools.pairwise(bounds)):
                loss[k] += _softmax(scores[first:last])
            total += scores @ inputs.T
        gradient[rows] += total
        return loss, gradient

    def _per_factor(self, table: np.ndarray) -> np.ndarray:
        return np.add.reduceat(table.sum(axis=1), self.starts[:-1])

    def _inverse_blocks(self, weights: np.ndarray, blocks: np.ndarray | None, factors: np.ndarray) -> np.ndarray:
        """(C, D + 1, D + 1): for the numbered factors, the inverse of each class's block of the Hessian matrix."""
        count = len(self._inputs)
        blocks = np.empty((len(weights), count, count)) if blocks is None else blocks
        ratio = self._inputs.shape[1] / self._sample.shape[1]
        for k in factors:
            own = range(self.starts[k], self.starts[k + 1])
            shares = weights[own] @ self._sample
            _softmax(shares)
            shares *= ratio * (1.0 - shares)
            for c, share in zip(own, shares):
                block = (self._sample * share) @ self._sample.T
                # The intercept, which has no penalty, may have no curvature among the sampled rows.
                block.flat[:: count + 1] += np.maximum(self._penalty[c], 1e-3 * self._sums[c, -1])
                blocks[c] = block
            blocks[own] = np.linalg.inv(blocks[own])
        return blocks

    def _minimise(self, sizes: np.ndarray, tolerance: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        def spread(values: np.ndarray) -> np.ndarray:
            return np.repeat(values, sizes)[:, None]

        weights = np.zeros_like(self._sums)
        active = np.ones(len(sizes), bool)
        loss, gradient = self._loss(weights, np.flatnonzero(active))
        # Without blocks and before there is any memory: the curvature of balanced classes and standardised values.
        scale, blocks = sizes / self._inputs.shape[1], None
        memory: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for iteration in range(iterations):
            active &= np.maximum.reduceat(np.abs(gradient).max(axis=1), self.starts[:-1]) > tolerance
            if not active.any():
                break
            if iteration in _ESTIMATES and len(self._inputs) <= _WIDEST:
                blocks = self._inverse_blocks(weights, blocks, np.flatnonzero(active))
            masked = np.where(spread(active), gradient, 0.0)
            direction = self._two_loop(memory, masked, spread, spread(scale) if blocks is None else blocks)
            slope = -self._per_factor(direction * gradient)
            step, trial = np.ones(len(sizes)), active.copy()
            new_loss, new_gradient = loss.copy(), gradient.copy()
            # Backtracking: the loss is convex, so that curvature pairs need no second condition.
            for _ in range(30):
                some = np.flatnonzero(trial)
                tried_loss, tried_gradient = self._loss(weights - spread(step) * direction, some)
                new_loss[some] = tried_loss[some]
                new_gradient = np.where(spread(trial), tried_gradient, new_gradient)
                excess = new_loss - loss - step * slope
                # Near the minimum the loss cannot tell steps apart any more.
                trial &= excess > -0.9999 * step * slope + 1e-13 * np.abs(loss)
                if not trial.any():
                    break
                best = 0.5 * step * -(step * slope) / np.where(trial, excess, 1.0)
                step = np.where(trial, np.clip(best, 0.1 * step, 0.5 * step), step)
            else:
                active &= ~trial
            moved = spread(np.where(active, step, 0.0)) * -direction
            change = np.where(spread(active), new_gradient - gradient, 0.0)
            weights, loss, gradient = weights + moved, new_loss, gradient + change
            curvature, length = self._per_factor(moved * change), self._per_factor(change * change)
            good = curvature > 1e-14 * length
            inverse = np.where(good, 1.0 / np.where(good, curvature, 1.0), 0.0)
            scale = np.where(good, curvature / np.where(good, length, 1.0), scale)
            memory = [*memory[1 - _MEMORY :], (moved, change, inverse)]
        largest = np.maximum.reduceat(np.abs(gradient).max(axis=1), self.starts[:-1])
        return weights, largest <= tolerance

    def _two_loop(
        self,
        memory: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
        vector: np.ndarray,
        spread: Callable[[np.ndarray], np.ndarray],
        scale: np.ndarray,
    ) -> np.ndarray:
        """L-BFGS's inverse Hessian times a vector, each factor for itself; pairs with inverse 0 are passed over.

        It starts from ``scale``: (C, 1) numbers, or (C, D + 1, D + 1) matrices.
        """
        shares = []
        for moved, change, inverse in reversed(memory):
            shares.append(inverse * self._per_factor(moved * vector))
            vector = vector - spread(shares[-1]) * change
        if scale.ndim == 2:
            vector = vector * scale
        else:
            vector = (scale @ vector[:, :, None])[:, :, 0]
            # The same change of all classes only adds to the penalty; the blocks know nothing of that.
            sums = np.add.reduceat(vector, self.starts[:-1], axis=0)
            sizes = np.diff(self.starts)
            vector -= np.repeat(sums / sizes[:, None], sizes, axis=0)
        for (moved, change, inverse), share in zip(memory, reversed(shares)):
            vector = vector + spread(share - inverse * self._per_factor(change * vector)) * moved
        return vector


def one_blas_thread() -> AbstractContextManager:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, "blas")


def _with_ones(values: np.ndarray) -> np.ndarray:
    """(D + 1, N): columns for rows, and a row of ones for the intercept."""
    return np.concatenate([values.T, np.ones((1, len(values)))])


def _softmax(scores: np.ndarray) -> float:
    """Softmax over the first axis, in place; returns the sum of the logarithms of its denominators."""
    largest = scores.max(axis=0)
    scores -= largest
    np.exp(scores, out=scores)
    total = scores.sum(axis=0)
    scores /= total
    return float(np.log(total).sum() + largest.sum())
