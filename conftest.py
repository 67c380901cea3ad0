"""`pytest --benchmark` runs benchmarks/ (and only them); without the flag they are not collected."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", default=False, help="run the speed comparisons in benchmarks/")
    parser.addoption(
        "--save-results", action="store_true", default=False, help="merge them into RESULTS_DIR/<device>.json"
    )


def pytest_ignore_collect(collection_path, config):
    wanted = config.getoption("--benchmark")
    if "benchmarks" in collection_path.parts and "tests" not in collection_path.parts:
        return None if wanted else True
    if wanted and collection_path.name == "tests":
        return True
    return None


@pytest.fixture(scope="session")
def comparisons(request):
    """Every comparison of the run, for the table at the end."""
    request.config.strucfast_comparisons = []
    return request.config.strucfast_comparisons


@pytest.fixture
def compare(comparisons, request, benchmark):
    """compare(op, case, direction, dtype, layout, providers) times providers interleaved; ours is "strucfast"."""
    from benchmarks import _timing

    allocator = _timing.warm_allocator()

    def run(op, case, direction, dtype, layout, providers, check=True, seconds=3.0, extra=None, once=None):
        """``once``: milliseconds of providers that are too slow to repeat, measured by the caller a single time."""
        if check:
            _timing.refuse_if_wrong(op)
        stats = _timing.compare(providers, seconds=seconds)
        stats |= {name: _timing.Stats(ms, ms, ms) for name, ms in (once or {}).items()}
        rows = _timing.rows_of(op, case, direction, dtype, layout, stats)
        for row in rows:
            row.update((extra or {}).get(row["provider"], {}))
        comparisons.append((op, case, direction, str(dtype).removeprefix("torch."), layout, stats))
        if request.config.getoption("--save-results"):
            _timing.record(_timing.results_path(), _timing.meta(allocator=allocator), rows)
        # pytest-benchmark's own table and its --benchmark-json see ours; the ratios come from the interleaved run.
        benchmark.group = f"{op} {direction}"
        benchmark.pedantic(providers["strucfast"], rounds=5, iterations=1, warmup_rounds=1)
        return stats

    return run


def pytest_terminal_summary(terminalreporter, config):
    found = getattr(config, "strucfast_comparisons", [])
    if not found:
        return
    terminalreporter.section(f"speed, interleaved medians ({len(found)} comparisons)")
    terminalreporter.write_line(
        f"{'op':<20} {'case':<26} {'direction':<9} {'dtype':<9} {'layout':<14} {'ms':>9}   times over"
    )
    for op, case, direction, dtype, layout, stats in found:
        ours = stats["strucfast"].median_ms
        ratios = "  ".join(f"{name} {s.median_ms / ours:.2f}x" for name, s in stats.items() if name != "strucfast")
        terminalreporter.write_line(
            f"{op:<20} {case:<26} {direction:<9} {dtype:<9} {layout:<14} {ours:>9.3f}   {ratios}"
        )
