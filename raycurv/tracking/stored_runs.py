"""Outcomes of tracked runs, read from MLflow. A few queries read an experiment."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from urllib.parse import quote, urlencode

import numpy as np

from raycurv.arguments import format_settings, reformat_settings
from raycurv.figures.report import ReportContext
from raycurv.results.conditions import conditions_of
from raycurv.results.outcomes import EvaluationPoint, Outcome, Status
from raycurv.tracking import views
from raycurv.tracking.client import TrackingError
from raycurv.tracking.run_page import LAUNCH, configuration, versions_of
from raycurv.tracking.settings import default_runs, default_tracking_uri, resolve_uri
from raycurv.tracking.stores import StoredRun, Values, store_at
from raycurv.tracking.tracked_run import TAG
from raycurv.train import records

EPOCH_LOSS = "train/epoch_loss"
# Metrics that every evaluation measures, of the raw and of the averaged weights.
PER_EPOCH = (EPOCH_LOSS, "test/loss", "test/accuracy", "averaged/test/loss", "averaged/test/accuracy")
_MEASURED = ("train/epoch_", "test/", "averaged/test/")
SECONDS, OPERATIONS = "result/seconds", "result/operations"
_STATUS: dict[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "failed"}
COMPARED = 50  # runs on one page of MLflow
_SETTING = "optimizer_settings."


class ExperimentRuns:
    """Current state of one experiment in MLflow, for reading only.

    Args:
        uri: tracking URI of a server, or of a data base, which is read by a few SELECTs.
        experiment: name of the experiment.

    Raises:
        TrackingError: there is no such experiment, or MLflow cannot be reached or read.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self._store = store_at(uri)
        known = self._store.experiments()
        if experiment not in known:
            names = ", ".join(sorted(known)) or "none"
            raise TrackingError(f"MLflow at {uri} has no experiment {experiment!r}; it has: {names}")
        self.id = known[experiment]
        self._all = self._store.runs(self.id)
        self.runs = [run for run in self._all if TAG + "optimizer" in run.tags]
        """Every run that trains or trained, oldest first; parents of launches and sweeps are not among them."""

    @property
    def per_epoch(self) -> tuple[str, ...]:
        """Metrics of evaluations: loss and accuracy, then those that runs measure beside them."""
        found = {name for run in self.runs for name in run.latest if name.startswith(_MEASURED)}
        return (*PER_EPOCH, *sorted(found.difference(PER_EPOCH)))

    @property
    def ended(self) -> list[StoredRun]:
        """Runs that have ended.

        Raises:
            TrackingError: no run has ended.
        """
        ended = [run for run in self.runs if run.status in _STATUS]
        if not ended:
            going = f"; {len(self.runs)} are still going on" if self.runs else ""
            raise TrackingError(
                f"experiment {self.experiment!r} has no run that has ended{going}; train something first"
            )
        return ended

    @property
    def notes(self) -> list[str]:
        """Notes for a reader of these runs: runs left out, and deviations of the store from what is expected."""
        others = sum(not any(name.startswith(TAG) for name in run.tags) for run in self._all)
        going = sum(run.status not in _STATUS for run in self.runs)
        notes = list(self._store.notes)
        if others:
            notes.append(f"Left out: {_runs(others)} that other programs wrote (without the tag {TAG}optimizer).")
        if going:
            notes.append(f"Left out: {_runs(going)} that still {'goes' if going == 1 else 'go'} on.")
        return notes

    def values(self, names: Sequence[str], runs: Sequence[StoredRun] | None = None) -> Values:
        """All values of some metrics, of all runs or of some."""
        chosen = self.runs if runs is None else runs
        return self._store.values(self.id, [run.id for run in chosen], names)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Outcomes of all runs that have ended."""
        ended = self.ended
        values = self.values(self.per_epoch, ended)
        where = values.of_run()
        points = (tuple(_points(run, values, where[run.id], self.began[run.id])) for run in ended)
        found = map(outcome_of, ended, points)
        return [dataclasses.replace(o, name=self.names[run.id]) for run, o in zip(ended, found, strict=True)]

    @cached_property
    def names(self) -> dict[str, str]:
        """Name of every run that has ended, by its id; a name that several runs have gets a number."""
        seen: Counter[str] = Counter()
        found = {}
        for run in self.ended:
            name = name_of(run)
            seen[name] += 1
            found[run.id] = f"{name} ({seen[name]})" if seen[name] > 1 else name
        return found

    @cached_property
    def began(self) -> dict[str, float]:
        """Start of every run's clock, in seconds since 1970, by id of the run.

        MLflow may receive a run only at its end. Then the start follows from the logged duration.
        """
        began = {run.id: run.began for run in self.runs}
        durations = self.values([SECONDS], [run for run in self.runs if SECONDS in run.latest])
        for run, time, value in zip(
            durations.run.tolist(), durations.time.tolist(), durations.value.tolist(), strict=True
        ):
            began[durations.runs[run]] = time - value
        return began

    def about(self, server: str | None = None) -> ReportContext:
        """Context of a report: everything about the runs beside their outcomes.

        Args:
            server: address of the MLflow server that shows them; by default the tracking URI if it is one.
        """
        base = self.server(server)
        places = self._places(base) if base else {}
        links, settings = self.links(server), self.settings()
        return ReportContext(self.notes, links, places, settings, self.versions(), self.commands())

    def _places(self, base: str) -> dict[str, str]:
        table, charts = (base + views.runs_page(self.id, charts=charts) for charts in (False, True))
        places = {"the runs in MLflow": table, "their charts": charts}
        final = [run.id for run in self.ended if run.tags.get(TAG + "stage", "final") == "final"]
        if len(final) > 1:
            text = "side by side" if len(final) <= COMPARED else f"the first {COMPARED} side by side"
            asked = {"runs": json.dumps(final[:COMPARED]), "experiments": json.dumps([self.id])}
            places[text] = f"{base}/#/compare-runs?{urlencode(asked, quote_via=quote)}"
        return places

    def links(self, server: str | None = None) -> dict[str, str]:
        """Page of every run that has ended, by name.

        Args:
            server: address of the MLflow server that shows the runs; by default the tracking URI if it is one.
        """
        base = self.server(server)
        return {name: base + views.run_page(self.id, run) for run, name in self.names.items()} if base else {}

    def server(self, given: str | None = None) -> str | None:
        """Address of the MLflow server; None if there is none."""
        base = given or (self.uri if self.uri.startswith("http") else None)
        return base.rstrip("/") if base else None

    def settings(self) -> dict[str, dict[str, str]]:
        """Flat configuration of every run that has ended, by name."""
        return {self.names[run.id]: configuration(run.params) for run in self.ended}

    def versions(self) -> dict[str, str]:
        """Versions of the packages that the runs used, with the number of runs for each if they differ."""
        prefix = TAG + "version."
        found: dict[str, Counter[str]] = {}
        for run in self.ended:
            tags = {tag.removeprefix(prefix): value for tag, value in run.tags.items() if tag.startswith(prefix)}
            for name, value in (tags or versions_of(run.params.get(LAUNCH + "versions", ""))).items():
                found.setdefault(name, Counter())[value] += 1
        return {name: _counted(counter) for name, counter in sorted(found.items())}

    def commands(self) -> dict[str, int]:
        """Number of runs by command and commit."""
        found: Counter[str] = Counter()
        for run in self.ended:
            tags = tags_of(run)
            if command := run.params.get(LAUNCH + "command", tags.get("command")):
                dirty = ", with changes" if tags.get("dirty") == "true" else ""
                found[f"{command}    # commit {tags.get('commit', 'unknown')[:12]}{dirty}"] += 1
        return dict(found)


def outcomes(uri: str, experiment: str) -> list[Outcome]:
    """Outcomes of all runs of an experiment that have ended, oldest first.

    Raises:
        TrackingError: there is no such experiment, nothing in it has ended, or MLflow cannot be reached.
    """
    return ExperimentRuns(uri, experiment).outcomes


def default_uri(given: str | None = None) -> str:
    """Given tracking URI, or the one that jobs write to."""
    return resolve_uri(default_tracking_uri() if given is None else given, default_runs())


def tags_of(run: StoredRun) -> dict[str, str]:
    """Tags in this project's name space, without its prefix."""
    return {name.removeprefix(TAG): value for name, value in run.tags.items() if name.startswith(TAG)}


def name_of(run: StoredRun) -> str:
    """Name of a run in the rest of the project."""
    return run.tags.get(TAG + "run_name", run.label or run.id)


def setting_of(run: StoredRun) -> str:
    """Optimizer settings given by hand or by a search; empty for an optimizer at its defaults."""
    if (tag := run.tags.get(TAG + "setting")) is not None:
        return reformat_settings(tag)
    given = {k.removeprefix(_SETTING): v for k, v in run.params.items() if k.startswith(_SETTING)}
    return format_settings(dict(sorted(given.items())))


def seconds_of(run: StoredRun) -> float:
    """Duration of a run in seconds; NaN while it goes on."""
    took = math.nan if run.ended is None else run.ended - run.began
    return run.latest.get(SECONDS, took)


def outcome_of(run: StoredRun, points: Sequence[EvaluationPoint]) -> Outcome:
    """Outcome of a run that has ended."""
    tags = tags_of(run)
    stopped = "it was stopped, or its driver died" if run.status == "KILLED" else ""
    return Outcome(
        name=name_of(run),
        recipe=tags.get("recipe", "unknown"),
        optimizer=tags["optimizer"],
        setting=setting_of(run),
        seed=int(seed) if (seed := tags.get("seed", "0")).isdecimal() else 0,
        stage=tags.get("stage", "final"),
        status=tags.get("status", _STATUS[run.status]),  # type: ignore[arg-type]  # a word of Status, by a sweep
        reason=tags.get("reason", stopped),
        points=tuple(points),
        steps=max([*(run.last_step.get(name, 0) for name in (*PER_EPOCH, SECONDS)), *(p.step for p in points)]),
        seconds=seconds_of(run),
        operations=run.latest.get(OPERATIONS, run.latest.get(records.OPERATIONS, 0.0)),
        step_seconds=run.latest.get("result/step_seconds", 0.0),
        startup_seconds=run.latest.get("result/startup_seconds", 0.0),
        conditions=conditions_of(configuration(run.params)),
        labels={name: tags[name] for name in ("network", "sweep", "launch") if name in tags},
    )


def epochs_at(run: StoredRun, evaluated: Sequence[int] | np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Epochs passed at some steps: in proportion to the steps.

    A run that did not log its epoch is taken to have been evaluated once at the end of each epoch.
    """
    if run.last_step.get("epoch", 0) > 0 and run.latest["epoch"] > 0:
        return np.asarray(steps) * (run.latest["epoch"] / run.last_step["epoch"])
    passes = np.arange(1.0, len(evaluated) + 1)
    known_steps, known = np.concatenate([[0], evaluated]), np.concatenate([[0.0], passes])
    if len(known) == 1:
        return np.zeros(len(steps))
    pace = (known[-1] - known[-2]) / max(known_steps[-1] - known_steps[-2], 1)
    beyond = known[-1] + pace * (steps - known_steps[-1])  # the run ended abruptly within an epoch
    return np.where(steps > known_steps[-1], beyond, np.interp(steps, known_steps, known))


def _points(run: StoredRun, values: Values, mine: slice, began: float) -> Iterator[EvaluationPoint]:
    steps: dict[int, dict[str, float]] = {}
    at: dict[int, float] = {}
    columns = (getattr(values, name)[mine].tolist() for name in ("name", "step", "time", "value"))
    for name, step, time, value in zip(*columns, strict=True):
        steps.setdefault(step, {})[values.names[name]] = value
        at[step] = time
    evaluated = np.array(sorted(steps))
    for step, epoch in zip(evaluated.tolist(), epochs_at(run, evaluated, evaluated).tolist(), strict=True):
        yield EvaluationPoint(epoch, step, at[step] - began, steps[step])


def _counted(counter: Counter[str]) -> str:
    if len(counter) == 1:
        return next(iter(counter))
    return ", ".join(f"{value} ({_runs(count)})" for value, count in counter.most_common())


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
