"""Times a newcomer's path on this machine: a fresh clone to the demo's report, and to the first benchmark table.

    .venv/bin/python benchmarks/newcomer.py              both, about a quarter of an hour on two cores
    .venv/bin/python benchmarks/newcomer.py demo         one of them
    python benchmarks/make_tables.py                     writes them into README.md and docs/performance.md

What is committed is cloned into a temporary folder, set up, and then `make demo` and `make bench` run there, with empty
caches of pip, Triton and torch.compile. Cloning and set-up are timed once and count in both paths. The clone comes from
the disk; packages come from wherever pip finds them. Results go to RESULTS_DIR/newcomer/<device>.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PATHS = ("demo", "bench")
REPORT = Path("runs/demo/report.html")
TABLE = "speed, interleaved medians"
# A newcomer's shell has none of these.
FOREIGN = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "RESULTS_DIR", "COMMIT")
SET_UP = "set-up with C++ build"


class Failed(Exception):
    """A step that did not do what it should; the text names it and says why."""


def environment(caches: Path) -> dict[str, str]:
    """This one without what a newcomer does not have, and with empty caches."""
    kept = {k: v for k, v in os.environ.items() if k not in FOREIGN and not k.startswith(("STRUCFAST_", "GIT_"))}
    names = {"PIP_CACHE_DIR": "pip", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return kept | {name: str(caches / folder) for name, folder in names.items()}


def timed(name: str, command: list[str], folder: Path, env: dict[str, str], limit: float) -> tuple[float, str]:
    """Seconds that ``command`` takes, and what it printed; it is shown as it comes.

    Raises:
        Failed: it ends with another exit code than 0, or not within ``limit`` seconds.
    """
    print(f"newcomer: {name}: {' '.join(command)}", flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, stop)
    timer.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        timer.cancel()
    seconds = time.perf_counter() - began
    if late.is_set() or code != 0:
        why = f"did not end within {limit:g} s" if late.is_set() else f"ended with exit code {code}"
        tail = "".join(collections.deque(lines, maxlen=15)).rstrip()
        raise Failed(f"{name} ({' '.join(command)}) {why}; its last lines:\n{tail}")
    return seconds, "".join(lines)


def run(source: Path, paths: list[str], limit: float, keep: bool = False) -> tuple[list[dict], str]:
    """The steps of each path, and the commit that was cloned."""
    for tool in ("git", "make"):
        if shutil.which(tool) is None:
            raise Failed(f"{tool} is not on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="strucfast-newcomer-"))
    clone, env = folder / "strucfast", environment(folder / "caches")
    try:
        # Without --no-local the objects would be links.
        command = ["git", "clone", "--quiet", "--no-local", str(source), str(clone)]
        shared = [("clone", timed("clone", command, folder, env, limit)[0])]
        asked = ["git", "-C", str(clone), "rev-parse", "--short=10", "HEAD"]
        commit = subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout.strip()
        shared.append((SET_UP, timed("set-up", ["make", "setup"], clone, env, limit)[0]))
        steps = []
        for path in paths:
            seconds, printed = timed(path, ["make", path], clone, env, limit)
            if path == "demo" and not (clone / REPORT).is_file():
                raise Failed(f"demo (make demo) ended without {REPORT}")
            if path == "bench" and TABLE not in printed:
                raise Failed(f"bench (make bench) ended without its table ({TABLE!r})")
            last = {"demo": "demo", "bench": "benchmarks"}[path]
            steps += [{"path": path, "name": name, "seconds": round(s, 1)} for name, s in [*shared, (last, seconds)]]
    finally:
        if keep:
            print(f"newcomer: the clone stays in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return steps, commit


def merged(path: Path, commit: str, steps: list[dict]) -> list[dict]:
    """Steps of paths that were not run this time stay if they are of the same commit.

    Raises:
        Failed: the file is there and is none of these.
    """
    if not path.exists():
        return steps
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        kept = known["steps"] if known["meta"].get("commit") == commit else []
        again = {step["path"] for step in steps}
        return [step for step in kept if step["path"] not in again] + steps
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"{path} is no file of a newcomer's path ({error!r}); move it away") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="demo|bench", help="which to time (default: both)")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout to clone (default: this one)")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="SECONDS", help="for each step (default: 1800)")
    parser.add_argument("--keep", action="store_true", help="leave the clone where it is")
    options = parser.parse_args(arguments)
    for path in options.paths:
        if path not in PATHS:
            parser.error(f"expected demo or bench, got {path!r}")
    try:
        from benchmarks import _results
    except ImportError as error:
        print(f"newcomer: {error}; start it with the checkout's own interpreter, after make setup", file=sys.stderr)
        return 2
    target = _results.results_path()
    target = target.parent / "newcomer" / target.name
    try:
        # Said now, not after a quarter of an hour.
        merged(target, "", [])
        steps, commit = run(
            options.source, list(dict.fromkeys(options.paths)) or list(PATHS), options.limit, options.keep
        )
        about = {**_results.meta(), "commit": commit}
        about = {name: about[name] for name in ("commit", "device", "date", "torch", "threads", "python")}
        content = {"meta": about, "steps": merged(target, commit, steps)}
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (Failed, OSError) as error:
        print(f"newcomer: {error}", file=sys.stderr)
        return 1
    for path in dict.fromkeys(step["path"] for step in steps):
        parts = [step for step in steps if step["path"] == path]
        said = ", ".join(f"{step['name']} {step['seconds']} s" for step in parts)
        print(f"newcomer: {path}: {sum(step['seconds'] for step in parts):.0f} s ({said})")
    print(f"newcomer: wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
