"""Print how throughput grows with the number of workers, at the same global batch and one thread each."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from raycurv.recipes import cifar10_basic_cnn
from raycurv.service import Cluster, commandline, launch


@dataclass(frozen=True)
class Benchmark:
    """Images per second of the basic CNN on CIFAR-10, for several numbers of workers."""

    data: str = "cifar10"
    """Folder, s3:// or gs:// address of CIFAR-10, or a name in RAYCURV_DATA."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers."""
    optimizer: str = "curveball"
    """A registered name."""
    steps: int = 60
    """Steps of each measurement."""


def main(benchmark: Benchmark) -> None:
    """Measure one number of workers after the other, and print the table."""
    base = cifar10_basic_cnn(data=benchmark.data)
    data = dataclasses.replace(base.data, settings={**base.data.settings, "evaluation": None})
    rows = ["| workers | images/s | ratio | from launch to the last step, s |", "|---|---|---|---|"]
    first = 0.0
    for workers in benchmark.workers:
        name = f"workers-{workers}-{time.time_ns()}"
        config = dataclasses.replace(
            base, name=name, data=data, optimizer=benchmark.optimizer, max_steps=benchmark.steps, log_every=10
        )
        began = time.monotonic()
        (result,) = launch([config], Cluster(workers=workers, run_name=name, threads=1, log_model=False))
        first = first or result.images_per_second
        speed = result.images_per_second
        rows.append(f"| {workers} | {speed:.0f} | {speed / first:.2f}× | {time.monotonic() - began:.0f} |")
    print("\n".join(rows))


if __name__ == "__main__":
    commandline.run(Benchmark, main)
