"""What a run tells the outside while it goes on, and what it hands back at its end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["step", "progress", "evaluation", "event"]


@dataclass(frozen=True)
class Record:
    """Some numbers of one moment of a run.

    Attributes:
        kind: ``step`` for the scalars of one update, ``progress`` for the speed over a log interval, ``evaluation`` for
            what was measured on whole sets, ``event`` for something to tell (``message``).
        step: updates made so far.
        epoch: passes made so far, with the fraction of the current one.
        time: seconds since 1970.
        values: metric names and numbers; they may be NaN.
        message: what happened, for events.
    """

    kind: Kind
    step: int
    epoch: float
    time: float
    values: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        name: of the run.
        steps: updates made.
        epochs: passes made; whole unless the run ended within one.
        values: the last evaluation: ``train/epoch_loss``, ``test/loss``, ``test/accuracy``, ``averaged/test/loss``, ….
        evaluations: every evaluation, oldest first.
        seconds: of work, with evaluations and checkpoints, over all the sittings that a resumed run took.
        images_per_second: training samples per second of training, without evaluations and checkpoints.
        stopped: asked to stop before its end; a checkpoint holds where it was.
    """

    name: str
    steps: int
    epochs: float
    values: Mapping[str, float]
    evaluations: tuple[Record, ...]
    seconds: float
    images_per_second: float
    stopped: bool = False

    def to_json(self) -> str:
        """The result as JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        values["evaluations"] = tuple(Record(**record) for record in values["evaluations"])
        return cls(**values)
