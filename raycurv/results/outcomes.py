"""Outcomes of trials, the input of comparisons. Failures and divergences are outcomes too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raycurv.arguments import reformat_settings, require_field_types

# Metrics of a step: an evaluation also reports those of the last step before it.
SCALARS = ("optimizer/learning_rate", "optimizer/descent_share")
Status = Literal["finished", "diverged", "failed", "out of time", "stopped early"]


@dataclass(frozen=True)
class EvaluationPoint:
    """Measurements at the end of an epoch.

    Attributes:
        epoch: number of passes so far.
        step: number of updates so far.
        seconds: seconds since the start of the run, evaluations included.
        values: values by metric: ``train/epoch_loss``, ``test/loss``, ``test/accuracy``, ….
    """

    epoch: float
    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """Outcome of one trial.

    Attributes:
        name: name of the run.
        recipe: name of the recipe.
        optimizer: name of the registered optimizer.
        setting: settings chosen by a search, as text; empty for an optimizer at its defaults.
        seed: seed of weights and data.
        stage: ``search`` for trials that only find the settings, ``final`` for those that are compared.
        status: status at the end of the run.
        reason: reason of a run that did not finish.
        points: every evaluation, oldest first.
        steps: number of updates.
        seconds: seconds of work.
        operations: floating-point operations of all steps, counted by torch; 0 if unknown.
        step_seconds: median seconds of a step, without the first ones; 0 if unknown.
        startup_seconds: seconds that the first steps took longer than that.
        labels: other labels, such as the number of a random network.
        conditions: fields of the configuration that runs of one method have in common
            (:func:`raycurv.results.conditions.conditions_of`); empty if unknown.
    """

    name: str
    recipe: str
    optimizer: str
    setting: str = ""
    seed: int = 0
    stage: str = "final"
    status: Status = "finished"
    reason: str = ""
    points: tuple[EvaluationPoint, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    operations: float = 0.0
    step_seconds: float = 0.0
    startup_seconds: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "setting", reformat_settings(self.setting))  # scale=1.0 and scale=1 are one method

    def last(self, metric: str) -> float | None:
        """Last measured value of a metric; None if it was never measured."""
        return next((p.values[metric] for p in reversed(self.points) if metric in p.values), None)

    def to_json(self) -> str:
        """One line of JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Read the output of :meth:`to_json`, also of an earlier version.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            points = tuple(require_field_types(EvaluationPoint(**point)) for point in values.pop("points"))
            return require_field_types(cls(points=points, **values))
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is no outcome of a trial: {error!r}") from error
