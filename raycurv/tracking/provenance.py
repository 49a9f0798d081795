"""Provenance of a run: commit, uncommitted changes, package versions, and the driver process."""

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

import raycurv
from raycurv.arguments import mask_passwords

PACKAGES = ("raycurv", "torch", "ray", "mlflow", "numpy", "pyarrow", "torchvision")


def commit() -> dict[str, str]:
    """``commit`` and ``dirty``, from ``RAYCURV_COMMIT``, or from git in the working directory or the package's source.

    A folder that ``ray job submit`` uploads has no ``.git``. In that case the checkout of an editable installation is
    used. Without one the commit is unknown, unless ``RAYCURV_COMMIT`` gives it.
    """
    if given := os.environ.get("RAYCURV_COMMIT"):
        return {"commit": given.removesuffix("-dirty"), "dirty": str(given.endswith("-dirty")).lower()}
    for folder in (Path.cwd(), Path(raycurv.__path__[0]), *_installed_from()):
        head = _git(folder, "rev-parse", "HEAD")
        if head:
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return {"commit": head, "dirty": "unknown" if changed is None else str(bool(changed)).lower()}
    return {"commit": "unknown", "dirty": "unknown"}


def command() -> str:
    """Command line that repeats this process in the same folder, without the passwords in it."""
    program = Path(sys.argv[0])
    words = ["raycurv", *sys.argv[1:]] if program.name == "raycurv" else ["python", *sys.argv]
    return shlex.join(map(mask_passwords, words))


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of Python, the platform, and the packages that determine numerical results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed, so without influence on results
    return found


def driver() -> dict[str, str]:
    """Host, process id and start time of this driver. The start time makes a reused process id unambiguous."""
    import psutil

    return {
        "host": hostname(),
        "pid": str(os.getpid()),
        "started": f"{psutil.Process().create_time():.2f}",
    }


def driver_alive(tags: dict[str, str]) -> bool | None:
    """Whether the process of :func:`driver` still runs; None if its machine is another one."""
    import psutil

    if tags.get("host") != hostname():
        return None
    try:
        return f"{psutil.Process(int(tags['pid'])).create_time():.2f}" == tags["started"]
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False


def hostname() -> str:
    """Name of this machine, as logged with runs."""
    return socket.gethostname()


def program() -> str:
    """Program of this process: ``raycurv``, or the path of a script below the working directory."""
    path = Path(sys.argv[0] or "python")
    return path.name if path.is_absolute() else str(path)


def in_ray_job() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def user() -> str:
    """Name of the user of this process, or the number of a user without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        return str(os.getuid())


def _installed_from() -> list[Path]:
    """Possible checkouts of an editable installation of this package."""
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
