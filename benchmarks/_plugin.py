"""The pytest plugin behind `pytest --benchmark`: refuses wrong ops, keeps figures, counts groups, prints the ratios."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import _ceilings, _correctness, _groups, _peers, _precompile, _results, _scaling, _summary, _timing

# Set by a run for a child of its own: ops are checked and inductor's cache is full.
PREPARED = "STRUCFAST_PREPARED"


class Run:
    """One run of the benchmarks; ``config`` is pytest's."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.comparisons: list[list[dict]] = []
        self.whole = _is_whole(config)
        self.allocator = _timing.warm_allocator()
        self.save_to: Path | None = None
        if config.getoption("--save-results"):
            self.save_to = _results.results_path(allocator=self.allocator)
            try:
                _results.check_writable(self.save_to)
            except _results.CannotSave as error:
                raise pytest.UsageError(str(error)) from None
        self._skips: dict[str, dict[str, str | None]] = {}
        self._todo: Counter[str] = Counter()
        self._done: dict[str, tuple[int, float]] = {}
        self._began = 0.0

    def add(self, rows: list[dict], about: dict | None = None) -> None:
        """Keep the rows of one comparison: for the table, and in the file of results where that is wanted.

        ``about`` is the meta of another process that measured them.
        """
        if self.save_to is not None:
            known = about or _results.meta(allocator=self.allocator, ceilings=_ceilings.measure())
            _results.record(_results.results_path(allocator=known["allocator"]), known, rows, whole=True)
        # The table says where rows come from; in the files the meta does.
        if about is not None:
            rows = [row | {"allocator": about["allocator"]} for row in rows]
        self.comparisons.append(rows)

    def ops(self) -> list[str]:
        """What the collected files report and has correctness tests: these run in one go."""
        from strucfast.ops import _registry

        groups = [g for file in self._todo if file in _groups.EXPECTED for g in _groups.EXPECTED[file].groups]
        named = dict.fromkeys(group.split()[0] for group in groups)
        tested = {*_registry.names(), *_correctness.WHOLE}
        return [op for op in named if _correctness.NAMES.get(op, op) in tested]

    def pytest_collection_finish(self, session):
        self._todo = Counter(_file(item.nodeid) for item in session.items)
        if not self.config.option.collectonly and not _precompile.is_child():
            self._prepare(session.items)
        self._began = time.perf_counter()

    def _prepare(self, items: list[pytest.Item]) -> None:
        marked = [item for item in items if item.get_closest_marker(_precompile.MARK)]
        # The longest first, so that the cores end together.
        marked.sort(key=lambda item: -_groups.seconds_of_test(_file(item.nodeid), self._todo))
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            # Progress lines name each test; a heading per file would stand between them.
            reporter.showfspath = False
        if len(marked) > 3 and PREPARED not in os.environ:
            began = time.perf_counter()
            problem = _precompile.compile_all(marked, self.config.rootpath)
            if reporter is not None:
                text = f"torch.compile: cache filled in {time.perf_counter() - began:.0f} s before anything is timed"
                reporter.write_line(text + (f", not for all:\n{problem}" if problem else ""))

    def pytest_runtest_setup(self, item):
        if _precompile.is_child() and not _precompile.claim(item):
            pytest.skip("another process compiles it")

    def pytest_deselected(self, items):
        self.whole = False

    def pytest_runtest_logreport(self, report):
        file = _file(report.nodeid)
        reasons = self._skips.setdefault(file, {})
        reasons.setdefault(report.nodeid, None)
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ").strip()
            reasons[report.nodeid] = "" if reason in ("Skipped", "unconditional skip") else reason
        if report.when == "teardown":
            now = time.perf_counter()
            tests, seconds = self._done.get(file, (0, 0.0))
            self._done[file] = (tests + 1, seconds + now - self._began)
            self._began = now
            self._todo[file] -= 1
            self._progress(report)

    def pytest_report_teststatus(self, report, config):
        # The progress lines stand in for dots.
        return ("passed", "", "PASSED") if report.passed and report.when == "call" else None

    def _progress(self, report: pytest.TestReport) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or self.config.get_verbosity() < 0 or _precompile.is_child():
            return
        done, todo = sum(tests for tests, _ in self._done.values()), sum(self._todo.values())
        left = _groups.seconds_left(self._done, self._todo)
        text = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
        reporter.write_line(f"[{done}/{done + todo}, {text}] {report.nodeid.rpartition('/')[2]}")

    def count(self) -> _groups.Count | None:
        """None where only a part of the benchmarks was asked for."""
        if not self.whole:
            return None
        skips = {file: list(reasons.values()) for file, reasons in self._skips.items()}
        return _groups.count((_groups.group_of(row) for rows in self.comparisons for row in rows), skips)

    def pytest_sessionfinish(self, session, exitstatus):
        found = None if session.config.option.collectonly else self.count()
        if (
            found is not None
            and not found.ok
            and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.config.option.collectonly:
            return
        if self.comparisons:
            terminalreporter.section(f"speed, interleaved medians ({len(self.comparisons)} comparisons)")
            lines = _summary.table(self.comparisons) + _summary.losses(self.comparisons)
            ceilings = _ceilings.measure()
            lines.append(
                f"ceilings: copy {ceilings['copy_gb_per_s']:.1f} GB/s ({ceilings['copy_by']}), exp"
                f" {ceilings['exp_per_s'] / 1e9:.2f}e9/s ({ceilings['exp_by']}), {ceilings['threads']} threads;"
                f" allocator {self.allocator}; load average {_results.meta()['load_average']}"
            )
            for line in lines + _peers.lines():
                terminalreporter.write_line(line)
            if growth := _scaling.report([row for rows in self.comparisons for row in rows]):
                terminalreporter.section("how cost grows")
                for line in growth:
                    terminalreporter.write_line(line)
        found = self.count()
        if found is not None:
            terminalreporter.section("groups")
            for line in found.lines():
                terminalreporter.write_line(line, red=line.startswith(("MISSING", "UNDECLARED")))


def _file(nodeid: str) -> str:
    return Path(nodeid.partition("::")[0]).stem


def _is_whole(config: pytest.Config) -> bool:
    folder = config.rootpath / "benchmarks"
    chosen = [Path(config.invocation_params.dir, arg).resolve() for arg in config.args]
    narrowed = ("keyword", "markexpr", "lf", "failedfirst", "deselect", "ignore", "ignore_glob", "stepwise")
    return chosen == [folder] and not any(getattr(config.option, name, None) for name in narrowed)


@pytest.fixture
def compare(request, benchmark):
    """compare(op, case, direction, dtype, layout, providers, ...) times providers interleaved; ours is "strucfast".

    ``check``: True refuses figures while the op's correctness tests fail; names of ops refuse while theirs do.
    ``extra``: provider -> further fields of its row; ``once``: provider -> milliseconds, measured by the caller a
    single time because it is too slow to repeat. ``moved`` bytes and ``exps`` evaluations of exp are what the op needs
    at least; rows of ours say which share of the machine's ceiling that is. ``axis``: ("batch", 512) for a point of a
    scaling series. Forward and backward together ("both") also get the bytes that one call allocates.
    """
    run: Run = request.config.strucfast_run

    def measure(
        op,
        case,
        direction,
        dtype,
        layout,
        providers,
        check=True,
        seconds=1.0,
        extra=None,
        once=None,
        moved=None,
        exps=None,
        axis=None,
    ):
        if _precompile.is_child():
            if "torch.compile" in providers:
                providers["torch.compile"]()
            pytest.skip("compiled")
        if PREPARED not in os.environ:
            for name in (op,) if check is True else check or ():
                _correctness.refuse_if_wrong(name, run.ops())
        # The usual run took 9:59 on two cores with whole turns.
        stats = _timing.compare(providers, seconds=seconds if _timing.full() else 0.6 * seconds)
        fields = {name: dict((extra or {}).get(name, {})) for name in providers}
        if direction == "both":
            for name, call in providers.items():
                fields[name].setdefault("extra_bytes", _timing.allocated_bytes(call, warm=True))
        stats |= {name: _timing.Stats(ms, ms, ms) for name, ms in (once or {}).items()}
        rows = _results.rows_of(op, case, direction, dtype, layout, stats)
        for row in rows:
            row |= fields.get(row["provider"], (extra or {}).get(row["provider"], {}))
            if axis is not None:
                row |= {"axis": axis[0], "value": axis[1]}
            if _results.is_ours(row["provider"]):
                row |= _ceilings.shares(row["median_ms"], moved, exps)
        mine = _results.ours(rows)
        run.add(rows)
        if mine["provider"] in providers:
            # pytest-benchmark's own table and its --benchmark-json see ours; the ratios come from the interleaved run.
            benchmark.group = _groups.group_of(mine)
            rounds = max(1, min(5, int(200 / mine["median_ms"])))
            benchmark.pedantic(providers[mine["provider"]], rounds=rounds, iterations=1)
        return stats

    return measure
