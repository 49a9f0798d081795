"""Whether a run that came to its end has diverged, by its training losses at the first and at the last steps.

The first loss f is that of the first step; for batches below 8, the lower median over the steps of the first 8 samples,
at most a tenth of the run. It stands for the loss of a constant prediction. A run has diverged where

- the mean loss of as many last steps is above 1000·f, or below −10⁶·|f|, as of a loss without a lower bound,
- the median loss of its last tenth is above 2·f, in a run of at least 20 steps, or
- the learning rate was 0 in all steps of that tenth and the loss stayed above f/2: no direction led downhill.

Medians ignore single hard batches; the factor 2 leaves room for the noise of f. A run that stays near its first loss
has not learned, but has not diverged. Losses that are NaN count as infinite. Where f is not positive, no ratio has a
meaning, and only such a fall is called diverged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raycurv.train.records import Record
    from raycurv.train.training_run import TrainingPosition

FIRST_SAMPLES = 8
EXPLOSION, BOTTOMLESS, RISE, LEARNED = 1e3, 1e6, 2.0, 0.5
LAST_SHARE, SHORTEST = 0.1, 20
MOST_LOSSES = 1000  # losses of the last tenth that are kept
LOSS, RATE = "train/loss", "optimizer/learning_rate"


def first_steps(batch_size: int, total_steps: int) -> int:
    """Number of steps whose losses are the first ones."""
    return max(1, min(math.ceil(FIRST_SAMPLES / batch_size), int(LAST_SHARE * total_steps)))


def add_losses(position: TrainingPosition, records: Iterable[Record], batch_size: int, total_steps: int) -> None:
    """Keep the first and the last losses among these records.

    Args:
        position: the position of the run, which keeps them.
        records: records of steps.
        batch_size: samples of a step.
        total_steps: length of the run.
    """
    count, start = first_steps(batch_size, total_steps), (1 - LAST_SHARE) * total_steps
    every = max(1, int(LAST_SHARE * total_steps) // MOST_LOSSES)
    for record in records:
        loss = record.values[LOSS]
        if record.values.get(RATE) != 0:
            position.last_move = record.step
        if record.step <= count:
            position.first_losses.append(loss)
        if record.step > start and (total_steps - record.step) % every == 0:
            position.last_losses.append((record.step, loss))


def divergence(position: TrainingPosition, batch_size: int, total_steps: int) -> str:
    """How a run that is complete has diverged; empty if it has not."""
    start = (1 - LAST_SHARE) * total_steps  # a run may have been made longer
    last = [loss if math.isfinite(loss) else math.inf for step, loss in position.last_losses if step > start]
    if not last or not position.first_losses:
        return ""  # begun by an earlier version
    first = statistics.median_low(position.first_losses)
    end = statistics.fmean(last[-first_steps(batch_size, total_steps) :])
    if end < -BOTTOMLESS * abs(first) < 0:
        return f"the training loss fell to {end:.3g} from {first:.3g}: it seems to have no lower bound"
    if not (math.isfinite(first) and first > 0):
        return ""
    if end > EXPLOSION * first:
        return f"the training loss ended at {end:.3g}, {end / first:.3g} times its first value"
    middle = statistics.median(last)
    if total_steps >= SHORTEST and middle > RISE * first:
        return (
            f"the training loss was above twice its first value, {first:.3g}, in the last tenth (median {middle:.3g})"
        )
    if total_steps >= SHORTEST and position.last_move <= start and middle > LEARNED * first:
        return f"the learning rate was 0 since step {position.last_move + 1}: no direction led downhill"
    return ""
