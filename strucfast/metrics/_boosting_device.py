"""Gradient boosting of tensors on a GPU: what _boosting.py does, with features, trees and predictions left there."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ._boosting import _BY_VALUE, _SAME, Boosted

# Of the kernel.
MOST_FEATURES, MOST_ROWS = 1024, 1 << 24


def takes(codes: torch.Tensor) -> bool:
    """Whether the kernel is made for so many rows and features."""
    return codes.shape[1] <= MOST_FEATURES and codes.shape[0] <= MOST_ROWS


def bin_features(values: torch.Tensor, max_bins: int | None) -> tuple[torch.Tensor, ...]:
    """Of (N, F) float32 values, each (F, N): rows by value with the sign bit at the ends of bins, ranks, and the least
    and greatest value of each bin."""
    ordered, order = values.t().contiguous().sort(dim=1, stable=True)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:].double() > ordered[:, :-1].double() + _SAME
    if max_bins is not None:
        for f in (fresh.sum(dim=1) > max_bins).nonzero()[:, 0].tolist():
            fresh[f] = _merge(fresh[f], ordered[f], max_bins)
    places = fresh.cumsum(dim=1) - 1
    ranks = torch.empty_like(places).scatter_(1, order, places)
    ends = torch.ones_like(fresh)
    ends[:, :-1] = fresh[:, 1:]
    low, high = torch.zeros_like(ordered), torch.zeros_like(ordered)
    for bounds, at in ((low, fresh), (high, ends)):
        feature, position = at.nonzero(as_tuple=True)
        bounds[feature, places[feature, position]] = ordered[feature, position]
    # Behind the last bin nothing is left to split off.
    ends[:, -1] = False
    return torch.where(ends, order - (1 << 31), order).int(), ranks.int(), low, high


def _merge(fresh: torch.Tensor, ordered: torch.Tensor, max_bins: int) -> torch.Tensor:
    """As on the host: keep the starts of values that come first at or after each of ``max_bins`` steps."""
    starts = fresh.nonzero()[:, 0]
    values = ordered.double()
    share = (values - values[0]) / (values[-1] - values[0])
    ranks, steps = (torch.arange(n, dtype=torch.float64, device=fresh.device) / n for n in (len(fresh), max_bins))
    wanted = torch.searchsorted((1 - _BY_VALUE) * ranks + _BY_VALUE * share, steps)
    kept = torch.zeros_like(fresh)
    kept[starts[torch.searchsorted(starts, wanted).clamp(max=len(starts) - 1)]] = True
    kept[0] = True
    return kept


def boost(
    codes: torch.Tensor,
    factors: torch.Tensor,
    test_codes: torch.Tensor,
    *,
    continuous: bool = False,
    max_bins: int | None = None,
    rounds: int = 100,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Boosted:
    """As :func:`._boosting.boost`, of tensors on one GPU; ``train`` and ``test`` are tensors there."""
    order, ranks, low, high = bin_features(codes.float(), max_bins)
    first, labels, wanted = None, None, None
    if continuous:
        wanted = factors.t().float()
        initial = factors.double().mean(dim=0).float()
        targets = [slice(k, k + 1) for k in range(factors.shape[1])]
        factor = torch.full_like(initial, learning_rate)
    else:
        labels = factors.t().int()
        counts = [torch.bincount(column) for column in labels]
        initial = (torch.cat(counts).double() / len(codes)).log().float()
        starts = [0, *itertools.accumulate(len(c) for c in counts)]
        first = torch.tensor(starts, dtype=torch.int32).to(codes.device)
        targets = [slice(begin, end) for begin, end in itertools.pairwise(starts)]
        # Friedman's (K - 1) / K of the multinomial leaf; the learning rate rides along.
        steps = [np.float32(learning_rate) * np.float32(len(c) - 1) / np.float32(len(c)) for c in counts]
        factor = torch.from_numpy(np.repeat(np.float32(steps), [len(c) for c in counts])).to(codes.device)
    raw, test_raw = (initial[:, None].expand(-1, len(rows)) for rows in (codes, test_codes))
    gains, chosen, raw, test_raw = torch.ops.strucfast._boost_cuda(
        order, ranks, low, high, raw, test_raw, factor, labels, first, wanted, test_codes.t().float(), rounds, seed
    )
    if not bool(raw.isfinite().all() & test_raw.isfinite().all()):
        raise ValueError("boosting: a sum is not finite")
    gains, chosen = gains.cpu().numpy().astype(np.float64), chosen.cpu().numpy()
    importance = np.zeros((codes.shape[1], len(targets)))
    for k, target in enumerate(targets):
        split = chosen[:, target] >= 0
        np.add.at(importance[:, k], chosen[:, target][split], gains[:, target][split])
    total = importance.sum(axis=0)
    importance = importance / np.where(total > 0, total, 1.0)
    return Boosted(importance, [raw[t].t() for t in targets], [test_raw[t].t() for t in targets])
