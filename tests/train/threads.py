"""Workers that are threads of one process: real collectives without the seconds that processes take to start.

Only for code that draws no random number, because torch's generators belong to the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


class Threads:
    """What one of the threads sees of the others."""

    def __init__(self, rank: int, size: int, slots: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.group = rank, size, None
        self._slots, self._barrier = slots, barrier

    def sum(self, tensor: Tensor) -> Tensor:
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait()
        total = sum(slot for slot in self._slots if slot is not None)
        self._barrier.wait()
        return tensor.copy_(total)


def run(workers: int, function: Callable[[Threads], T]) -> list[T]:
    """Call `function` in every thread, and return what each returned."""
    slots: list[Tensor | None] = [None] * workers
    barrier = threading.Barrier(workers, timeout=20)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda rank: function(Threads(rank, workers, slots, barrier)), range(workers)))
