"""Which groups a whole run must report, and how long each file takes: a benchmark that got lost is noticed.

A group is an op and a direction, and for scaling series what grows: "modulate both", "modulate both over batch".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import _timing
from benchmarks._passes import DIRECTIONS


@dataclass(frozen=True)
class Share:
    """Of one benchmark file: seconds on two cores once torch.compile has compiled, and the groups that it reports."""

    seconds: float
    groups: tuple[str, ...]
    # Those that only STRUCFAST_FULL=1 has.
    more: tuple[str, ...] = ()


def _each(op: str, directions: Iterable[str] = DIRECTIONS) -> tuple[str, ...]:
    return tuple(f"{op} {direction}" for direction in directions)


def _over(axis: str, *ops: str, directions: Iterable[str] = ("forward", "both")) -> tuple[str, ...]:
    return tuple(f"{group} over {axis}" for op in ops for group in _each(op, directions))


# Seconds before the first test: collection, and torch.compile's kernels on two cores from a cold cache.
BEFORE = 130
EXPECTED: dict[str, Share] = {
    "bench_allocator": Share(
        22, tuple(f"{op} both, default allocator" for op in ("modulate", "adain", "group_norm_modulate"))
    ),
    "bench_modulate": Share(20, _each("modulate")),
    "bench_group_norm_modulate": Share(30, _each("group_norm_modulate")),
    "bench_adain": Share(55, _each("adain")),
    "bench_str_tfm": Share(10, _each("str_tfm")),
    "bench_lp_nested": Share(10, _each("lp_nested_log_prob")),
    "bench_pairwise": Share(9, (*_each("mmd", ("forward", "both")), "mmd_dimwise both", "hsic both")),
    "bench_render": Share(4, ("render_shapes3d forward", "render_dsprites forward")),
    "bench_aggregate": Share(
        44, (*_each("aggregate", ("forward", "both")), *_each("kl_terms")), ("aggregate backward",)
    ),
    "bench_boosting": Share(28, ("dci forward",)),
    "bench_explicitness": Share(9, ("explicitness forward",)),
    "bench_histogram": Share(12, ("mig forward",)),
    "bench_scaling": Share(
        57,
        (
            *_over(
                "batch", "aggregate", "mmd", "hsic", "str_tfm", "lp_nested_log_prob", "modulate", "group_norm_modulate"
            ),
            *_over("latent", "aggregate", "mmd_dimwise", "lp_nested_log_prob", "str_tfm"),
            *_over("channels", "modulate", "group_norm_modulate", "adain", "str_tfm"),
            *_over("samples", "lp_nested_log_prob"),
            *_over(
                "samples", "mig", "dci", "explicitness", "render_shapes3d", "render_dsprites", directions=("forward",)
            ),
        ),
    ),
    "bench_training_step": Share(60, ("training_step step",)),
    "bench_encode": Share(15, ("encode forward",)),
    "bench_evaluate": Share(12, ("evaluate forward",)),
}


def group_of(row: Mapping) -> str:
    """The group of one row of results."""
    suffix = f" over {row['axis']}" if "axis" in row else ""
    return f"{row['op']} {row['direction']}{suffix}" + (f", {row['allocator']} allocator" if "allocator" in row else "")


@dataclass(frozen=True)
class Count:
    """What of ``expected`` ran. ``excused``: group -> the reason that its file gave for leaving tests out."""

    ran: tuple[str, ...]
    excused: dict[str, str]
    missing: tuple[str, ...]
    undeclared: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.missing and not self.undeclared

    def lines(self) -> list[str]:
        total = len(self.ran) + len(self.excused) + len(self.missing)
        found = [f"{len(self.ran)} of {total} groups ran"]
        found += [f"left out: {group}: {reason}" for group, reason in self.excused.items()]
        found += [
            f"MISSING: {group}: no comparison, and the skips of its file do not say why" for group in self.missing
        ]
        found += [f"UNDECLARED: {group}: add it to benchmarks/_groups.py" for group in self.undeclared]
        return found


def count(
    groups: Iterable[str], skips: Mapping[str, Sequence[str | None]], expected: Mapping[str, Share] | None = None
) -> Count:
    """``skips``: file's stem -> for each of its tests the reason of its skip, empty for none stated, None if it ran.

    Only a file whose tests were all skipped, each with a reason, is excused: one that ran may have lost a group.
    """
    expected = EXPECTED if expected is None else expected
    found, excused, missing = set(groups), {}, []
    declared = {
        group: file
        for file, share in expected.items()
        for group in (*share.groups, *(share.more if _timing.full() else ()))
    }
    for group, file in declared.items():
        if group not in found:
            reasons = skips.get(file, ())
            if reasons and all(reasons):
                excused[group] = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
            else:
                missing.append(group)
    ran = tuple(group for group in declared if group in found)
    return Count(ran, excused, tuple(missing), tuple(sorted(found - declared.keys())))


def seconds_left(done: Mapping[str, tuple[int, float]], todo: Mapping[str, int]) -> float:
    """``done``: file -> (tests, seconds so far); ``todo``: file -> tests still to run.

    Declared seconds of a file are shared by its tests evenly, and scaled by how this machine did on those so far.
    """
    tests = {file: done.get(file, (0, 0.0))[0] + todo.get(file, 0) for file in {*done, *todo}}
    plan = sum(count * seconds_of_test(file, tests) for file, (count, _) in done.items())
    spent = sum(seconds for _, seconds in done.values())
    # The plan counts like 20 seconds of experience, so that the first tests do not swing the estimate.
    scale = (spent + 20.0) / (plan + 20.0)
    return scale * sum(count * seconds_of_test(file, tests) for file, count in todo.items())


def seconds_of_test(file: str, tests: Mapping[str, int]) -> float:
    """``tests``: file -> how many tests it has; 2 seconds for one in a file that declares none."""
    return EXPECTED[file].seconds / tests[file] if file in EXPECTED and tests.get(file) else 2.0
