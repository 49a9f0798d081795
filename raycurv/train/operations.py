"""Floating-point operations of a step, counted by torch on a run of its own."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import torch
from torch.utils.flop_counter import FlopCounterMode

from raycurv.data import Data
from raycurv.objective.collectives import Local
from raycurv.train.configuration import RunConfig
from raycurv.train.training_run import TrainingRun

PERIOD = 5  # steps between two of CurveBall's checks of λ


def operations_per_step(config: RunConfig, data: Data | None = None) -> float:
    """Mean over five steps, after a first one, which may cost more or less.

    The count uses a new model and optimizer, so a run that trains meanwhile is unchanged.

    Args:
        config: configuration of the run.
        data: the data of ``config.data``, if it is built already.

    Returns:
        Floating-point operations per step.
    """
    with torch.random.fork_rng():
        run = TrainingRun(dataclasses.replace(config, log_every=1), Local(), torch.device("cpu"), data)
        with closing(run.loader.epoch(0)) as batches:
            inputs, targets = next(batches)
        run.optimizer.step(run.objective.batch(inputs, targets), validation=run.validation_batch())
        with FlopCounterMode(display=False) as counter:
            for _ in range(PERIOD):
                run.optimizer.step(run.objective.batch(inputs, targets), validation=run.validation_batch())
    return counter.get_total_flops() / PERIOD
