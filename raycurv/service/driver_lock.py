"""Lock of a run or sweep: never two drivers at a time, on one machine or on several, on disks or object stores.

A driver claims a folder by a file of its own in it, which no other driver writes. First it writes its claim, then it
looks for those of others. If there are none, it holds the folder. If two claim at the same time, both see each other,
and the one with the larger name gives way. Hence neither exclusive creation nor conditional writes are needed, which
pyarrow does not offer for object stores. A listing must show every file that was complete before it: S3, Google Cloud
Storage, local disks and NFS fulfil this.

A heartbeat renews the claim. The claim of a dead driver is void: its process has ended on this machine, or its
heartbeat stands still. A driver that was suspended may find that another one has taken its place. Then it and its
workers stop before they write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from raycurv.data import storage
from raycurv.service.errors import LockLost, RunLocked
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.checkpoint_folder import open_folder

logger = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0  # without a heartbeat
CLOCK_SECONDS = 600.0  # by which the clocks of two machines may differ
POLL_SECONDS = 0.5
JOIN_SECONDS = 10.0  # for a heartbeat that is being written
_CLAIM = re.compile(r"driver-(\d{6,})-[0-9a-f]{16}\.lock")


@dataclass(frozen=True)
class LockHolder:
    """Driver that claims a folder.

    Attributes:
        host: name of its machine, for messages.
        machine: the running system and the namespace in which `pid` counts.
        pid: number of its process.
        started: start of that process, since numbers of processes are reused.
        since: time of the claim, seconds since 1970.
        heartbeat: time of the newest heartbeat, seconds since 1970.
        holds: whether it has seen that there is no other claim.
    """

    host: str
    machine: str
    pid: int
    started: float
    since: float
    heartbeat: float
    holds: bool = False

    @classmethod
    def here(cls) -> LockHolder:
        """This process."""
        process, now = psutil.Process(), time.time()
        return cls(socket.gethostname(), _machine(), process.pid, process.create_time(), since=now, heartbeat=now)

    def alive(self) -> bool | None:
        """Whether it is at work; None if only its next heartbeat can tell."""
        silence = time.time() - self.heartbeat
        if self.machine != _machine():
            return None if silence < CLOCK_SECONDS else False
        return silence < EXPIRY_SECONDS and _runs(self.pid, self.started)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since}"


@dataclass(frozen=True)
class LockClaim:
    """Claim of a driver, which the driver and its workers check before they write.

    Attributes:
        folder: folder or address of the claim.
        file: name of its file there.
    """

    folder: str
    file: str

    def require(self, patience: float = 0.0) -> None:
        """Make sure that no other driver has taken over.

        Args:
            patience: seconds to try again while the server of the folder is away.

        Raises:
            LockLost: one has.
            OSError: the folder cannot be read.
        """
        found = storage.retried(lambda: _open(self.folder).names(), patience)
        names = [name for name in found if _CLAIM.fullmatch(name)]
        if self.file not in names or max(map(_term, names)) > _term(self.file):
            raise LockLost(
                f"another driver has taken over {self.folder}, since this one gave no sign of life for "
                f"{EXPIRY_SECONDS:.0f} s (was it suspended?): this one stops, and the other one goes on"
            )


class DriverLock:
    """Locks of the folders of a launch or sweep, renewed by a thread; :func:`driver_lock` takes them.

    Attributes:
        claims: claims by folder.
    """

    def __init__(self) -> None:
        self.claims: dict[str, LockClaim] = {}
        self._locks: list[_FolderLock] = []
        self._ended = threading.Event()
        self._renewing = threading.Lock()
        self._renewed = time.time()
        self._lost: LockLost | None = None
        self._thread = threading.Thread(target=self._beat, name="driver-lock", daemon=True)

    def start(self) -> None:
        """Start the heartbeat."""
        self._thread.start()

    def take(self, folder: str, notify: Callable[[str], None]) -> None:
        """Take the lock of one more folder.

        Args:
            folder: the folder, or its address.
            notify: shows a line to the user.

        Raises:
            RunLocked: another driver is at work on it.
            CheckpointError: the folder cannot be written.
        """
        lock = _FolderLock(folder, notify)
        lock.acquire()
        self.claims[folder] = lock.claim
        self._locks.append(lock)

    def require(self) -> None:
        """Make sure that no other driver has taken over, before this one writes anything.

        Raises:
            LockLost: one has.
        """
        if time.time() - self._renewed > EXPIRY_SECONDS / 2:  # the process was suspended
            self._renew()
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Remove the claims."""
        self._ended.set()
        self._thread.join(JOIN_SECONDS)
        for lock in self._locks:
            lock.release()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._renew()

    def _renew(self) -> None:
        with self._renewing:
            for lock in [*self._locks]:
                try:
                    lock.renew()
                except LockLost as error:
                    self._lost = error
                except OSError:  # a full disk, or a store that is away: training goes on as long as it can
                    logger.debug("no heartbeat", exc_info=True)
            self._renewed = time.time()


@contextlib.contextmanager
def driver_lock(folders: Collection[str], notify: Callable[[str], None]) -> Iterator[DriverLock]:
    """Make this process the only driver of runs or a sweep during a ``with`` block.

    Waits up to a minute for a sign of life of a driver on another machine that may be dead.

    Args:
        folders: folders or addresses of the runs or the sweep.
        notify: shows a line to the user.

    Yields:
        The lock.

    Raises:
        RunLocked: another driver is at work on one of them.
        CheckpointError: a folder cannot be written.
    """
    lock = DriverLock()
    lock.start()  # before the first claim: to wait for a dead driver takes longer than a heartbeat
    try:
        for folder in folders:
            lock.take(folder, notify)
        yield lock
    finally:
        lock.release()


class _FolderLock:
    """Lock of one folder.

    Args:
        uri: folder, or address in an object store.
        notify: shows a line to the user.

    Attributes:
        claim: claim of this process.
    """

    def __init__(self, uri: str, notify: Callable[[str], None]) -> None:
        self._uri, self._notify = uri, notify
        self._folder = _open(uri)
        self._holder = LockHolder.here()
        self._watched: dict[str, tuple[bytes, float]] = {}  # first content of a claim, and when it was read
        self.claim = LockClaim(uri, "")

    def acquire(self) -> None:
        """Claim the folder.

        Raises:
            RunLocked: another driver is at work.
            CheckpointError: the folder cannot be read or written.
        """
        try:
            self._wait_for_others()
            term = 1 + max(map(_term, self._claims()), default=0)
            self.claim = LockClaim(self._uri, f"driver-{term:06d}-{secrets.token_hex(8)}.lock")
            self._write()
            try:
                self._compete()
            except BaseException:
                self._folder.remove(self.claim.file)
                raise
            for file in self._claims():
                if _term(file) < term:
                    self._folder.remove(file)
        except OSError as error:
            raise CheckpointError(
                f"cannot lock {self._uri} for this driver: {error}. Free disk space or correct the permissions, and "
                "start again"
            ) from error

    def renew(self) -> None:
        """Write a heartbeat.

        Raises:
            LockLost: another driver has taken over.
            OSError: the folder cannot be read or written.
        """
        self.claim.require()
        self._write()

    def release(self) -> None:
        """Remove the claim, and the folder if there is nothing else in it."""
        with contextlib.suppress(OSError):
            self._folder.remove(self.claim.file)
            self._folder.remove_if_empty()

    def _wait_for_others(self) -> None:
        """Wait until the drivers that claim the folder are known to be dead.

        Raises:
            RunLocked: one is alive.
        """
        notified = False
        while others := self._living():
            file, holder = others[0]
            if holder is not None and (holder.alive() or self._watched[file][0] != self._folder.read(file)):
                raise self._locked(holder)
            if not notified:
                notified = True
                seconds = f"{EXPIRY_SECONDS:.0f} s"
                self._notify(f"waiting up to {seconds} for a sign of life in {self._uri} of {_described(holder)}")
            time.sleep(POLL_SECONDS)

    def _compete(self) -> None:
        """Hold the folder, unless somebody holds it or has claimed it at the same time with a smaller name.

        Raises:
            RunLocked: somebody has.
        """
        while others := self._living():
            for file, holder in others:
                if holder is None or holder.holds or file < self.claim.file:
                    raise self._locked(holder)
            time.sleep(POLL_SECONDS)  # the others see this claim, and give way
        self._holder = dataclasses.replace(self._holder, holds=True)
        self._write()

    def _living(self) -> list[tuple[str, LockHolder | None]]:
        """Claims of the other drivers that are not known to be dead; None for one that cannot be read."""
        found = []
        for file in self._claims():
            content = None if file == self.claim.file else self._folder.read(file)
            if content is None:
                continue
            holder = _holder(content)
            alive = None if holder is None else holder.alive()
            if alive or (alive is None and not self._stands_still(file, content)):
                found.append((file, holder))
        return found

    def _stands_still(self, file: str, content: bytes) -> bool:
        """Whether a claim has not changed for long; the clocks of two machines are not compared."""
        before, since = self._watched.setdefault(file, (content, time.monotonic()))
        return before == content and time.monotonic() - since > EXPIRY_SECONDS

    def _claims(self) -> list[str]:
        return [name for name in self._folder.names() if _CLAIM.fullmatch(name)]

    def _write(self) -> None:
        values = dataclasses.asdict(dataclasses.replace(self._holder, heartbeat=time.time()))
        content = json.dumps(values, indent=2).encode()

        def fill(file: BinaryIO) -> None:
            file.write(content)

        self._folder.write(self.claim.file, fill)

    def _locked(self, holder: LockHolder | None) -> RunLocked:
        stop = "" if holder is None else f", or stop it by `kill {holder.pid}` on {holder.host}"
        return RunLocked(
            f"another driver is at work on {self._uri}: {_described(holder)}. Wait for its end{stop}. A driver that "
            f"died is replaced {EXPIRY_SECONDS:.0f} s later, on its own machine at once"
        )


_open = functools.cache(open_folder)


def _described(holder: LockHolder | None) -> str:
    return "a driver whose claim cannot be read" if holder is None else str(holder)


def _holder(content: bytes) -> LockHolder | None:
    """The driver of a claim; None if it cannot be read."""
    try:
        values = json.loads(content)
        numbers = {name: float(values[name]) for name in ("started", "since", "heartbeat")}
        return LockHolder(
            str(values["host"]), str(values["machine"]), int(values["pid"]), holds=values["holds"] is True, **numbers
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _term(file: str) -> int:
    """Number of a claim, larger than those of the drivers before."""
    return int(file.split("-")[1])


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@functools.cache
def _machine() -> str:
    """The running system, and the namespace of its process numbers: containers may share a name and a folder."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return socket.gethostname()
