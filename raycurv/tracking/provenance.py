"""Where a run came from: the commit, what was changed beside it, versions, and the process that drives it."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

import raycurv

PACKAGES = ("raycurv", "torch", "ray", "mlflow", "numpy", "pyarrow", "torchvision")


def commit() -> dict[str, str]:
    """``commit`` and ``dirty``: ``RAYCURV_COMMIT``, or git's word on the working directory or the package's source.

    A folder that ``ray job submit`` uploads comes without ``.git``. Then the checkout that the package was installed
    from in editable mode answers, and without one the commit is unknown, unless ``RAYCURV_COMMIT`` says it.
    """
    if told := os.environ.get("RAYCURV_COMMIT"):
        return {"commit": told.removesuffix("-dirty"), "dirty": str(told.endswith("-dirty")).lower()}
    for folder in (Path.cwd(), Path(raycurv.__path__[0]), *_installed_from()):
        head = _git(folder, "rev-parse", "HEAD")
        if head:
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return {"commit": head, "dirty": "unknown" if changed is None else str(bool(changed)).lower()}
    return {"commit": "unknown", "dirty": "unknown"}


def command() -> str:
    """The command line of this process, as it can be typed again in the same folder."""
    program = Path(sys.argv[0])
    return shlex.join(["raycurv", *sys.argv[1:]] if program.name == "raycurv" else ["python", *sys.argv])


@functools.cache
def versions() -> Mapping[str, str]:
    """Python, the platform, and the packages that decide about numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed, so it decided nothing
    return found


def driver() -> dict[str, str]:
    """The process that keeps a run's books; with its start, the number of a process means only one."""
    return {
        "host": hostname(),
        "pid": str(os.getpid()),
        "started": f"{psutil.Process().create_time():.2f}",
        "user": _user(),
    }


def driver_alive(tags: dict[str, str]) -> bool | None:
    """Whether the process of :func:`driver` still runs; None if it ran on another machine."""
    if tags.get("host") != hostname():
        return None
    try:
        return f"{psutil.Process(int(tags['pid'])).create_time():.2f}" == tags["started"]
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False


def hostname() -> str:
    """The name of this machine, as written beside runs."""
    return socket.gethostname()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def _installed_from() -> list[Path]:
    """The checkouts that this package may have been installed from in editable mode."""
    found = []
    for distribution in importlib.metadata.distributions(name="raycurv"):
        text = distribution.read_text("direct_url.json")
        url = json.loads(text).get("url", "") if text else ""
        if url.startswith("file://"):
            found.append(Path(unquote(urlsplit(url).path)))
        beside = Path(str(distribution.locate_file("")))
        if (beside / "pyproject.toml").is_file():
            found.append(beside)
    return found


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
