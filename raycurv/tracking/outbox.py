"""Deliveries to a server that may be away: in order, off everybody's path, tried again, on disk if it stays away."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
GATHER_SECONDS = 1.0  # metrics wait this long for others to share their request
MERGED = 1000  # metrics in one request, the most that MLflow takes


@dataclass(frozen=True)
class Delivery:
    """One thing to tell the server; made of plain values, so it can be written down.

    Attributes:
        kind: what to do.
        run: id of the run it is about.
        values: with what.
        metrics: name, value, time in milliseconds, step; only these deliveries are merged.
    """

    kind: str
    run: str
    values: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[tuple[str, float, int, int], ...] = ()


class DeliveryRefused(Exception):
    """The server answered, and does not want the delivery; trying again is no use."""


class Outbox:
    """Delivers in a thread of its own.

    Args:
        deliver: carries out one delivery; raises :class:`DeliveryRefused`, or anything else to be tried again.
        folder: where undelivered things are written down in the end.
        say: tells the user that the server is away or back.
        every: called about twice a second in the same thread, for instance to sample the machine.
    """

    def __init__(
        self,
        deliver: Callable[[Delivery], None],
        folder: Path,
        say: Callable[[str], None],
        every: Callable[[], None] = lambda: None,
    ) -> None:
        self._deliver, self._folder, self._say, self._every = deliver, folder, say, every
        self._waiting: deque[Delivery] = deque()
        self._on_its_way: Delivery | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Take a delivery; returns at once."""
        with self._lock:
            last = self._waiting[-1] if self._waiting else None
            mergeable = last is not None and last.kind == delivery.kind == "metrics" and last.run == delivery.run
            if last is not None and mergeable and len(last.metrics) + len(delivery.metrics) <= MERGED:
                self._waiting[-1] = replace(last, metrics=last.metrics + delivery.metrics)
            else:
                self._waiting.append(delivery)

    def postpone(self, kind: str) -> None:
        """Write the waiting deliveries of a kind to a file, for the next start: there is no time for them now."""
        with self._lock:
            left = [delivery for delivery in self._waiting if delivery.kind == kind]
            self._waiting = deque(delivery for delivery in self._waiting if delivery.kind != kind)
        if left:
            write_down(left, self._folder)

    def close(self, patience: float) -> Path | None:
        """Deliver what waits; after `patience` seconds without an answer write the rest to a file, and say where."""
        self._closing = True
        self._wake.set()
        deadline = time.monotonic() + patience
        while self._thread.is_alive() and (self._away_since is None or time.monotonic() < deadline):
            self._thread.join(0.1)
        with self._lock:
            # What is on its way may arrive and be written too; twice is better than never.
            left = [*filter(None, [self._on_its_way]), *self._waiting]
            self._waiting.clear()
        return write_down(left, self._folder) if left else None

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            if not self._closing:
                self._wake.wait(GATHER_SECONDS / 2)
                self._every()
            with self._lock:
                # Taken out while it is delivered, so that nothing is merged into it meanwhile.
                delivery = self._on_its_way = self._waiting.popleft() if self._waiting else None
            if delivery is None:
                if self._closing:
                    return
                continue
            arrived = self._try(delivery)
            with self._lock:
                self._on_its_way = None
                if not arrived:
                    self._waiting.appendleft(delivery)
            if not arrived:
                time.sleep(pause)
            pause = FIRST_PAUSE if arrived else min(2 * pause, LONGEST_PAUSE)

    def _try(self, delivery: Delivery) -> bool:
        try:
            self._deliver(delivery)
        except DeliveryRefused as error:
            path = write_down([delivery], self._folder)
            self._say(f"MLflow refused {delivery.kind} of run {delivery.run}: {error}. They are in {path}")
        except Exception as error:  # whatever the client raises while the server is away; said, and tried again
            logger.debug("delivery failed", exc_info=True)
            if self._away_since is None:
                self._away_since = time.monotonic()
                self._say(
                    f"MLflow does not answer ({_short(error)}); training goes on, and what it measures waits here"
                )
            return False
        if self._away_since is not None:
            self._say(f"MLflow answers again after {time.monotonic() - self._away_since:.0f} s; nothing was lost")
            self._away_since = None
        return True


def write_down(deliveries: list[Delivery], folder: Path) -> Path:
    """Write deliveries to a new file, and say which."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.time_ns()}.jsonl"
    path.write_text("".join(json.dumps(asdict(delivery)) + "\n" for delivery in deliveries))
    return path


def read_back(path: Path) -> list[Delivery]:
    """The deliveries that :func:`write_down` wrote."""
    found = []
    for line in path.read_text().splitlines():
        values = json.loads(line)
        values["metrics"] = tuple((name, value, when, step) for name, value, when, step in values["metrics"])
        found.append(Delivery(**values))
    return found


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
