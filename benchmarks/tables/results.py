"""Result files read and checked; the schema of each is in benchmarks/results/README.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import _scaling

META = ("device", "date", "torch")
OPTIONAL_META = ("commit", "triton", "driver", "threads", "load_average", "allocator", "ceilings", "copy_gb_per_s")
KEY = ("op", "case", "direction", "dtype", "layout")
DIRECTIONS = ("forward", "backward", "both", "step")
# Optional numbers of a row.
QUANTITIES = ("extra_bytes", "gb_per_s", "share_of_copy", "gexp_per_s", "share_of_exp")
OURS = ("strucfast", "cpp", "triton", "cuda")
EAGER, COMPILED = ("eager",), ("torch.compile", "compile")
# Eager in another layout, where a file has that apart.
LAYOUT = ("channels_last",)
# Below this, a ratio over one of these is a loss and not noise.
FLOOR = 0.95
DEFAULT_ALLOCATOR = "-default-allocator"


class BadResults(Exception):
    """A result file or a page that cannot be used; the text names the file and the field."""


@dataclass
class Row:
    """One measured case: our time beside every other provider's."""

    key: tuple[str, ...]
    provider: str
    ours: dict
    others: dict[str, dict] = field(default_factory=dict)

    def baseline(self, names: tuple[str, ...]) -> float | None:
        return next((self.others[name]["median_ms"] for name in names if name in self.others), None)

    def ratio(self, names: tuple[str, ...]) -> float | None:
        baseline = self.baseline(names)
        return None if baseline is None else baseline / self.ours["median_ms"]

    @property
    def short(self) -> bool:
        """Slower than eager, in either layout, or torch.compile by more than noise."""
        ratios = [self.ratio(names) for names in (EAGER, LAYOUT, COMPILED)]
        return any(ratio is not None and ratio < FLOOR for ratio in ratios)


@dataclass
class Machine:
    """One machine's results: cases, scaling series, and the same cases under glibc's unchanged allocator."""

    meta: dict
    rows: list[Row]
    series: list[_scaling.Series]
    default: list[Row] = field(default_factory=list)
    default_meta: dict | None = None

    @property
    def gpu(self) -> bool:
        return bool(self.meta["driver"])


def is_ours(provider: str) -> bool:
    """ "strucfast", a backend's name, or one of them with more behind it ("strucfast, CUDA graph", "cuda kernel")."""
    return re.split("[ ,]", provider)[0] in OURS


def is_bare_kernel(provider: str) -> bool:
    """Timed without autograd and launches, so it is compared with the copy bandwidth and with nothing else."""
    return is_ours(provider) and provider.endswith(" kernel")


def users(rows: Iterable[Row]) -> list[Row]:
    """What users see of each op: "strucfast" and its variants where there are such, else each backend."""
    whole = [row for row in rows if not is_bare_kernel(row.provider)]
    default = {row.key[0] for row in whole if row.provider.startswith("strucfast")}
    return [row for row in whole if row.provider.startswith("strucfast") or row.key[0] not in default]


def headlines(rows: Iterable[Row]) -> list[Row]:
    """Of what users see: forward and backward together (or steps) where there is that."""
    seen = users(rows)
    together = {row.key[0] for row in seen if row.key[2] in ("both", "step")}
    # Grouped by op: results of one op may have been merged into a file at different times.
    return [
        row
        for op in dict.fromkeys(row.key[0] for row in seen)
        for row in seen
        if row.key[0] == op and (op not in together or row.key[2] in ("both", "step"))
    ]


def load(path: Path) -> tuple[dict, list[Row], list[_scaling.Series]]:
    """One result file as (meta, cases in the order of first mention, scaling series)."""
    content = _object(path, "results", list)
    meta = _meta(path, content["meta"])
    groups: dict[tuple[str, ...], dict[str, dict]] = {}
    points = []
    for place, result in enumerate(content["results"]):
        where = f"{path.name}: results[{place}]"
        _lacks(where, result, (*KEY, "provider", "median_ms", "p20_ms", "p80_ms"))
        if result["direction"] not in DIRECTIONS:
            raise BadResults(f"{where}: direction must be one of {', '.join(DIRECTIONS)}, got {result['direction']!r}")
        for name in ("median_ms", "p20_ms", "p80_ms"):
            _positive(where, name, result[name])
        for name in QUANTITIES:
            if result.get(name) is not None:
                _number(where, name, result[name])
        group = groups.setdefault(tuple(str(result[name]) for name in KEY), {})
        if result["provider"] in group:
            raise BadResults(
                f"{where} repeats {result['provider']} for {' '.join(map(str, (result[name] for name in KEY)))}"
            )
        group[result["provider"]] = result
        if "axis" in result:
            points.append(result)
    try:
        series = _scaling.series_of(points)
    except ValueError as error:
        raise BadResults(f"{path.name}: {error}") from error
    return meta, _rows(groups), series


def _rows(groups: Mapping[tuple[str, ...], Mapping[str, dict]]) -> list[Row]:
    """One row for each provider of ours; points of a scaling series are no cases."""
    rows = []
    for key, group in groups.items():
        if any("axis" in result for result in group.values()):
            continue
        others = {name: result for name, result in group.items() if not is_ours(name)}
        for name, result in group.items():
            if is_ours(name):
                rows.append(Row(key, name, result, {} if is_bare_kernel(name) else others))
    return rows


def machines(folder: Path) -> list[Machine]:
    """Every machine of the folder, the newest first; of one day, the one with more ops first."""
    found: dict[str, Machine] = {}
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem.endswith(DEFAULT_ALLOCATOR), path.name))
    for path in paths:
        meta, rows, series = load(path)
        if not path.stem.endswith(DEFAULT_ALLOCATOR):
            found[path.stem] = Machine(meta, rows, series)
            continue
        if str(meta["allocator"]) != "default":
            raise BadResults(f"{path.name}: meta.allocator must be 'default' in this file, got {meta['allocator']!r}")
        beside = path.stem.removesuffix(DEFAULT_ALLOCATOR)
        if beside not in found:
            raise BadResults(f"{path.name}: there is no {beside}.json with the figures of the warm allocator")
        found[beside].default, found[beside].default_meta = rows, meta

    def age(machine: Machine) -> tuple:
        return str(machine.meta["date"]), len({row.key[0] for row in machine.rows})

    return sorted(found.values(), key=age, reverse=True)


def newest(found: Iterable[Machine]) -> list[Machine]:
    """The newest CPU and the newest GPU, as far as there are any; ``found`` is in order of age."""
    first: dict[bool, Machine] = {}
    for machine in found:
        first.setdefault(machine.gpu, machine)
    return list(first.values())


def profiles(folder: Path) -> list[tuple[dict, list[dict]]]:
    """Of each file: meta and where the time of one training step goes."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = _object(path, "profiles", list)
        for place, profile in enumerate(content["profiles"]):
            where = f"{path.name}: profiles[{place}]"
            _lacks(where, profile, ("model", "dtype", "layout", "provider", "step_ms", "parts"))
            _positive(where, "step_ms", profile["step_ms"])
            if not isinstance(profile["parts"], list) or not profile["parts"]:
                raise BadResults(f"{where}: parts must be a list of parts, got {profile['parts']!r}")
            for number, part in enumerate(profile["parts"]):
                _lacks(f"{where}.parts[{number}]", part, ("name", "ms", "share"))
                for name in ("ms", "share"):
                    _number(f"{where}.parts[{number}]", name, part[name])
        found.append((_meta(path, content["meta"], ("device", "date")), content["profiles"]))
    return found


def newcomers(folder: Path) -> list[tuple[dict, dict[str, list[tuple[str, float]]]]]:
    """Of each file, the newest first: meta and the steps of each path, (name, seconds)."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = _object(path, "steps", list)
        paths: dict[str, list[tuple[str, float]]] = {}
        for place, step in enumerate(content["steps"]):
            where = f"{path.name}: steps[{place}]"
            _lacks(where, step, ("path", "name", "seconds"))
            _number(where, "seconds", step["seconds"])
            paths.setdefault(str(step["path"]), []).append((str(step["name"]), step["seconds"]))
        found.append((_meta(path, content["meta"], ("device", "date")), paths))
    return sorted(found, key=lambda pair: str(pair[0]["date"]), reverse=True)


def _object(path: Path, key: str, kind: type) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadResults(f"{path.name}: cannot be read as JSON: {error}") from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("meta"), dict)
        or not isinstance(content.get(key), kind)
    ):
        raise BadResults(f"{path.name}: expected an object with 'meta' (an object) and '{key}' (a list)")
    return content


def _meta(path: Path, meta: dict, required: tuple[str, ...] = META) -> dict:
    missing = [name for name in required if name not in meta]
    if missing:
        raise BadResults(f"{path.name}: meta lacks {', '.join(missing)}")
    ceilings = meta.get("ceilings")
    if ceilings is not None:
        _lacks(f"{path.name}: meta.ceilings", ceilings, ("copy_gb_per_s", "exp_per_s"))
        for name in ("copy_gb_per_s", "exp_per_s"):
            _positive(f"{path.name}: meta.ceilings", name, ceilings[name])
    return {**dict.fromkeys(OPTIONAL_META), **meta}


def _lacks(where: str, content: object, names: tuple[str, ...]) -> None:
    if not isinstance(content, dict):
        raise BadResults(f"{where} must be an object, got {content!r}")
    missing = [name for name in names if name not in content]
    if missing:
        raise BadResults(f"{where} lacks {', '.join(missing)}")


def _number(where: str, name: str, value: object) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (math.isfinite(value) and value >= 0):
        raise BadResults(f"{where}: {name} must be a number, zero or more, got {value!r}")


def _positive(where: str, name: str, value: object) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (math.isfinite(value) and value > 0):
        raise BadResults(f"{where}: {name} must be a positive number, got {value!r}")
