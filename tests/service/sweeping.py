"""Sweeps of tiny trials, as a script that tests can kill."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from raycurv.recipes.search import SweepTrial
from raycurv.service.cluster import Cluster
from raycurv.service.errors import reported
from raycurv.service.limits import Limits
from raycurv.service.sweep import sweeping
from raycurv.train import Component, RunConfig
from tests.service.problems import points


class Troubled(nn.Module):
    """The identity, which sleeps, hangs, raises or ends its process."""

    def __init__(self, kind: str, note: str) -> None:
        super().__init__()
        self.kind, self.note, self.calls = kind, note, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.kind == "slow":
            time.sleep(1.5)
        if self.kind == "hangs":
            time.sleep(10**6)
        if self.kind == "raises":
            raise RuntimeError("this network is broken")
        if self.kind == "dies once" and self.calls > 7 and not Path(self.note).exists():
            Path(self.note).touch()
            os._exit(1)
        return inputs


def network(num_classes: int, kind: str = "none", note: str = "") -> nn.Module:
    """A small network, in trouble or not."""
    return nn.Sequential(Troubled(kind, note), nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, num_classes))


def config(kind: str = "none", note: str = "", **fields: object) -> RunConfig:
    """Four steps an epoch."""
    model = Component("tests.service.sweeping:network", {"kind": kind, "note": note})  # by name: this is a script
    values = {"batch_size": 16, "epochs": 1, "optimizer": "sgd"} | fields
    return RunConfig(name="tiny", model=model, data=Component.of(points, samples=128), **values)  # type: ignore[arg-type]


def many(number: int) -> list[SweepTrial]:
    """Trials that take milliseconds; every fiftieth diverges."""
    rates = [3e38 if i % 50 == 49 else 0.01 for i in range(number)]
    return [
        SweepTrial(config(seed=i, optimizer_settings={"learning_rate": rate}), {"learning_rate": rate})
        for i, rate in enumerate(rates)
    ]


def troubled(folder: Path) -> list[SweepTrial]:
    """One of each."""
    kinds: Sequence[str] = ("none", "slow", "hangs", "dies once", "raises")
    note = str(folder / "died")
    return [SweepTrial(config(kind, note, epochs=2), labels={"trouble": kind}) for kind in kinds]


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--trouble", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--run-name")
    parser.add_argument("--runs")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    cluster = Cluster(
        runs=given.runs, run_name=given.run_name, resume=given.resume, system_metrics_every=0, max_failures=1,
        workers=given.workers,
    )  # fmt: skip
    trials = troubled(Path(given.runs)) if given.trouble else many(given.trials)
    limits = Limits(time_limit=8.0 if given.trouble else None)
    with reported(given.runs), sweeping("tiny", trials, cluster, limits) as sweep:
        sweep.run(trials)


if __name__ == "__main__":
    main()
