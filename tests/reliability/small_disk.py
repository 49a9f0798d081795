"""A small disk of its own, which can be full, read-only or slow: ext4 in a file, on a loop device.

Needs root, and for a slow disk the controller ``blkio`` of the first version of cgroups.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

BYTES = 24 << 20
_THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device")


def why_not() -> str:
    """Why there can be no such disk here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, to mount a disk"
    missing = [tool for tool in ("losetup", "mkfs.ext4", "mount") if shutil.which(tool) is None]
    if missing or not Path("/dev/loop-control").exists():
        return f"needs {', '.join(missing) or 'loop devices'}"
    return ""


def why_not_slow() -> str:
    """Why there can be no slow disk here; empty if there can."""
    return why_not() or ("" if _THROTTLE.exists() else "needs blkio of cgroups v1, to slow a disk down")


class SmallDisk:
    """An ext4 of a few megabytes.

    Args:
        folder: where it is mounted.
        image: file that holds it, on another disk.
    """

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder, self._image = folder, image
        folder.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(BYTES)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^resize_inode", str(image))
        self._device = _run("losetup", "-f", "--show", str(image)).strip()
        self._filler = folder / "filler"
        self.mount()

    def mount(self) -> None:
        """Mount it, as it was left."""
        _run("mount", self._device, str(self.folder))

    def unmount(self) -> None:
        """Unmount it; nothing may be open there."""
        _run("umount", str(self.folder))

    def fill(self, left: int = 0) -> None:
        """Leave some bytes of room."""
        free = shutil.disk_usage(self.folder).free
        with contextlib.suppress(OSError), self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while not left:
                file.write(b"x" * 1024)

    def make_room(self) -> None:
        """End :meth:`fill`."""
        self._filler.unlink(missing_ok=True)

    def read_only(self) -> None:
        """Refuse all writes from now on, also to files that are open, as a disk with errors does; until it is mounted
        again."""
        _run("mount", "-o", "remount,abort", str(self.folder))

    def slow(self, writes: int) -> None:
        """Write so many blocks a second at most; 0 for no limit. A transaction of SQLite takes several."""
        number = (Path("/sys/block") / Path(self._device).name / "dev").read_text().strip()
        _THROTTLE.write_text(f"{number} {writes}\n")

    def close(self) -> None:
        """Unmount and remove it."""
        if not why_not_slow():
            self.slow(0)
        _run("umount", "--lazy", str(self.folder))
        _run("losetup", "--detach", self._device)
        self._image.unlink()


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
