"""Show what one step of each optimizer costs, as ratios to a plain SGD step of the same network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from raycurv.benchmarks import step_cost
from raycurv.service import commandline, step_cost_tracking


@dataclass(frozen=True)
class Benchmark:
    """Operations, wall time and peak memory of one step, as ratios to plain SGD."""

    optimizers: tuple[str, ...] = ("adam", "curveball", "red_sgd", "red_sgd:lean=True", "llr_second_order")
    """Registered names, with settings as in red_sgd:lean=True. `all` is every one, and comparisons."""

    networks: tuple[str, ...] = tuple(step_cost.WORKLOADS)
    """Keys of raycurv.benchmarks.step_cost.WORKLOADS."""

    fraction: float | None = None
    """Measure CurveBall and RED with the curvature from this share of the batch too."""

    rounds: int = 20
    """Timed steps of each optimizer, with one of SGD beside each."""

    threads: int = 2
    """Threads of the CPU."""
    device: str = "cpu"
    """Where: cpu or cuda."""

    output: Path | None = None
    """Folder for step_cost.md, .csv, .png and .svg (the plot needs the extra figures)."""

    tracking_uri: str | None = None
    """Log the costs to this MLflow."""
    experiment: str | None = None
    """Log them to this experiment of MLflow, by default where --tracking-uri says."""


def main(benchmark: Benchmark) -> None:
    """Measure, print, write, track."""
    torch.set_num_threads(benchmark.threads)
    subjects, costs = step_cost.subjects(benchmark.optimizers, benchmark.fraction), []
    for network in benchmark.networks:
        for cost in step_cost.measure(network, subjects, rounds=benchmark.rounds, device=benchmark.device):
            costs.append(cost)
            print(cost.text, flush=True)
    print(f"\nOperations / wall time / peak memory, as ratios to SGD\n\n{step_cost.to_markdown(costs)}")
    if benchmark.output is not None:
        step_cost_tracking.write(costs, benchmark.output)
    if benchmark.tracking_uri is not None or benchmark.experiment is not None:
        step_cost_tracking.track(costs, benchmark.tracking_uri, benchmark.experiment, print)


if __name__ == "__main__":
    commandline.run(Benchmark, main)
