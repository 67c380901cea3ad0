"""Builds the three native halves ahead of time with ninja; each is optional and leaves a reason when it is missing.

  strucfast/_strucfast_cpu.so    LibTorch stable ABI, CPU kernels             STRUCFAST_CPU=0|1|auto
  strucfast/_strucfast_cuda.so   LibTorch stable ABI, CUDA kernels            STRUCFAST_CUDA=0|1|auto
  strucfast/_host.<abi>.so       pybind11, numpy only                         STRUCFAST_CPU=0|1|auto

"1" makes a half that cannot be built an error. STRUCFAST_CUDA_ARCHS ("80;90;100"), CXX,
CUDA_HOME and MAX_JOBS are honoured.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# The lowest torch whose stable ABI the bindings use: 2.10.
TORCH_TARGET = "0x020a000000000000"
HOST_SOURCES = ("render_", "histogram", "boosting")


class Unavailable(Exception):
    """A half cannot be built here; the text is the reason a person reads."""


def wish(variable):
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"strucfast: {variable} must be auto, 0 or 1, got {value!r}")
    return value


def sources(*patterns):
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern))


def cpu_kernel_sources(host):
    return [s for s in sources("cpu/*.cpp") if Path(s).name.startswith(HOST_SOURCES) == host]


def compiler():
    name = os.environ.get("CXX", "g++")
    if shutil.which(name.split()[0]) is None:
        raise Unavailable(f"no C++ compiler: {name!r} is not on the PATH (set CXX or install g++)")
    return name


def torch_folder():
    # find_spec does not import torch, which would cost seconds in every build.
    spec = importlib.util.find_spec("torch")
    if spec is None:
        raise Unavailable(
            "torch is not visible to the build; install torch first and use `pip install --no-build-isolation .`"
        )
    folder = Path(spec.origin).parent
    if not (folder / "include/torch/csrc/stable/library.h").exists():
        raise Unavailable(f"the torch in {folder} has no stable-ABI headers (torch >= 2.10 is needed)")
    return folder


def cxx_flags(cxx):
    flags = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
    flags += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Icsrc"]
    version = subprocess.run([*cxx.split(), "--version"], capture_output=True, text=True).stdout
    # gcc 12 otherwise stops at 256-bit vectors inside the x86-64-v4 clones; clang refuses the flag in some versions.
    if platform.machine() in ("x86_64", "AMD64") and "clang" not in version:
        flags.append("-mprefer-vector-width=512")
    return flags


def stable_abi_flags(torch_dir):
    return ["-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-isystem", str(torch_dir / "include")]


def plan_cpu():
    cxx, torch_dir = compiler(), torch_folder()
    files = cpu_kernel_sources(host=False) + sources("bindings/cpu/*.cpp")
    link = [f"-L{torch_dir / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
    return {"rule": "cxx", "files": files, "flags": cxx_flags(cxx) + stable_abi_flags(torch_dir), "link": link}


def plan_host():
    cxx = compiler()
    try:
        import pybind11
    except ImportError as error:
        raise Unavailable("pybind11 is not installed (pip install pybind11)") from error
    files = cpu_kernel_sources(host=True) + sources("bindings/host.cpp", "bindings/host/*.cpp")
    includes = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    return {"rule": "cxx", "files": files, "flags": cxx_flags(cxx) + includes, "link": ["-lpthread"]}


def plan_cuda():
    compiler()
    torch_dir = torch_folder()
    if wish("STRUCFAST_CUDA") == "auto" and not list((torch_dir / "lib").glob("libtorch_cuda*")):
        raise Unavailable("the torch here is a build without CUDA (STRUCFAST_CUDA=1 builds the half all the same)")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if nvcc is None:
        raise Unavailable("no CUDA compiler: nvcc was not found (put it on the PATH or set CUDA_HOME)")
    # A wrapper script on the PATH may stand for the real one, so ask nvcc itself where it lives.
    top = Path(home) if home else cuda_top(nvcc)
    archs = [a for a in os.environ.get("STRUCFAST_CUDA_ARCHS", "80;90;100").replace(",", ";").split(";") if a]
    flags = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Icsrc", "-DUSE_CUDA"]
    for arch in archs:
        flags += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    flags += ["-gencode", f"arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    include = next((str(p) for p in (top / "include", top / "targets/x86_64-linux/include") if p.is_dir()), "")
    lib = next((str(p) for p in (top / "lib64", top / "lib", top / "targets/x86_64-linux/lib") if p.is_dir()), "")
    binding_flags = cxx_flags(os.environ.get("CXX", "g++")) + stable_abi_flags(torch_dir)
    binding_flags += ["-DUSE_CUDA", "-isystem", include]
    link = [f"-L{torch_dir / 'lib'}", f"-L{lib}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
    link += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    files = sources("cuda/*.cu") + sources("bindings/cuda/*.cpp")
    plan = {"rule": "nvcc", "files": files, "flags": flags, "cxx_flags": binding_flags, "link": link}
    return plan | {"nvcc": nvcc, "top": str(top)}


def cuda_top(nvcc):
    out = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True).stderr
    for line in out.splitlines():
        if "TOP=" in line:
            return Path(line.split("TOP=", 1)[1].strip()).resolve()
    return Path(nvcc).resolve().parents[1]


class Native(Extension):
    def __init__(self, name, kind, variable, plan):
        super().__init__(name, [])
        self.kind, self.variable, self.plan = kind, variable, plan


EXTENSIONS = [
    Native("strucfast._strucfast_cpu", "cpu", "STRUCFAST_CPU", plan_cpu),
    Native("strucfast._host", "host", "STRUCFAST_CPU", plan_host),
    Native("strucfast._strucfast_cuda", "cuda", "STRUCFAST_CUDA", plan_cuda),
]


def escape(text):
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_file(kind, plan, build_dir, output):
    """One build.ninja per half: parallel, incremental through the compilers' own dependency files."""
    cxx = os.environ.get("CXX", "g++")
    compile_flags = plan["flags"] if plan["rule"] == "cxx" else plan["cxx_flags"]
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {escape(build_dir)}",
        "rule cxx",
        f"  command = {cxx} -MMD -MF $out.d {' '.join(map(str, compile_flags))} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} -shared $in -o $out {' '.join(map(str, plan['link']))}",
    ]
    if plan["rule"] == "nvcc":
        lines += [
            "rule nvcc",
            f"  command = {plan['nvcc']} -MD -MF $out.d {' '.join(map(str, plan['flags']))} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    objects = []
    for source in plan["files"]:
        # Two folders hold a modulate.cpp, so the object keeps its folder in its name.
        target = build_dir / (source.replace("/", "_") + ".o")
        objects.append(escape(target))
        rule = "nvcc" if source.endswith(".cu") else "cxx"
        lines.append(f"build {objects[-1]}: {rule} {escape(ROOT / source)}")
    lines.append(f"build {escape(output)}: link {' '.join(objects)}")
    lines.append(f"default {escape(output)}\n")
    path = build_dir / "build.ninja"
    path.write_text("\n".join(lines))
    return path


class BuildNative(build_ext):
    def get_ext_filename(self, fullname):
        # setuptools asks with the dotted name for a wheel and with the bare one for an in-place build.
        *folder, name = fullname.split(".")
        # The two op libraries carry no Python symbol, so their names carry no Python tag.
        suffix = sysconfig.get_config_var("EXT_SUFFIX") if name == "_host" else ".so"
        return str(Path(*folder) / (name + suffix))

    def build_extensions(self):
        info, built = {}, []
        for ext in self.extensions:
            try:
                self.build_native(ext)
                built.append(ext)
                info[ext.kind] = {"built": True}
            except Unavailable as reason:
                if wish(ext.variable) == "1":
                    raise SystemExit(
                        f"strucfast: {ext.variable}=1, but the {ext.kind} half cannot be built: {reason}"
                    ) from None
                info[ext.kind] = {"built": False, "reason": str(reason)}
                print(f"strucfast: {ext.kind} half not built: {reason}", file=sys.stderr)
        self.extensions = built
        self.write_info(info)

    def build_native(self, ext):
        if wish(ext.variable) == "0":
            raise Unavailable(f"switched off by {ext.variable}=0")
        plan = ext.plan()
        if not plan["files"]:
            raise Unavailable("no sources")
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        tag = hashlib.sha256(repr((sys.version, plan)).encode()).hexdigest()[:8]
        # One folder for wheel, editable and in-place builds, so that each reuses the others' objects.
        build_dir = ROOT / "build" / "native" / f"{ext.kind}-{tag}"
        build_dir.mkdir(parents=True, exist_ok=True)
        with open(build_dir / ".lock", "w") as lock:
            # Two builds at once (pip and make, say) would tear each other's objects.
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.run_ninja(ext, plan, build_dir, output)

    def run_ninja(self, ext, plan, build_dir, output):
        # The finished library is moved into place in one step: a process that has it loaded keeps its own.
        staged = build_dir / output.name
        ninja = ninja_file(ext.kind, plan, build_dir, staged)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [*ninja_command(), "-f", str(ninja), *jobs]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        sys.stderr.write(result.stdout[-8000:] + result.stderr[-2000:])
        if result.returncode != 0:
            tail = next((line for line in result.stdout.splitlines() if "error" in line), "")[:300]
            raise Unavailable(f"the compiler failed ({tail or 'see the build log'}); rebuild with `pip install -v`")
        temporary = output.with_name(output.name + ".new")
        shutil.copyfile(staged, temporary)
        os.replace(temporary, output)

    def write_info(self, info):
        info["python"] = platform.python_version()
        path = Path(self.get_ext_fullpath("strucfast._strucfast_cpu")).parent / "_build_info.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(info, indent=1))

    def get_outputs(self):
        outputs = super().get_outputs()
        return [*outputs, str(Path(self.build_lib) / "strucfast" / "_build_info.json")]

    def copy_extensions_to_source(self):
        # setuptools' own version copies every listed extension; ours may be absent, and the reason must travel too.
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "strucfast" / "_build_info.json"
        if built.exists():
            shutil.copyfile(built, ROOT / "strucfast" / "_build_info.json")


def ninja_command():
    try:
        import ninja

        return [str(Path(ninja.BIN_DIR) / "ninja")]
    except (ImportError, AttributeError):
        if shutil.which("ninja") is None:
            raise Unavailable("ninja is not installed (pip install ninja)") from None
        return ["ninja"]


version = {}
exec((ROOT / "strucfast/_version.py").read_text(), version)

setup(
    version=version["__version__"],
    packages=[*find_packages(include=["strucfast", "strucfast.*"]), "strucfast.triton_kernels"],
    package_dir={"strucfast": "strucfast", "strucfast.triton_kernels": "triton_kernels"},
    package_data={"strucfast": ["py.typed", "_build_info.json"]},
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildNative},
)
