"""Through which Ray Tune tells the driver how trials end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from raycurv.service.summary import Standing
from raycurv.service.trial import Task
from raycurv.train.outcomes import Outcome
from raycurv.train.records import Record

if TYPE_CHECKING:
    from raycurv.service.sweep import Sweep

SAY_SECONDS = 5.0


class Books(tune.Callback):
    """Writes down how every trial ended, and says how the sweep stands.

    Args:
        sweep: keeps the outcomes.
        tasks: the trials.
    """

    def __init__(self, sweep: Sweep, tasks: Sequence[Task]) -> None:
        self._sweep, self._tasks = sweep, tasks
        self._standing, self._said = Standing(len(tasks)), 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune wants to save its callbacks, and these books are the ledger."""
        return {}

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial has told how it ended."""
        told, task = trial.last_result, self._tasks[trial.config["trial"]]
        records = [Record(**values) for values in json.loads(told.get("records", "[]"))]
        outcome = Outcome.from_json(told["outcome"]) if "outcome" in told else task.outcome
        self._take(trials, outcome, records, task)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial's process died too often."""
        task = self._tasks[trial.config["trial"]]
        reason = f"its process died {self._sweep.cluster.max_failures + 1} times (out of memory?)"
        self._take(trials, dataclasses.replace(task.outcome, reason=reason), [], task)

    def _take(self, trials: Any, outcome: Outcome, records: list[Record], task: Task) -> None:
        self._sweep.take(outcome, records, task.config)
        self._standing.add(outcome, running=sum(trial.status == "RUNNING" for trial in trials))
        if time.monotonic() - self._said > SAY_SECONDS or self._standing.left == 0:
            self._said = time.monotonic()
            self._sweep.say(f"{self._sweep.name}: {self._standing}")
