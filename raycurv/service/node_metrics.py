"""System metrics of the machine of a worker, sampled beside the training and sent to the driver."""

from __future__ import annotations

import threading
import time
from typing import Any

from raycurv.tracking.messages import LogRecords, to_bytes
from raycurv.tracking.system_metrics import gpu_metrics, system_metrics
from raycurv.train.records import Record


class NodeSampler:
    """Sends the use of processors, memory and GPUs of this node every few seconds, for the run that trains.

    MLflow draws ``system/node_0/…``, ``system/node_1/…`` of all nodes together.

    Args:
        mailbox: actor that takes messages for the driver.
        node: number of this node.
        every: seconds between two samples; 0 for none.
        active: whether this worker samples; of several workers on one node only the first one does.

    Attributes:
        run: name of the run that trains; empty between runs.
    """

    def __init__(self, mailbox: Any, node: int, every: float, *, active: bool = True) -> None:
        self._mailbox, self._node, self._every = mailbox, node, every
        self.run = ""
        self._ended = threading.Event()
        if active and every:
            threading.Thread(target=self._sample, name="node-metrics", daemon=True).start()

    def close(self) -> None:
        """End the samples."""
        self._ended.set()

    def _sample(self) -> None:
        system_metrics()  # the share of the processors is that since the last call of the same thread
        while not self._ended.wait(self._every):
            if self.run:
                self._mailbox.put.remote(to_bytes(LogRecords(self.run, (self.record(),))))

    def record(self) -> Record:
        """One sample. Its step is the time in seconds, which goes on after a restart."""
        now = time.time()
        values = {name.removeprefix("system/"): value for name, value in (system_metrics() | gpu_metrics()).items()}
        named = {f"system/node_{self._node}/{name}": value for name, value in values.items()}
        return Record("system", int(now), 0.0, now, named)
