"""Records that a run emits while it trains, and its result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raycurv.arguments import require_field_types

OPERATIONS = "progress/operations"  # metric of the floating-point operations so far
STEPS = "steps"  # value of an event: updates of the whole run
Kind = Literal["step", "progress", "evaluation", "event", "data", "system"]


@dataclass(frozen=True)
class Record:
    """Metrics at one step of a run, or an event.

    Attributes:
        kind: ``step`` for the scalars of one update, ``progress`` for the throughput of a log interval and the
            operations so far, ``evaluation`` for metrics of whole sets, ``event`` for a message, ``data`` for the
            description of the data (:class:`raycurv.train.data_summary.DataSummary`), ``system`` for metrics of the
            machine.
        step: updates so far.
        epoch: epochs so far, with the fraction of the current one.
        time: seconds since 1970.
        values: metric names and values; a value may be NaN. Those of an event describe the run, and are no metrics.
        message: text of an event, or the description of the data as JSON.
    """

    kind: Kind
    step: int
    epoch: float
    time: float
    values: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


def newest_is_best(evaluations: Sequence[Record], metric: str, *, largest: bool) -> bool:
    """Whether the newest evaluation has a finite value of a metric, better than that of every earlier one.

    Args:
        evaluations: records of evaluations, oldest first.
        metric: name of the metric.
        largest: whether the largest value is the best; otherwise the smallest.
    """
    *earlier, newest = [record.values.get(metric, math.nan) * (1 if largest else -1) for record in evaluations]
    return math.isfinite(newest) and all(newest > value for value in earlier if math.isfinite(value))


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        name: name of the run.
        steps: number of updates.
        epochs: number of epochs; a fraction if the run ended within one.
        values: the last evaluation: ``train/epoch_loss``, ``test/loss``, ``test/accuracy``, ``averaged/test/loss``, ….
            Losses are without the L2 term, which is ``train/epoch_l2_term``, ``test/l2_term``, ….
        evaluations: all evaluations, oldest first.
        seconds: wall-clock time with evaluations and checkpoints, summed over all resumptions.
        images_per_second: training samples per second, without evaluations, checkpoints and start-up.
        stopped: whether the run was stopped before its end; then it can be resumed.
        operations: floating-point operations of all steps and workers, without evaluation and without metrics of the
            mini-batch that only the configuration asks for; 0 if unknown.
        step_seconds: median seconds of a step, without the first ones of every sitting; 0 if unknown.
        startup_seconds: seconds that the first steps took longer than that.
        diverged: how the training loss has diverged (:mod:`raycurv.train.divergence`); empty if it has not.
    """

    name: str
    steps: int
    epochs: float
    values: Mapping[str, float]
    evaluations: tuple[Record, ...]
    seconds: float
    images_per_second: float
    stopped: bool = False
    operations: float = 0.0
    step_seconds: float = 0.0
    startup_seconds: float = 0.0
    diverged: str = ""

    def to_json(self) -> str:
        """The result as JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read the text of :meth:`to_json`.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        values = json.loads(text)
        try:
            values["evaluations"] = tuple(require_field_types(Record(**record)) for record in values["evaluations"])
            return require_field_types(cls(**values))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it is no result of a run: {error}") from error
