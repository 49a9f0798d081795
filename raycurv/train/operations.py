"""Floating-point operations of a step, counted by torch on a copy of a run."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from raycurv.data import Data
from raycurv.objective.collectives import Local
from raycurv.train.configuration import RunConfig
from raycurv.train.training_run import TrainingRun

PERIOD = 5  # steps: CurveBall checks λ once in so many


def operations_per_step(config: RunConfig, data: Data | None = None) -> float:
    """Mean over five steps, after one that may be special; the run itself is not touched.

    Args:
        config: of the run.
        data: what ``config.data`` builds, where it is at hand.
    """
    with torch.random.fork_rng():
        run = TrainingRun(dataclasses.replace(config, log_every=1), Local(), torch.device("cpu"), data)
        batches = iter(run.loader.epoch(0))
        inputs, targets = next(batches)
        batches.close()  # type: ignore[attr-defined]  # a generator, which reads ahead until it is closed
        run.optimizer.step(run.objective.batch(inputs, targets))
        with FlopCounterMode(display=False) as counter:
            for _ in range(PERIOD):
                run.optimizer.step(run.objective.batch(inputs, targets))
    return counter.get_total_flops() / PERIOD
