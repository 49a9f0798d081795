"""How one trial of a sweep ended: what comparisons are made of. Failures and divergences are results like others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raycurv.arguments import reformat_settings

# Of a step: told of the last one before an evaluation too.
SCALARS = ("optimizer/learning_rate", "optimizer/descent_share")
Status = Literal["finished", "diverged", "failed", "out of time", "stopped early"]


@dataclass(frozen=True)
class EvaluationPoint:
    """What was measured at the end of an epoch.

    Attributes:
        epoch: passes made.
        step: updates made.
        seconds: since the run began, evaluations included.
        values: ``train/epoch_loss``, ``test/loss``, ``test/accuracy``, ….
    """

    epoch: float
    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """One trial.

    Attributes:
        name: of its run.
        recipe: what was trained.
        optimizer: with what.
        setting: the numbers that a search has chosen, as text; empty for an optimizer at its defaults.
        seed: of weights and data.
        stage: ``search`` for trials that only find the numbers, ``final`` for those that are compared.
        status: how it ended.
        reason: why, where it did not finish.
        points: every evaluation, oldest first.
        steps: updates made.
        seconds: of work.
        operations: floating-point operations of all its steps, counted by torch; 0 where they are not known.
        labels: anything else, such as the number of a random network.
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
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "setting", reformat_settings(self.setting))  # scale=1.0 and scale=1 are one method

    def last(self, metric: str) -> float | None:
        """The last value of a metric that was measured; None if it never was."""
        return next((p.values[metric] for p in reversed(self.points) if metric in p.values), None)

    def to_json(self) -> str:
        """One line of JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["points"] = tuple(EvaluationPoint(**point) for point in values["points"])
        return cls(**values)
