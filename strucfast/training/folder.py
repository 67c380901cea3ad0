"""Taking a run folder: never over an existing run unless asked, never two processes in one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ._files import RunFolderError

CONFIG = "config.yaml"
FIRST_STAGE = "first-stage.bin"
_WRITTEN = (
    CONFIG, "metrics.jsonl", "run.log", "tensorboard", "checkpoints", "codes.h5", "evaluation.json", "report.html",
    "summary.json", "samples.png", "traversals.png", FIRST_STAGE,
)  # fmt: skip


def claim(path: Path, resume: bool = False, overwrite: bool = False) -> Lock:
    """Make ``path`` ready to be a run folder, and lock it.

    Args:
        resume: there must be a run to go on with.
        overwrite: remove what a former run wrote there, and only that.

    Returns:
        The lock, to be released when nothing more is written.

    Raises:
        RunFolderError: it holds a run (or other files) already, holds none to resume, cannot be written, or another
            process is training there.
    """
    is_run = (path / CONFIG).is_file()
    if resume:
        if not is_run:
            raise RunFolderError(f"{path}: no run to resume there ({CONFIG} is missing)")
    elif path.exists():
        if not path.is_dir():
            raise RunFolderError(f"{path}: expected a folder for the run, found a file")
        if is_run and not overwrite:
            raise RunFolderError(f"{path}: holds a run already; go on with it (--resume) or replace it (--overwrite)")
        if not is_run and any(entry.name != ".lock" for entry in path.iterdir()):
            raise RunFolderError(f"{path}: is not empty and holds no run; choose another folder (--out)")
    lock = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        if overwrite and is_run and not resume:
            for entry in [path / name for name in _WRITTEN] + list(path.glob("seed-*")):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if lock is not None:
            lock.release()
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"cannot write to the run folder {path}: {error.strerror or error}") from error
    return lock


class Lock:
    """Held while a process writes a run folder; the kernel releases it when the process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        try:
            import fcntl
        except ImportError:
            # no such locks on this system; two processes in one run are then the user's to avoid
            self._stream = None
            return
        self._stream = open(path / ".lock", "w")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise RunFolderError(f"{path}: another process is training there") from error

    def release(self) -> None:
        """Let others in."""
        if self._stream is not None:
            self._stream.close()
