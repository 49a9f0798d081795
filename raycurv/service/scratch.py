"""Temporary folders for Ray's own files, removed at the end, or by the next launch where a process was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PREFIXES = ("raycurv-train-", "raycurv-tune-", "raycurv-ray-")
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder for a ``with`` block, and remove those of processes of this user that have died.

    Args:
        prefix: one of :data:`PREFIXES`.

    Yields:
        The folder, which is new: Ray silently resumes what it finds.
    """
    folder, lock = locked_folder(prefix)
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def locked_folder(prefix: str, parent: str | None = None) -> tuple[Path, IO[str]]:
    """Make a temporary folder, and remove those beside it that no process holds any more.

    Args:
        prefix: one of :data:`PREFIXES`.
        parent: folder for it; by default that of temporary files.

    Returns:
        The folder and its lock file. The lock ends with this process and those that inherit the descriptor.
    """
    _remove_abandoned(Path(parent or tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    for prefix in PREFIXES:
        for folder in parent.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.getuid() and not folder.is_symlink() and _is_abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether no process holds the folder; False for one without a lock, of an earlier version."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
