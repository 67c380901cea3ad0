"""Lets a checkout that is not installed import ``strucfast.triton_kernels`` from the folder beside the package.

`make gpu` uses the interpreter it finds and installs nothing into it. Also a pytest plugin: `-p benchmarks._in_tree`.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "strucfast.triton_kernels"


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = ROOT / "triton_kernels"
        if name != NAME or not folder.is_dir():
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


# Behind all others: an installed strucfast keeps its own.
sys.meta_path.append(Finder)
