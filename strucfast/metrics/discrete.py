"""Entropies and mutual information of binned codes; how well reconstructions keep the codes they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._histogram import bin_edges, bin_labels, joint_counts
from ._inputs import check_codes, check_factors, check_finite, check_names
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def discretise(codes: Any, bins: int = 20) -> np.ndarray:
    """Labels (N, D), int64 in [0, bins), of codes (N, D) in equal-width bins between each code's extremes.

    Edges are ``numpy.linspace(min, max, bins + 1)`` in float64, for float32 codes as well; a value on an edge belongs
    to the bin above, the maximum to the last bin, and a constant code lies in the middle of edges 1/2 away.
    """
    codes = check_codes(codes)
    return bin_labels(codes, bin_edges(codes, bins)).astype(np.int64)


def entropy(labels: Any) -> np.ndarray:
    """Sample entropies (K,) in nats of integer labels (N, K): factors, or codes after :func:`discretise`."""
    labels = check_factors(labels, name="labels")
    shares = (np.unique(column, return_counts=True)[1] / len(labels) for column in labels.T)
    # log(1 / p), not -log(p): a single class then gives +0.
    return np.array([(share * np.log(1.0 / share)).sum() for share in shares])


def mutual_information(codes: Any, factors: Any, bins: int = 20) -> np.ndarray:
    """Mutual information (D, K) in nats between binned codes (N, D) and integer factors (N, K).

    Plug-in estimate ``sum_ab n_ab / n log(n n_ab / (n_a n_b))`` from exact counts, exactly 0 where they are those of
    independence. Biased upwards by about (bins - 1)(values - 1) / (2 N).
    """
    codes = check_codes(codes)
    return joint_counts(codes, check_factors(factors, len(codes)), bins).mutual_information()


@dataclass(frozen=True, repr=False)
class NMIResult(Result):
    """What :func:`nmi` returns.

    Attributes:
        score: mean of ``per_code``, in [0, 1].
        per_code: (D,) mutual information of a code and its counterpart over the entropy of ``codes``; 0 if that is 0.
        mutual_information: (D,) in nats.
        code_entropy: (D,) entropies of the binned ``codes`` in nats.
        bins, num_samples: of the estimate.
        code_names: D names, or None.
    """

    score: float
    per_code: np.ndarray
    mutual_information: np.ndarray
    code_entropy: np.ndarray
    bins: int
    num_samples: int
    code_names: tuple[str, ...] | None = None

    name = "nmi"

    def __str__(self) -> str:
        codes = default_names(self.code_names, "z", len(self.per_code))
        rows = [("information", self.mutual_information), ("entropy", self.code_entropy), ("normalised", self.per_code)]
        title = f"Normalised mutual information {self.score:.4f}  ({self.num_samples} samples, {self.bins} bins, nats)"
        return table(title, codes, rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """``per_code`` as a row of cells, on ``ax`` or a new figure."""
        codes = default_names(self.code_names, "z", len(self.per_code))
        return matrix_axes(self.per_code[None], ["kept"], codes, f"NMI {self.score:.3f}", ax)


def nmi(codes: Any, reconstructed_codes: Any, bins: int = 20, *, code_names: Any = None) -> NMIResult:
    """Normalised mutual information of codes and of the codes of their reconstructions (MS-VAE paper, eq. 6).

    ``mean_i I(c_i; c'_i) / H(c_i)``, both binned, dimension by dimension: 1 if every binned code can be read from its
    counterpart, 0 if they are independent.

    Args:
        codes: (N, D) codes of the images, C_R = E(X).
        reconstructed_codes: (N, D) codes of what was decoded from them, row by row: C_Y = E(Y), say.
        bins: number of bins a code, between each array's own extremes.
        code_names: D names for the printed table.

    Returns:
        :class:`NMIResult`. A code that is constant in ``codes`` has no entropy and scores 0.

    Raises:
        ValueError: empty arrays, shapes that differ, values that are not finite. TypeError: not numbers.
    """
    codes = check_codes(codes)
    other = _counterpart(reconstructed_codes, codes, "reconstructed_codes")
    code_names = check_names("code_names", code_names, codes.shape[1])
    # The counterparts' bins serve as factor values; each is wanted against one code only.
    labels = discretise(other, bins)
    parts = [joint_counts(codes[:, [d]], labels[:, [d]], bins) for d in range(codes.shape[1])]
    information = np.array([part.mutual_information()[0, 0] for part in parts])
    spread = np.array([part.code_entropy()[0] for part in parts])
    per_code = np.where(spread > 0, information / np.where(spread > 0, spread, 1.0), 0.0)
    return NMIResult(float(per_code.mean()), per_code, information, spread, int(bins), len(codes), code_names)


def _counterpart(values: Any, codes: np.ndarray, name: str) -> np.ndarray:
    other = check_codes(values, name)
    if other.shape != codes.shape:
        raise ValueError(f"{name}: expected shape {codes.shape}, as the codes of the images, got {other.shape}")
    check_finite(other, name)
    return other


@dataclass(frozen=True, repr=False)
class ConditioningResult(Result):
    """What :func:`conditioning_measures` returns.

    Attributes:
        m1, m2, m3, m4: normalised mutual information of the images' codes with those of Y, of G(Y, Z), of G(Y, eps) and
            of G(eps, Z).
        per_code: (4, D), the same for each code.
        code_entropy: (D,) entropies of the images' binned codes in nats.
        bins, num_samples: of the estimate.
        code_names: D names, or None.
    """

    m1: float
    m2: float
    m3: float
    m4: float
    per_code: np.ndarray
    code_entropy: np.ndarray
    bins: int
    num_samples: int
    code_names: tuple[str, ...] | None = None

    name = "conditioning"

    @property
    def score(self) -> float:
        """M3: how much of the codes is kept whatever the second stage's latent variables say."""
        return self.m3

    def __str__(self) -> str:
        codes = default_names(self.code_names, "c", self.per_code.shape[1])
        rows = [(f"M{i + 1}", [*row, row.mean()]) for i, row in enumerate(self.per_code)]
        title = f"Conditioning measures ({self.num_samples} samples, {self.bins} bins; expected M2 > M1 > M3 >> M4)"
        return table(title, [*codes, "mean"], rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """M1 to M4 of every code as a 4 x D matrix, on ``ax`` or a new figure."""
        codes = default_names(self.code_names, "c", self.per_code.shape[1])
        return matrix_axes(self.per_code, ["M1", "M2", "M3", "M4"], codes, "Conditioning measures", ax)


def conditioning_measures(
    c_r: Any, c_y: Any, c_x: Any, c_zeps: Any, c_yeps: Any, bins: int = 20, *, code_names: Any = None
) -> ConditioningResult:
    """Whether a second stage keeps to the first stage's codes (MS-VAE paper, section 4, M1 to M4, with eq. 6).

    Each measure is :func:`nmi` of ``c_r`` with another array of codes, E the first stage's encoder (means) and G the
    second stage's decoder. M2 > M1: the second stage's detail makes images whose codes are nearer the originals'.
    M3 near M1: other Z do not change the codes. M4 near 0: Z alone does not carry them.

    Args:
        c_r: (N, D) E(X), codes of the images.
        c_y: (N, D) E(Y), codes of the first stage's reconstructions.
        c_x: (N, D) E(G(Y, Z)), codes of the second stage's reconstructions.
        c_zeps: (N, D) E(G(Y, eps)), Z replaced by noise.
        c_yeps: (N, D) E(G(eps, Z)), Y replaced by noise.
        bins, code_names: as in :func:`nmi`.

    Returns:
        :class:`ConditioningResult`.

    Raises:
        ValueError: as :func:`nmi`, naming the array.
    """
    codes = check_codes(c_r, "c_r")
    check_finite(codes, "c_r")
    others = {"c_y": c_y, "c_x": c_x, "c_zeps": c_zeps, "c_yeps": c_yeps}
    others = [_counterpart(values, codes, name) for name, values in others.items()]
    parts = [nmi(codes, values, bins, code_names=code_names) for values in others]
    return ConditioningResult(
        *(part.score for part in parts),
        per_code=np.stack([part.per_code for part in parts]),
        code_entropy=parts[0].code_entropy,
        bins=int(bins),
        num_samples=len(codes),
        code_names=parts[0].code_names,
    )
