"""Libraries that a user would pick instead; the benchmarks run without them and say what is left out."""

import importlib
from types import ModuleType

# Name -> why it cannot be imported; a run says so once, at its end.
missing: dict[str, str] = {}


def find(name: str) -> ModuleType | None:
    """The module ``name`` ("xgboost", "pythae.models"), or None, which the end of the run reports."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing[name.partition(".")[0]] = str(error)
        return None


def lines() -> list[str]:
    return [f"without {name} ({why}): pip install 'strucfast[bench]'" for name, why in sorted(missing.items())]
