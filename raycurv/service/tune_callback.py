"""Through which Ray Tune tells the driver how trials end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from raycurv.results.outcomes import Outcome
from raycurv.service.sweep_summary import METRIC, SweepSummary
from raycurv.service.trial import TrialTask
from raycurv.train.records import Record

if TYPE_CHECKING:
    from raycurv.service.sweep import Sweep

SAY_SECONDS, QUIET_SECONDS = 5.0, 30.0  # between two lines: at least, and at most while trials go on
SHOWN = 3  # trials that go on, in one line


class SweepCallback(tune.Callback):
    """Writes down how every trial ended, and says how the sweep stands.

    Args:
        sweep: keeps the outcomes.
        tasks: the trials.
    """

    def __init__(self, sweep: Sweep, tasks: Sequence[TrialTask]) -> None:
        self._sweep, self._tasks = sweep, tasks
        self._standing, self._said = SweepSummary(len(tasks)), 0.0
        self._began = time.monotonic()

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

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Ray Tune has looked at its trials; long ones are not passed over in silence."""
        running = [trial for trial in trials if trial.status == "RUNNING"]
        if running and time.monotonic() - max(self._said, self._began) > QUIET_SECONDS:
            self._standing.running = len(running)
            self._say("".join(f"\n  {self._at(trial)}" for trial in running[:SHOWN]))

    def _at(self, trial: Any) -> str:
        outcome, told = self._tasks[trial.config["trial"]].outcome, trial.last_result or {}
        what = " ".join(filter(None, [outcome.recipe, outcome.optimizer, outcome.setting, f"seed {outcome.seed}"]))
        if METRIC not in told:
            return f"{what}: in its first epoch"
        return f"{what}: {told['epoch']} epochs done, training loss {told[METRIC]:.4g}"

    def _say(self, more: str = "") -> None:
        self._said = time.monotonic()
        self._sweep.say(f"{self._sweep.name}: {self._standing}{more}")

    def _take(self, trials: Any, outcome: Outcome, records: list[Record], task: TrialTask) -> None:
        self._sweep.take(outcome, records, task.config)
        self._standing.add(outcome, running=sum(trial.status == "RUNNING" for trial in trials))
        if time.monotonic() - self._said > SAY_SECONDS or self._standing.left == 0:
            self._say()
