"""Log of the outcomes of a sweep on disk, which makes it resumable."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from raycurv.results.outcomes import Outcome
from raycurv.service.errors import LaunchError

_LOG = logging.getLogger(__name__)


class OutcomeLog:
    """Outcomes of trials that ended, one line each, flushed to disk before anything relies on them.

    Args:
        path: the file.

    Attributes:
        done: outcomes by name of their run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Outcome] = {}
        self._incomplete = False  # whether the last line lacks its end, which the next must not continue
        if path.exists():
            content = path.read_bytes()
            self._incomplete = bool(content) and not content.endswith(b"\n")
            for number, line in enumerate(content.splitlines(), start=1):
                self._read(line, number)

    def _read(self, line: bytes, number: int) -> None:
        try:
            outcome = Outcome.from_json(line.decode())
        except ValueError as error:  # usually the last line of a driver that was killed while it wrote
            if line.strip():
                _LOG.warning("%s, line %d: %s; a trial that has no other line is done again", self.path, number, error)
            return
        self.done[outcome.name] = outcome

    def add(self, outcome: Outcome) -> None:
        """Write a line.

        Raises:
            LaunchError: it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n" * self._incomplete + outcome.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LaunchError(
                f"cannot write down how {outcome.name} ended: {error}. What ended before is in {self.path}: free "
                "disk space or correct the permissions, and go on with --resume"
            ) from error
        self._incomplete = False
        self.done[outcome.name] = outcome
