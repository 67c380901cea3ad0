"""The generated regions of README.md (the newest machine, a line an op) and of docs/performance.md (everything)."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._scaling import OURS, Series, exponent
from benchmarks.tables.markdown import cell, duration, folded, milliseconds, rate, span, table, times
from benchmarks.tables.results import (
    COMPILED,
    EAGER,
    FLOOR,
    KEY,
    LAYOUT,
    Machine,
    Row,
    headlines,
    newest,
    users,
)

EMPTY = "No measurement has been committed yet.\n"
# Their cases begin with the model's name, and each model has a line of its own.
WHOLE_MODELS = {
    "training_step": "training step",
    "sae_step": "training step",
    "encode": "encode",
    "evaluate": "evaluate",
}
PATHS = {"demo": "Clone to demo report", "bench": "Clone to first benchmark table"}

Newcomers = list[tuple[dict, dict[str, list[tuple[str, float]]]]]
Profiles = list[tuple[dict, list[dict]]]


def readme(machines: Sequence[Machine], newcomers: Newcomers) -> str:
    parts = []
    for machine in newest(machines):
        parts.append(f"**{cell(machine.meta['device'])}** ({facts(machine.meta)})\n\n{headline_table(machine.rows)}")
        below = slower(machine.rows)
        parts += [f"{below} [Every case and every machine](docs/performance.md).\n"] if below else []
    parts += [first_minutes(newcomers[:1])] if newcomers else []
    return "\n".join(parts) or EMPTY


def performance(machines: Sequence[Machine], profiles: Profiles, newcomers: Newcomers, pictures: dict[str, str]) -> str:
    """``pictures``: file name -> what it shows, of the plots that there are."""
    parts = [first_minutes(newcomers)] if newcomers else []
    for machine in machines:
        parts.append(f"### {cell(machine.meta['device'])}\n\n{capital(facts(machine.meta))}.\n")
        parts += [group_table(machine.rows)] if machine.rows else []
        parts += [short_of(machine.rows), scaling(machine.series), default_allocator(machine)]
        if machine.rows:
            count = f"{len(machine.rows)} case" + ("s" if len(machine.rows) > 1 else "")
            parts.append(folded(f"Every case of {machine.meta['device']} ({count})", case_table(machine.rows)))
    parts += [where_the_time_goes(meta, found) for meta, found in profiles]
    parts += [f"![{shown}]({name})\n" for name, shown in pictures.items()]
    return "\n".join(part for part in parts if part) or EMPTY


def facts(meta: dict) -> str:
    """Commit, date, versions, load, allocator and what the machine can do at most."""
    found = [f"commit {str(meta['commit'])[:16]}"] if meta["commit"] else []
    found += [str(meta["date"]), f"torch {meta['torch']}"]
    found += [f"{name} {meta[name]}" for name in ("triton", "driver") if meta[name]]
    found += [f"{meta['threads']} threads"] if meta["threads"] else []
    found += [f"load average {meta['load_average']}"] if meta["load_average"] is not None else []
    found += [f"allocator {meta['allocator']}"] if meta["allocator"] else []
    ceilings = meta["ceilings"] or {}
    copy, exp = ceilings.get("copy_gb_per_s") or meta["copy_gb_per_s"], ceilings.get("exp_per_s")
    limits = [f"copy {rate(copy)} GB/s"] if copy else []
    limits += [f"exp {rate(exp / 1e9)}e9/s"] if exp else []
    return cell(", ".join(found) + (f"; ceilings: {', '.join(limits)}" if limits else ""))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def cases(members: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.key[1] for row in members))
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} cases)"


def over(members: Sequence[Row]) -> list[str]:
    """Cells: the ranges of the ratios over eager, torch.compile and each other provider."""
    others = dict.fromkeys(name for row in members for name in row.others if name not in EAGER + COMPILED)
    beyond = ", ".join(f"{name} {span([row.ratio((name,)) for row in members])}" for name in others)
    compiled = span([row.ratio(COMPILED) for row in members])
    return [span([row.ratio(EAGER) for row in members]), compiled, cell(beyond) or "–"]


def headline_table(rows: Sequence[Row]) -> str:
    """A line an op (a model for whole models): the ranges over every size, dtype and layout. Whole models first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(headlines(rows), key=lambda row: row.key[0] not in WHOLE_MODELS):
        if row.others:
            groups.setdefault((label(row), row.provider), []).append(row)
    body = [
        [cell(title(name, provider)), cell(cases(found)), *over(found)] for (name, provider), found in groups.items()
    ]
    return table(["op", "sizes", "over eager", "over torch.compile", "over others"], body, 2)


def label(row: Row) -> str:
    op, case, direction = row.key[:3]
    if op in WHOLE_MODELS:
        return f"{case.split()[0]} {WHOLE_MODELS[op]}"
    return op + {"both": ", forward + backward", "step": ""}.get(direction, f", {direction}")


def title(name: str, provider: str) -> str:
    return name if provider == "strucfast" else f"{name} ({provider})"


def group_table(rows: Sequence[Row]) -> str:
    """A line an op, dtype and layout with the range of ratios over the sizes."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in headlines(rows):
        groups.setdefault((label(row), row.provider, row.key[3], row.key[4]), []).append(row)
    body = [
        [cell(part) for part in (title(name, provider), cases(found), dtype, layout)] + over(found)
        for (name, provider, dtype, layout), found in groups.items()
    ]
    return table(["op", "case", "dtype", "layout", "over eager", "over torch.compile", "over others"], body, 4)


def compared(rows: Sequence[Row]) -> list[Row]:
    """Every case and direction that users see and that has eager, in either layout, or torch.compile beside it."""
    return [row for row in users(rows) if any(row.ratio(names) is not None for names in (EAGER, LAYOUT, COMPILED))]


def slower(rows: Sequence[Row], what: str = "") -> str:
    """How many cases lose to eager, in either layout, or torch.compile by more than noise; "" where none has them."""
    known = compared(rows)
    short = sum(row.short for row in known)
    said = (
        f"Below {FLOOR}x of eager (in either layout) or torch.compile{what}: {short or 'none'} of {len(known)} cases."
    )
    return said if known else ""


def short_of(rows: Sequence[Row], what: str = "") -> str:
    """The cases that ``slower`` counts, or that there is none."""
    said = slower(rows, what)
    short = [row for row in compared(rows) if row.short]
    if not short:
        return said and f"{said}\n"
    body = [
        [cell(part) for part in (*row.key, row.provider)]
        + [times(row.ratio(names), 3) for names in (EAGER, LAYOUT, COMPILED)]
        for row in short
    ]
    head = [*KEY, "provider", "over eager", "over channels_last", "over torch.compile"]
    return f"{said}\n\n{table(head, body, 6)}"


def case_table(rows: Sequence[Row]) -> str:
    """Every case with its spread, memory, throughput and every other baseline."""
    head = [*KEY, "provider", "median ms", "p20-p80 ms", "over eager", "over compile", "over others"]
    body = []
    for row in rows:
        result = row.ours
        others = [f"{name} {times(row.ratio((name,)))}" for name in row.others if name not in EAGER + COMPILED]
        body.append(
            [cell(part) for part in (*row.key, row.provider)]
            + [milliseconds(result["median_ms"]), f"{milliseconds(result['p20_ms'])}-{milliseconds(result['p80_ms'])}"]
            + [times(row.ratio(EAGER)), times(row.ratio(COMPILED)), cell(", ".join(others)) or "–"]
            + [memory(row), rate(result.get("gb_per_s"), result.get("share_of_copy"), "copy")]
            + [rate(result.get("gexp_per_s"), result.get("share_of_exp"), "exp")]
        )
    return table([*head, "extra MB", "GB/s", "1e9 exp/s"], body, 6)


def memory(row: Row) -> str:
    """Megabytes allocated by one call beyond its inputs, and as a share of eager's where both were measured."""
    ours = row.ours.get("extra_bytes")
    if ours is None:
        return "–"
    eager = row.others.get("eager", {}).get("extra_bytes")
    return f"{ours / 1e6:.1f}" + (f" ({ours / eager:.2f} of eager)" if eager else "")


def scaling(series: Sequence[Series]) -> str:
    """How cost grows: a line a series."""
    if not series:
        return ""
    body = []
    for one in series:
        values, ours = one.values, one.rows.get(OURS, {})
        compiled = next((name for name in COMPILED if name in one.rows), COMPILED[0])
        others = [name for name in one.rivals if name not in EAGER + COMPILED]
        wins = [f"{name} {one.wins_from(name)}" for name in others if one.wins_from(name) != "–"]
        ends = [milliseconds(ours[value]["median_ms"]) for value in (min(ours), max(ours))] if ours else ["–", "–"]
        kind = ", ".join(part for part in (one.fixed, one.direction, one.dtype, one.layout) if part)
        body.append(
            [cell(part) for part in (one.op, f"{one.axis} {values[0]:g} to {values[-1]:g}", kind)]
            + ends
            + [exponent(one.slope(name)) for name in (OURS, "eager", compiled)]
            + [one.wins_from("eager"), one.wins_from(compiled), cell(", ".join(wins)) or "–"]
            + [growing_memory(one, name) for name in (OURS, "eager")]
        )
    head = ["op", "over", "at", "ms at the first", "ms at the last", "slope", "slope of eager", "slope of compile"]
    head += [
        "wins over eager from",
        "over compile from",
        "over others from",
        "extra MB at the last (slope)",
        "of eager",
    ]
    said = (
        "How cost grows: the slope is the exponent of the time by the size (log-log, over the sizes within a factor of "
        "32 of the largest); a win is to be no more than 5% slower at that size and at every larger one.\n"
    )
    return f"{said}\n{table(head, body, 3)}"


def growing_memory(one: Series, provider: str) -> str:
    """Megabytes allocated at the largest size, and the exponent of their growth."""
    known = {value: row["extra_bytes"] for value, row in one.rows.get(provider, {}).items() if row.get("extra_bytes")}
    if not known:
        return "–"
    return f"{known[max(known)] / 1e6:.3g} ({exponent(one.slope(provider, 'extra_bytes'))})"


def default_allocator(machine: Machine) -> str:
    """The same cases without memory kept for reuse, beside the warm ones."""
    if not machine.default:
        return ""
    warm = {(row.key, row.provider): row for row in machine.rows}
    body = []
    for row in machine.default:
        beside = warm.get((row.key, row.provider))
        pairs = [(beside.ratio(names) if beside else None, row.ratio(names)) for names in (EAGER, COMPILED)]
        body.append(
            [cell(part) for part in row.key]
            + [milliseconds(beside.ours["median_ms"] if beside else None), milliseconds(row.ours["median_ms"])]
            + [times(ratio) for pair in pairs for ratio in pair]
        )
    head = [*KEY, "ms, warm", "ms, default", "over eager, warm", "default", "over compile, warm", "default"]
    said = f"With glibc's default allocator, beside the warm one ({facts(machine.default_meta)}):\n"
    below = short_of(machine.default, " with the default allocator")
    return f"{said}\n{table(head, body, 5)}" + (f"\n{below}" if below else "")


def where_the_time_goes(meta: dict, found: Sequence[dict]) -> str:
    """Where a training step's time goes: a table a model and dtype, a column a provider."""
    parts = [f"### Where a training step's time goes: {cell(meta['device'])}\n"]
    groups: dict[tuple[str, str], list[dict]] = {}
    for profile in found:
        groups.setdefault((str(profile["model"]), str(profile["dtype"])), []).append(profile)
    for (model, dtype), members in groups.items():
        names = dict.fromkeys(part["name"] for profile in members for part in profile["parts"])
        shares = [{part["name"]: part for part in profile["parts"]} for profile in members]
        body = [[cell(name), *(share(parts_of.get(name)) for parts_of in shares)] for name in names]
        body.append(["whole step", *(f"{milliseconds(profile['step_ms'])} ms" for profile in members)])
        head = [f"{model}, {dtype}", *(f"{profile['provider']} ({profile['layout']})" for profile in members)]
        parts.append(table([cell(name) for name in head], body, 1))
    return "\n".join(parts)


def share(part: dict | None) -> str:
    return "–" if part is None else f"{milliseconds(part['ms'])} ms ({100 * part['share']:.0f}%)"


def first_minutes(newcomers: Newcomers) -> str:
    """A newcomer's path, in a line each: the whole and its steps."""
    lines = []
    for meta, paths in newcomers:
        for path, steps in paths.items():
            parts = ", ".join(f"{cell(name)} {duration(seconds)}" for name, seconds in steps)
            whole = duration(sum(seconds for _, seconds in steps))
            device = cell(f"{meta['device']}, {meta['date']}")
            lines.append(f"- {PATHS.get(path, cell(path))}: **{whole}** ({parts}; {device}).")
    return "\n".join(lines) + "\n"
