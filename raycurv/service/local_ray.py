"""Private Ray on this machine: on loopback, with a token and its own ports, ended without touching others."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from raycurv.service.scratch import locked_folder
from raycurv.train.host_memory import ALLOCATOR_DEFAULTS

# Ray replaces 127.0.0.1 by the address of the host, and listens on every interface, unless it believes to be on a
# system without clusters; then every server binds to loopback.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
START_SECONDS = 180.0  # for a loaded machine
STOP_SECONDS = 5.0
# Gets SIGTERM when its parent dies, in whatever way; only Linux offers this.
_ENDS_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class RayHead:
    """Head node of a local Ray.

    Attributes:
        pid: process of ``ray start``, whose session all processes of this Ray share.
        started: start of that process in seconds since 1970, since numbers of processes are reused.
        address: value for ``RAY_ADDRESS``.
        dashboard: URL for ``ray job submit --address``.
        folder: folder of temporary files, logs and the token.
    """

    pid: int
    started: float
    address: str
    dashboard: str
    folder: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of its clients."""
        return LOOPBACK_ONLY | {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(Path(self.folder) / "token"),
        }

    def alive(self) -> bool:
        """Whether it runs."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def processes(self) -> list[psutil.Process]:
        """All processes of its session."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, PermissionError):
                if os.getsid(process.pid) == self.pid:
                    found.append(process)
        return found


# Children of this process: a Popen that is dropped while its process runs complains.
_STARTED: dict[int, subprocess.Popen[bytes]] = {}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start(cpus: int, *, outlive: bool = False, environment: Mapping[str, str] | None = None) -> RayHead:
    """Start a head node and wait until it accepts jobs.

    Args:
        cpus: number of CPUs that Ray may schedule.
        outlive: keep it running when this process ends.
        environment: more variables for all of its processes.

    Raises:
        RuntimeError: it did not come up; the message ends with its log.
    """
    # Ray's sockets lie below this folder; their paths must not exceed 107 characters.
    folder, lock = locked_folder("raycurv-ray-", "/tmp" if os.path.isdir("/tmp") else None)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, agent, client = _free_ports(4)
    ray = Path(sys.executable).parent / "ray"
    flags = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "temp-dir": folder / "ray",
        "num-cpus": cpus,
    }
    command = [
        str(ray),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        *(f"--{k}={v}" for k, v in flags.items()),
    ]
    if not outlive:
        command = [sys.executable, "-c", _ENDS_WITH_PARENT, sys.executable, *command]
    # `python` of a submitted job is this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    head = RayHead(0, 0.0, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", str(folder))
    log = folder / "start.log"
    with lock, log.open("wb") as output:
        process = subprocess.Popen(
            command,
            pass_fds=[lock.fileno()],  # the folder is in use as long as the head runs
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=ALLOCATOR_DEFAULTS | clean | {"PATH": path} | dict(environment or {}) | head.environment,
        )
    _STARTED[process.pid] = process
    head = dataclasses.replace(head, pid=process.pid, started=psutil.Process(process.pid).create_time())
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            stop(head)
            raise RuntimeError(f"the local Ray did not come up in {START_SECONDS:.0f} s; its log ends with:\n{text}")
        time.sleep(0.1)
    return head


def stop(head: RayHead) -> None:
    """End all processes of `head` and remove its files."""
    processes = head.processes()
    with contextlib.suppress(ProcessLookupError):
        os.kill(head.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in [*left, *head.processes()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)
    if (started := _STARTED.pop(head.pid, None)) is not None:
        started.wait(STOP_SECONDS)
    shutil.rmtree(head.folder, ignore_errors=True)


@contextlib.contextmanager
def local_ray(cpus: int, *, environment: Mapping[str, str] | None = None) -> Iterator[RayHead]:
    """Run a local Ray during a ``with`` block; it also ends when this process is killed.

    Yields:
        The head.
    """
    head = start(cpus, environment=environment)
    try:
        yield head
    finally:
        stop(head)


def save(head: RayHead, path: Path) -> None:
    """Write a head that outlives this process to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(head), indent=2))


def saved(path: Path) -> RayHead | None:
    """The head that :func:`save` wrote; None if it does not run any more."""
    if not path.exists():
        return None
    head = RayHead(**json.loads(path.read_text()))
    return head if head.alive() else None
