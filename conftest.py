"""`pytest --benchmark` runs benchmarks/ (and only them); without the flag they are not collected."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", default=False, help="run the speed comparisons in benchmarks/")
    parser.addoption(
        "--save-results", action="store_true", default=False, help="merge them into RESULTS_DIR/<device>.json"
    )


def pytest_configure(config):
    if not config.getoption("--benchmark"):
        return
    from benchmarks import _plugin

    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "benchmarks")]
    config.strucfast_run = _plugin.Run(config)
    config.pluginmanager.register(config.strucfast_run, "strucfast_run")
    config.pluginmanager.register(_plugin, "strucfast_benchmarks")


def pytest_ignore_collect(collection_path, config):
    wanted = config.getoption("--benchmark")
    if "benchmarks" in collection_path.parts and "tests" not in collection_path.parts:
        return None if wanted else True
    if wanted and collection_path.name == "tests":
        return True
    return None
