"""Files that are either complete or absent: write beside the target, fsync, rename."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class RunFolderError(OSError):
    """A run folder that cannot be created, written or used; the message says which and why."""


def fsync_directory(path: Path) -> None:
    """Flush a directory entry, so that a rename survives a power cut."""
    # not every file system lets a directory be opened or synced; the rename is atomic there all the same
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and force it to the disk."""
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_file(path: Path, data: bytes | str) -> None:
    """Replace ``path`` atomically.

    Raises:
        RunFolderError: the file cannot be written (no permission, disk full); the old file, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write_synced(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    fsync_directory(path.parent)


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Replace the folder ``path`` by one with ``files`` in it, as nearly at once as a rename allows.

    A kill at any moment leaves ``path`` complete, or (between two renames) its complete predecessor under
    ``.NAME.old``, which :func:`recover_folder` puts back.

    Raises:
        RunFolderError: something cannot be written; the old folder, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    old = path.with_name(f".{path.name}.old")
    try:
        recover_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in files.items():
            write_synced(temporary / name, data)
        fsync_directory(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(path)
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    fsync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put back the predecessor of ``path`` if a kill fell between the two renames of :func:`write_folder`."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if not path.exists() and old.exists():
        try:
            os.rename(old, path)
        except FileNotFoundError:
            # another process of the same run was faster
            pass
