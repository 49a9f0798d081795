"""What the workers tell the driver: an actor that takes no CPU, opens no letter, and makes nobody wait."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.cloudpickle

# The actor's process gets the class itself, so it need not import this package, and with it torch, to hold some bytes.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Message:
    """Something about one run.

    Attributes:
        run: index of the run within the launch; -1 for the workers as a whole.
        kind: ``workers`` (they are there), ``started``, ``records``, ``finished`` or ``failed``.
        values: what the kind needs: ``records``, ``result``, ``message`` and ``traceback``, ….
    """

    run: int
    kind: str
    values: dict[str, Any] = field(default_factory=dict)

    def seal(self) -> bytes:
        """The letter as bytes, so that the mailbox imports nothing to hold it."""
        return pickle.dumps(self)

    @staticmethod
    def open(sealed: bytes) -> Message:
        """The letter that was sealed by a worker of the same job."""
        letter = pickle.loads(sealed)  # noqa: S301 - from our own workers, over Ray's authenticated channel
        assert isinstance(letter, Message)
        return letter


@ray.remote(num_cpus=0, max_restarts=0)
class Mailbox:
    """Holds sealed letters until the driver takes them, and the driver's wish to stop until the workers ask."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []
        self._stop = False
        self._failed = False

    def put(self, letter: bytes, failed: bool = False) -> bool:
        """Take a letter, which may say that the launch has failed; answers whether the workers should stop."""
        self._letters.append(letter)
        self._failed = self._failed or failed
        return self._stop

    def take(self) -> list[bytes]:
        """Everything that came since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        self._stop = True

    def failed(self) -> bool:
        """Whether a worker met an error that another attempt would meet too."""
        return self._failed
