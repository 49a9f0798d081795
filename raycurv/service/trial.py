"""One trial of a sweep, in a process of Ray Tune: train, and tell how it ended."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from raycurv.data import Data
from raycurv.objective.collectives import Local
from raycurv.results.outcomes import SCALARS, EvaluationPoint, Outcome, Status
from raycurv.service.cluster import Cluster
from raycurv.service.errors import describe
from raycurv.service.ray_metrics import RayMetrics
from raycurv.service.ray_trainer import train_on_workers
from raycurv.train import CheckpointStore, NonFiniteLoss, train
from raycurv.train.configuration import RunConfig
from raycurv.train.operations import operations_per_step
from raycurv.train.records import Record

MOST_RECORDS = 200  # of single steps, kept for the curves of one trial
GRACE = 20.0  # seconds that a trial has to end by itself after its time is over
EARLY: Status = "stopped early"


@dataclass(frozen=True)
class TrialTask:
    """A trial as the processes of Ray Tune get it.

    Attributes:
        outcome: what is known of it before it begins.
        config: the run as JSON.
        checkpoints: its folder or address.
        shared: key of its data among those that lie decoded in Ray's object store.
    """

    outcome: Outcome
    config: str
    checkpoints: str
    shared: str


@dataclass(frozen=True)
class TrialSettings:
    """What holds for all trials of a sweep.

    Attributes:
        threads: of torch.
        device: ``cpu`` or ``cuda``.
        seconds: time limit of one trial, or None.
        cluster: the workers of one trial, or None where a trial is one process.
    """

    threads: int
    device: str
    seconds: float | None
    cluster: Cluster | None = None


@dataclass
class _TrialReporter:
    """What a trial has told so far."""

    task: TrialTask
    began: float
    points: list[EvaluationPoint] = field(default_factory=list)
    steps: list[Record] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=dict)  # scalars of the last step
    scalars: dict[int, dict[str, float]] = field(default_factory=dict)  # the same at the steps of the evaluations

    def __post_init__(self) -> None:
        self.live = RayMetrics(self.task.outcome.recipe, self.task.outcome.optimizer)

    def emit(self, records: list[Record]) -> None:
        self.live.show(records)
        for record in records:
            if record.kind == "evaluation":
                self.scalars[record.step] = self.newest
                self.points.append(self.point(record))
            elif record.kind == "step":
                self.steps.append(record)
                self.newest = {name: record.values[name] for name in SCALARS if name in record.values}
        self.steps = self.steps[:: 1 + len(self.steps) // MOST_RECORDS]
        if any(record.kind == "evaluation" for record in records):
            self.report(EARLY, "a scheduler found others more promising")

    def point(self, record: Record) -> EvaluationPoint:
        values = {**record.values, **self.scalars.get(record.step, {})}
        return EvaluationPoint(record.epoch, record.step, record.time - self.began, values)

    def report(self, status: Status, reason: str = "", **found: Any) -> None:
        """Tell Ray Tune; the last thing that was told is how the trial ended."""
        known = {"status": status, "reason": reason, "points": tuple(self.points)}
        outcome = dataclasses.replace(self.task.outcome, **{**known, "seconds": time.time() - self.began, **found})
        values = dict(self.points[-1].values) if self.points else {}
        records = [dataclasses.asdict(record) for record in self.steps] if status != EARLY else []
        told = {"outcome": outcome.to_json(), "records": json.dumps(records), "epoch": len(self.points)}
        tune.report({**values, **told})


def run_trial(
    chosen: dict[str, int], tasks: list[TrialTask], shared: Mapping[str, Any], conditions: TrialSettings
) -> None:
    """What Ray Tune calls. What goes wrong in a trial is how it ended; only the death of its process is tried again.

    Args:
        chosen: ``trial``, an index of `tasks`.
        tasks: all of them.
        shared: key → reference of decoded data, None where every process opens them itself.
        conditions: of the sweep.
    """
    task = tasks[chosen["trial"]]
    told = _TrialReporter(task, _first_start(task.checkpoints))
    hung = Path(task.checkpoints) / "hung"
    if hung.exists():
        told.report("out of time", f"it hung for {conditions.seconds} s and was ended")
        return
    torch.set_num_threads(conditions.threads)
    watch = _watched(conditions.seconds, hung)
    try:
        told.report(*_trained(task, told, shared, conditions), **_counted(task, told, shared))
    except NonFiniteLoss as error:
        told.report("diverged", str(error), **_counted(task, told, shared))
    except Exception as error:  # a result like another: counted, shown, not tried again
        told.report("failed", describe(type(error).__name__, str(error)))
    finally:
        watch.cancel()
    if "://" not in task.checkpoints:
        shutil.rmtree(task.checkpoints, ignore_errors=True)  # a sweep of hundreds would fill the disk


def _trained(
    task: TrialTask, told: _TrialReporter, shared: Mapping[str, Any], conditions: TrialSettings
) -> tuple[Status, str]:
    """Train it, and say how it ended and why."""
    if conditions.cluster is not None:
        records, result = train_on_workers(task.config, task.checkpoints, conditions.cluster)
        told.emit([record for record in records if record.kind == "step"])
        told.points = [told.point(record) for record in result.evaluations]
        return "finished", ""
    deadline = None if conditions.seconds is None else time.monotonic() + conditions.seconds
    result = train(
        RunConfig.from_json(task.config),
        collectives=Local(),
        device=conditions.device,
        store=CheckpointStore(task.checkpoints),
        emit=told.emit,
        resume="auto",
        stop=lambda: deadline is not None and time.monotonic() > deadline,
        data=_data(task, shared),
    )
    told.points = [told.point(record) for record in result.evaluations]  # also those of before a worker died
    if not result.stopped:
        return "finished", ""
    return "out of time", f"it had done {result.steps} steps after {conditions.seconds} s (--time-limit)"


_COUNTED: dict[str, float] = {}  # operations of a step, by everything that they depend on; for the trials to come
_BUILT: dict[str, Data] = {}  # data of this process


def _data(task: TrialTask, shared: Mapping[str, Any]) -> Data | None:
    """The data that all processes of this node share, or None if each opens them itself."""
    reference = shared.get(task.shared)
    if reference is None:
        return None
    if task.shared not in _BUILT:
        _BUILT.clear()
        _BUILT[task.shared] = ray.get(reference)
    return _BUILT[task.shared]


def _counted(task: TrialTask, told: _TrialReporter, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Steps and floating-point operations of a trial that came to its end."""
    config = RunConfig.from_json(task.config)
    steps = max([record.step for record in told.steps] + [point.step for point in told.points], default=0)
    same = {**json.loads(task.config), "name": "", "seed": 0, "epochs": 1, "max_steps": None}
    same["optimizer_settings"] = sorted(config.optimizer_settings)
    key = json.dumps(same, sort_keys=True)
    if key not in _COUNTED:
        _COUNTED[key] = operations_per_step(config, _data(task, shared))
    return {"steps": steps, "operations": _COUNTED[key] * steps}


def _first_start(folder: str) -> float:
    """When a trial began, also if its process died since and this is another one."""
    if "://" in folder:
        return time.time()
    note = Path(folder) / "began"
    note.parent.mkdir(parents=True, exist_ok=True)
    if not note.exists():
        note.write_text(repr(time.time()))
    return float(note.read_text())


def _watched(seconds: float | None, hung: Path) -> threading.Timer:
    """Ends the process of a trial that does not end by itself, so that the sweep goes on."""

    def end() -> None:
        hung.parent.mkdir(parents=True, exist_ok=True)
        hung.touch()
        os._exit(1)

    watch = threading.Timer((seconds or 0.0) + GRACE, end)
    watch.daemon = True
    if seconds is not None:
        watch.start()
    return watch
