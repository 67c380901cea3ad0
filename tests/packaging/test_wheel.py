"""sdist, wheel and their contents: built from the sdist, imported from another folder, with and without a compiler."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(command, cwd, **environment):
    env = {**os.environ, "STRUCFAST_CUDA": "0", **environment}
    env.pop("PYTHONPATH", None) if "PYTHONPATH" not in environment else None
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def wheel_from(sdist: Path, out: Path, **environment):
    """Each build gets its own tree: setuptools would pack what an earlier one left in build/."""
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "source", filter="data")
    (source,) = (out / "source").iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    return run([*command, "--disable-pip-version-check"], source, **environment)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Made from a copy, so that the test leaves no egg-info and takes no built file along."""
    folder = tmp_path_factory.mktemp("sdist")
    ignore = shutil.ignore_patterns(
        ".venv", "build", "dist", ".git", "runs", "__pycache__", "*.so", "*.egg-info", "_build_info.json"
    )
    shutil.copytree(ROOT, folder / "copy", ignore=ignore)
    result = run([sys.executable, "setup.py", "--quiet", "sdist", "-d", str(folder)], folder / "copy")
    assert result.returncode == 0, result.stderr[-3000:]
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    result = wheel_from(sdist, out, STRUCFAST_CPU="1")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    result = run(command, target)
    assert result.returncode == 0, result.stderr
    return target


def test_sdist_carries_every_source(sdist):
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    tracked = run(["git", "ls-files", "csrc", "triton_kernels", "strucfast"], ROOT).stdout.split()
    missing = set(tracked) - names
    assert not missing, f"not in the sdist: {sorted(missing)[:8]}"
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_wheel_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = json.loads(archive.read("strucfast/_build_info.json"))
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "strucfast/_strucfast_cpu.so" in names and any(n.startswith("strucfast/_host.") for n in names)
    assert {"strucfast/py.typed", "strucfast/triton_kernels/__init__.py", "strucfast/reference/modulate.py"} <= set(
        names
    )
    assert not [n for n in names if n.startswith(("csrc", "tests", "benchmarks", "triton_kernels"))]
    assert info["cpu"]["built"] and info["host"]["built"] and not info["cuda"]["built"]
    requires = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: torch")]
    assert requires == ["Requires-Dist: torch"], "a bound on torch could make pip replace the installed one"


def test_runs_from_another_folder(installed, tmp_path):
    script = (
        "import strucfast as sf, torch, strucfast.triton_kernels\n"
        "assert sf.__file__.startswith(" + repr(str(installed)) + "), sf.__file__\n"
        "with sf.use_backend('cpp'):\n"
        "    y = sf.ops.group_norm_modulate(torch.randn(2, 4, 5), 2)\n"
        "from strucfast import _native; _native.host()\n"
        "print(tuple(y.shape))\n"
    )
    result = run([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0 and "(2, 4, 5)" in result.stdout, result.stderr


def test_triton_kernels_refuse_their_bare_name(tmp_path):
    result = run([sys.executable, "-c", "import triton_kernels"], tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode != 0 and "strucfast.triton_kernels" in result.stderr


def test_op_library_depends_on_no_private_torch_or_python_symbol(installed):
    """One binary for every torch >= 2.10 and every Python: only C symbols of the stable ABI."""
    if shutil.which("nm") is None:
        pytest.skip("needs binutils' nm on the PATH")
    out = subprocess.run(
        ["nm", "-D", "--undefined-only", str(installed / "strucfast/_strucfast_cpu.so")], capture_output=True, text=True
    ).stdout
    symbols = [line.split()[-1] for line in out.splitlines()]
    assert any(s.startswith(("aoti_torch", "torch_")) for s in symbols)
    mangled = [s for s in symbols if s.startswith("_Z") and any(p in s for p in ("2at", "3c10", "5torch"))]
    assert mangled == [] and [s for s in symbols if s.startswith(("Py", "_Py"))] == []


def test_without_a_compiler_the_install_is_pure_and_says_why(sdist, tmp_path):
    result = wheel_from(sdist, tmp_path, CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr[-2000:]
    (path,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(site)
    script = (
        "import strucfast as sf, torch\n"
        "sf.ops.group_norm_modulate(torch.randn(2, 4, 5), 2); sf.show_config()\n"
        "with sf.use_backend('cpp'): sf.ops.modulate(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))\n"
    )
    result = run([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(site))
    reason = "no C++ compiler: 'no-such-compiler' is not on the PATH"
    assert reason in result.stdout, result.stdout + result.stderr
    assert "RuntimeError" in result.stderr and reason in result.stderr.splitlines()[-1]


def test_a_demanded_half_that_cannot_be_built_stops_the_build(sdist, tmp_path):
    result = wheel_from(sdist, tmp_path, CXX="no-such-compiler", STRUCFAST_CPU="1")
    assert result.returncode != 0
    assert "STRUCFAST_CPU=1" in result.stdout + result.stderr
