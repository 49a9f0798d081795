"""Jobs with planted secrets on a Ray of their own: where they listen, and where the secrets turn up."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from tests.reliability.on_ray import NoRay
from tests.service.driving import ROOT, Driver, Job
from tests.service.serving import Server

RECIPE = ("jobs/train.py", "--recipe", "tests.service.problems:mine", "--option", "epochs=3", "pause=0.2")
LOOPBACK = frozenset(("127.0.0.1", "::ffff:127.0.0.1", "::1"))


def listening(job: Job) -> set[str]:
    """Addresses that the job and all its processes listen on; waits for the job's end."""
    process, found = psutil.Process(job.process.pid), set()
    while job.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    found |= {c.laddr.ip for c in each.net_connections("inet") if c.status == "LISTEN"}
        time.sleep(0.5)
    return found


def holding(folders: Iterable[Path], words: Mapping[str, bytes]) -> Iterator[str]:
    """Files that hold a secret.

    Yields:
        Name of the secret, and the file.
    """
    for path in (path for folder in folders for path in folder.rglob("*")):
        with contextlib.suppress(OSError):
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            yield from (f"{name} is in {path}" for name, word in words.items() if word in content)


def tried(folder: Path, *, with_server: bool) -> str:
    """What is wrong with a job; empty if nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    runs, home = folder / "runs", folder / "home"
    for path in (home, folder / "server"):
        path.mkdir(parents=True)
    planted = {name: secrets.token_hex(16) for name in ("password", "key")}
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp", ignore_cleanup_errors=True) as short:
        driver, server = Driver(NoRay(), runs), Server(folder / "server")  # type: ignore[arg-type]
        driver.environment |= {"HOME": str(home), "RAY_TMPDIR": short, "PYTHONPATH": str(ROOT)}
        driver.environment |= {"AWS_SECRET_ACCESS_KEY": planted["key"], "RAYCURV_TRUST": "tests"}
        uri = ()
        try:
            if with_server:
                server.start()
                uri = ("--tracking-uri", server.uri.replace("://", f"://somebody:{planted['password']}@"))
            job = driver.start(*RECIPE, "--run-name", "secret", *uri)
            addresses = listening(job)
            if job.finish().code:
                return f"exit {job.finish().code}: {job.output[-300:]}"
        finally:
            driver.end()
            server.stop()
        words = {name: word.encode() for name, word in planted.items()}
        tokens = [path for path in home.rglob("*token*") if path.is_file()]
        words |= {path.name: path.read_bytes().strip() for path in tokens}
        found = list(holding((runs, Path(short), folder / "server"), words))
    if not addresses:
        return "nothing was seen to listen"
    if beyond := addresses - LOOPBACK:
        return f"it listens on {sorted(beyond)}"
    if open_to_others := [path for path in tokens if path.stat().st_mode & 0o077]:
        return f"others may read {open_to_others}"
    return "; ".join(found[:3])


def run(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """Every second job with a password in the address of MLflow."""
    for number in range(first, stop):
        note(number, tried(folder / "security", with_server=number % 2 == 0))
