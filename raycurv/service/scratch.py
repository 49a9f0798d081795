"""Temporary folders for Ray's own files, removed at the end, or by the next launch where a process was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIXES = ("raycurv-train-", "raycurv-tune-")
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder for a ``with`` block, and remove those of processes of this user that have died.

    Args:
        prefix: one of :data:`PREFIXES`.

    Yields:
        The folder, which is new: Ray silently resumes what it finds.
    """
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        # The lock ends with this process. Ray's processes do not inherit it.
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    for prefix in PREFIXES:
        for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.getuid() and not folder.is_symlink() and _is_abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that made the folder has died; False for one without a lock, of an earlier version."""
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
