"""A driver in which another thread collects garbage with references of Ray while Ray shuts down."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any

from raycurv.service.cluster import Cluster
from raycurv.service.connection import connected

REFERENCES = 100_000


class Cycle:
    """Garbage for the collector of cycles, with a reference of Ray."""

    def __init__(self, reference: Any) -> None:
        self.me, self.reference = self, reference


def collect_while_it_shuts_down(worker: Any) -> None:
    """Wait until a worker of Ray is disconnected, and collect garbage until it is gone."""
    while worker.connected:
        time.sleep(0)
    while hasattr(worker, "core_worker"):
        gc.collect()


def main() -> None:
    """Make garbage, and shut down."""
    gc.disable()
    with connected(Cluster(run_name="collecting"), lambda line: None):
        import ray
        from ray._private.worker import global_worker

        for _ in range(REFERENCES):
            Cycle(ray.ObjectRef.from_random())
        thread = threading.Thread(target=collect_while_it_shuts_down, args=(global_worker,))
        thread.start()
    thread.join()
    sys.stdout.write("still there\n")


if __name__ == "__main__":
    main()
