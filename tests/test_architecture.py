"""The floors of docs/index.md: each room imports only what stands below it, and the house has no circles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "strucfast"
# From the ground up; rooms on one line are in order, and one may use those before it.
FLOORS = [
    "_version",
    "reference",
    "triton_kernels",
    "_native",
    "ops",
    "_config",
    "distributions",
    "nn",
    "metrics",
    "data",
    "losses",
    "models",
    "samplers",
    "plots",
    "training",
    "_bench_compare",
    "cli",
    "__main__",
]
# metrics and data take arrays and know nothing of models, nn or losses; plots draw what they are given.
FORBIDDEN = {
    ("metrics", "models"),
    ("data", "models"),
    ("metrics", "nn"),
    ("data", "nn"),
    ("data", "ops"),
    ("nn", "data"),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path):
    """Rooms of ours that a file imports anywhere in it, lazily too."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            # level counts folders up: only `depth` dots reach the package itself.
            if node.level == depth:
                names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
                yield from ((name, node.lineno) for name in names)
            elif node.level > depth:
                yield "outside the package", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "strucfast":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
            yield from ((name, node.lineno) for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "strucfast" and len(parts) > 1:
                    yield parts[1], node.lineno


def files():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def test_every_room_has_a_floor():
    rooms = {room_of(p) for p in files()}
    assert rooms <= set(FLOORS), f"give these a floor: {sorted(rooms - set(FLOORS))}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_what_stands_below(path):
    room = room_of(path)
    for target, line in imported_rooms(path):
        if target == room:
            continue
        # Names of the package itself (sf.ops and friends) resolve to rooms; anything else is a public re-export.
        assert target in FLOORS, f"{path.name}:{line} imports {target!r} from strucfast: name the room instead"
        assert (room, target) not in FORBIDDEN, f"{path.name}:{line}: {room} must not know {target}"
        assert FLOORS.index(target) < FLOORS.index(room), f"{path.name}:{line}: {room} stands below {target}"


def test_reference_imports_nothing_of_ours():
    for path in (PACKAGE / "reference").rglob("*.py"):
        assert [t for t, _ in imported_rooms(path) if t != "reference"] == []


def test_the_check_sees_a_wrong_import(tmp_path, monkeypatch):
    room = tmp_path / "strucfast" / "ops"
    room.mkdir(parents=True)
    (room / "bad.py").write_text("def f():\n    from ..models import build\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "strucfast")
    with pytest.raises(AssertionError, match="ops stands below models"):
        test_imports_only_what_stands_below(room / "bad.py")


def test_importing_the_package_needs_only_torch_triton_numpy():
    """The kernels must run where nothing but torch, triton and numpy is installed."""
    script = (
        "import sys\n"
        "blocked = {'h5py', 'sklearn', 'safetensors', 'tqdm', 'matplotlib', 'tyro', 'yaml', 'tensorboard'}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked: raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import torch, strucfast as sf\n"
        "x = torch.randn(2, 4, 3, requires_grad=True)\n"
        "sf.ops.group_norm_modulate(x, 2, scale=torch.ones(2, 4)).sum().backward()\n"
        "sf.nn.StrTfm(1, 4)(x, torch.ones(2, 1))\n"
        "print(sf.__version__)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_subnormals_survive_the_import():
    """A library linked with -ffast-math would flush them for the whole process."""
    script = (
        "import numpy as np, strucfast as sf, torch\n"
        "sf.ops.modulate(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))\n"
        "from strucfast import _native; _native.missing('host')\n"
        "assert np.float32(1e-40) * np.float32(0.5) > 0 and np.float64(5e-324) * 1.0 > 0\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
