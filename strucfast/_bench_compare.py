"""Two files of benchmark results against each other: which ratios over a baseline fell."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEY = ("op", "case", "direction", "dtype", "layout")
_TIMES = ("median_ms", "p20_ms", "p80_ms")
_OURS = ("strucfast", "cpp", "triton", "cuda")


@dataclass(frozen=True)
class Change:
    """One case in both files: our ratio over the baseline (median, and its range by p20 and p80), before and after."""

    name: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]

    @property
    def change(self) -> float:
        """Relative change of the median ratio; -0.1: ten percent less of an advantage."""
        return self.after[0] / self.before[0] - 1

    @property
    def apart(self) -> bool:
        """Whether the two ranges do not overlap."""
        return self.after[2] < self.before[1] or self.after[1] > self.before[2]


@dataclass(frozen=True)
class Comparison:
    changes: list[Change]
    threshold: float
    only_before: int
    only_after: int
    without_baseline: int

    @property
    def regressions(self) -> list[Change]:
        return [c for c in self.changes if c.change < -self.threshold and c.apart]

    def __str__(self) -> str:
        groups = {
            "REGRESSION": self.regressions,
            "slower, but within the spread": [c for c in self.changes if c.change < -self.threshold and not c.apart],
            "better": [c for c in self.changes if c.change > self.threshold and c.apart],
        }
        lines = [
            f"{kind:<29} {c.before[0]:8.2f}x -> {c.after[0]:8.2f}x  {100 * c.change:+6.1f}%  {c.name}"
            for kind, found in groups.items()
            for c in sorted(found, key=lambda c: c.change)
        ]
        lines.append(
            f"{len(self.changes)} cases compared at {100 * self.threshold:g}%: {len(self.regressions)} regressions;"
            f" {self.only_before} only in the first file, {self.only_after} only in the second,"
            f" {self.without_baseline} without a baseline"
        )
        return "\n".join(lines)


def compare(before: Path, after: Path, threshold: float = 0.05, baseline: str = "eager") -> Comparison:
    """Compare two result files (schema: benchmarks/results/README.md) by our ratios over ``baseline``.

    A regression is a median ratio that fell by more than ``threshold`` while the ranges of the ratios, from the p20 and
    p80 times of both providers, do not overlap.

    Raises:
        ValueError: a threshold that is no share, a file that is none of results, files of different allocators (page
            faults change the ratios by as much as a kernel does), or no case in common.
        OSError: a file that cannot be read.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"--threshold: expected a share in [0, 1), got {threshold}")
    contents = [_content(path) for path in (before, after)]
    allocators = [_allocator(content["meta"]) for content in contents]
    if None not in allocators and allocators[0] != allocators[1]:
        raise ValueError(
            f"{before} was measured with the {allocators[0]} allocator and {after} with the {allocators[1]} one: their"
            f" ratios say nothing about each other; compare two files of one allocator"
        )
    first, bare_first = _ratios(before, contents[0]["results"], baseline)
    second, bare_second = _ratios(after, contents[1]["results"], baseline)
    common = [key for key in first if key in second]
    if not common:
        raise ValueError(f"{before} and {after} have no case in common with a baseline {baseline!r}")
    changes = [Change(" ".join(key), first[key], second[key]) for key in common]
    counts = len(first) - len(common), len(second) - len(common), len(bare_first | bare_second)
    return Comparison(changes, threshold, *counts)


def _allocator(meta: Any) -> str | None:
    """The first word of what was in force: "warm", "default" or the caching one of a GPU; None where it is not said."""
    said = meta.get("allocator") if isinstance(meta, dict) else None
    return str(said).split()[0] if str(said or "").strip() else None


def _ratios(
    path: Path, rows: list[Any], baseline: str
) -> tuple[dict[tuple[str, ...], tuple[float, float, float]], set]:
    """(case, provider) -> ratio and its range; and the cases of ours that have no baseline."""
    groups: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    for place, row in enumerate(rows):
        key, provider, times = _checked(row, f"{path}: results[{place}]")
        if provider in groups.setdefault(key, {}):
            raise ValueError(f"{path}: results[{place}] repeats {provider} for {' '.join(key)}")
        groups[key][provider] = times
    ratios, bare = {}, set()
    for key, group in groups.items():
        for provider, ours in group.items():
            if provider.replace(",", " ").split()[0] not in _OURS:
                continue
            base = group.get(baseline)
            # bare kernels have no launch costs, so a ratio over eager would flatter them
            if base is None or provider.endswith(" kernel"):
                bare.add((*key, provider))
                continue
            low, high = base["p20_ms"] / ours["p80_ms"], base["p80_ms"] / ours["p20_ms"]
            ratios[*key, provider] = (base["median_ms"] / ours["median_ms"], low, high)
    return ratios, bare


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a whole JSON file ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), list) or "meta" not in content:
        raise ValueError(f"{path}: expected benchmark results, an object with 'meta' and a list 'results'")
    return content


def _checked(row: Any, where: str) -> tuple[tuple[str, ...], str, dict[str, float]]:
    missing = [n for n in (*_KEY, "provider", *_TIMES) if not isinstance(row, dict) or n not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    for name in _TIMES:
        value = row[name]
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not 0 < value < math.inf:
            raise ValueError(f"{where}: {name} must be a positive number, got {value!r}")
    provider = str(row["provider"])
    if not provider.strip(" ,"):
        raise ValueError(f"{where}: provider must be a name, got {provider!r}")
    return tuple(str(row[name]) for name in _KEY), provider, {name: float(row[name]) for name in _TIMES}
