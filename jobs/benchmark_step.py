"""Print what one step of each optimizer costs, as ratios to a plain SGD step of the same network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro

from raycurv.recipes import step_cost


@dataclass(frozen=True)
class Benchmark:
    """Operations, wall time and peak memory of one step, as ratios to plain SGD."""

    optimizers: tuple[str, ...] = ("momentum", "adam", "curveball")
    """Registered names."""
    networks: tuple[str, ...] = ("basic CNN", "basic CNN + BN")
    """Keys of raycurv.recipes.step_cost.WORKLOADS."""
    rounds: int = 20
    """Timed steps of each optimizer."""
    threads: int = 2
    """Threads of the CPU."""
    device: str = "cpu"
    """Where: cpu or cuda."""


def main(benchmark: Benchmark) -> None:
    """Measure and print."""
    torch.set_num_threads(benchmark.threads)
    costs = []
    for network in benchmark.networks:
        costs += step_cost.measure(network, benchmark.optimizers, rounds=benchmark.rounds, device=benchmark.device)
    print(step_cost.markdown(costs))


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
