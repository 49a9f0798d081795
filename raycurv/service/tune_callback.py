"""Callback of Ray Tune: trials become outcomes from their messages, and the user sees the state of the sweep."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from raycurv.results.outcomes import Outcome
from raycurv.service.connection import inventory
from raycurv.service.mailbox import accept, receive
from raycurv.service.run_state import RunState
from raycurv.service.trial import METRIC, TrialTask
from raycurv.tracking.messages import WorkersNotice, WorkersStarted

if TYPE_CHECKING:
    from raycurv.service.sweep import Sweep

LINE_SECONDS, QUIET_SECONDS = 15.0, 30.0  # between two lines: at least, and at most while trials run
RECEIVE_SECONDS = 0.5  # between two looks into the mailbox
SHOWN = 3  # running trials in one line


class SweepCallback(tune.Callback):
    """Records how every trial ends, and shows the state of the sweep.

    Args:
        sweep: records the outcomes.
        tasks: all trials.
        mailbox: actor with the messages of the trials.
    """

    def __init__(self, sweep: Sweep, tasks: Sequence[TrialTask], mailbox: Any) -> None:
        self._sweep, self._tasks, self._mailbox = sweep, tasks, mailbox
        self._runs = {task.run: RunState(task.initial) for task in tasks}
        self._summary = SweepSummary(len(tasks))
        self._began = self._received = time.monotonic()
        self._shown = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks, and the outcomes are on disk already."""
        return {}

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Record a trial that ended, by itself or by the scheduler."""
        self._record(trials, trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Record a trial whose process died too often."""
        starts = self._sweep.cluster.max_failures + 1
        self._record(trials, trial, reason=f"its process died {starts} times (out of memory?)")

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Read messages, and show long trials from time to time."""
        self._sweep.lock.require()
        running = [trial for trial in trials if trial.status == "RUNNING"]
        self._summary.running = len(running)
        if time.monotonic() - self._received > RECEIVE_SECONDS:
            self._receive()
            self._draw()
        if time.monotonic() - max(self._shown, self._began) <= QUIET_SECONDS:
            return
        lines = [self._progress(trial) for trial in running[:SHOWN]]
        self._show("".join(f"\n  {line}" for line in lines or [f"waiting for room: {inventory(ray.nodes())}"]))

    def _receive(self) -> None:
        self._received = time.monotonic()
        received = receive(self._mailbox)
        accept(self._mailbox, len(received))  # a trial that goes on has its evaluations in its checkpoint
        for message in received:
            if not isinstance(message, WorkersStarted | WorkersNotice) and message.run in self._runs:
                self._runs[message.run].add(message)

    def _record(self, trials: Any, trial: Any, reason: str = "") -> None:
        self._receive()
        task = self._task(trial)
        run = self._runs.pop(task.run)
        if run.result is None and run.failure is None:
            early = self._sweep.limits.search == "asha" and not reason
            status = {"status": "stopped early", "reason": "a scheduler found others more promising"}
            failed = {"status": "failed", "reason": reason or "it ended without a result"}
            run.initial = dataclasses.replace(run.initial, **(status if early else failed))  # type: ignore[arg-type]
        outcome = run.outcome()
        self._sweep.record(outcome, run, task.config)
        self._summary.add(outcome, running=sum(other.status == "RUNNING" for other in trials if other is not trial))
        self._sweep.terminal.notify(ended_line(outcome))
        if time.monotonic() - self._shown > LINE_SECONDS or self._summary.left == 0:
            self._show()

    def _progress(self, trial: Any) -> str:
        task = self._task(trial)
        outcome, evaluations = task.initial, self._runs[task.run].evaluations
        what = " ".join(filter(None, [outcome.recipe, outcome.optimizer, outcome.setting, f"seed {outcome.seed}"]))
        if not evaluations:
            return f"{what}: in its first epoch"
        newest = evaluations[-1]
        loss = next((e.values[METRIC] for e in reversed(evaluations) if METRIC in e.values), math.nan)
        return f"{what}: {newest.epoch:.3g} epochs done, training loss {loss:.4g}"

    def _task(self, trial: Any) -> TrialTask:
        return self._tasks[trial.config["trial"]]

    def _show(self, more: str = "") -> None:
        self._shown = time.monotonic()
        if not self._draw():
            self._sweep.terminal.notify(f"{self._sweep.name}: {self._summary}{more}")
        elif not self._summary.running and more:
            self._sweep.terminal.notify(more.strip())

    def _draw(self) -> bool:
        """Draw the bar; False without a terminal."""
        summary = self._summary
        return self._sweep.terminal.show_trials(self._sweep.name, summary.done, summary.trials, summary.short)


class NoTrialReports(TrialProgressCallback):
    """Takes the place of Ray Tune's own callback, which prints a line for every trial."""

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Print nothing."""

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Print nothing."""


def ended_line(outcome: Outcome) -> str:
    """How a trial ended, in one line."""
    what = " ".join(filter(None, [outcome.optimizer, outcome.setting, f"seed {outcome.seed}"]))
    if outcome.status != "finished":
        return f"{what}: {outcome.status}{f', {outcome.reason}' if outcome.reason else ''}"
    loss, accuracy = outcome.last(METRIC), outcome.last("test/accuracy")
    parts = [f"loss {loss:.4g}"] if loss is not None else []
    parts += [f"accuracy {accuracy:.2%}"] if accuracy is not None else []
    return f"{what}: {', '.join([*parts, f'{outcome.steps:,} steps', f'{outcome.seconds:.1f} s'])}"


class SweepSummary:
    """State of a sweep in one line: trials by status, the best one, an estimate of the time left.

    Args:
        trials: number of trials to do.

    Attributes:
        running: number of trials that run now.
    """

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self.running = 0
        self._began = time.monotonic()
        self._ended: Counter[str] = Counter()
        self._best: tuple[float, str] | None = None

    @property
    def done(self) -> int:
        """Trials that have ended."""
        return self._ended.total()

    @property
    def left(self) -> int:
        """Trials that have not ended."""
        return self.trials - self.done

    @property
    def short(self) -> tuple[str, ...]:
        """Texts for a bar."""
        failed = self.done - self._ended["finished"]
        best = "" if self._best is None else f"best loss {self._best[0]:.4g}"
        return f"{self.running} running", f"{failed} not finished" if failed else "", best

    def add(self, outcome: Outcome, running: int) -> None:
        """Count a trial that ended.

        Args:
            outcome: outcome of the trial.
            running: number of trials that still run.
        """
        self.running = running
        self._ended[outcome.status] += 1
        loss = outcome.last(METRIC)
        if outcome.status == "finished" and loss is not None and (self._best is None or loss < self._best[0]):
            self._best = (loss, f"{outcome.optimizer} {outcome.setting}".strip())

    def __str__(self) -> str:
        done = self.done
        parts = [f"{done} of {self.trials} trials done", f"{self.running} running"]
        parts += [f"{count} {status}" for status, count in self._ended.items() if status != "finished"]
        if self._best is not None:
            parts.append(f"best {self._best[1]}: training loss {self._best[0]:.4g}")
        if self.left and done:
            parts.append(f"about {(time.monotonic() - self._began) / done * self.left / 60:.1f} min left")
        return ", ".join(parts)
