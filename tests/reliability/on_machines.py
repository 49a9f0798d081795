"""Jobs on separate machines made of namespaces, one of which dies and comes back: the losses of the undisturbed run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.machines import HEAD, Job, Machines, why_not

RECIPE = ("--recipe", "tests.service.problems:mine", "--option", "epochs=4", "pause=0.1")
TWO = ("--workers", "2", "--system-metrics-every", "0")
NODES = ("n1", "n2")
_STATUS = """
import json
from mlflow import MlflowClient
client = MlflowClient()
experiments = [each.experiment_id for each in client.search_experiments()]
runs = client.search_runs(experiments, "tags.`raycurv.run_name` = '{name}'")
print(json.dumps([run.info.status for run in runs]))
"""


def run_node(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """A machine with one of two workers is switched off, every second time without a word, and comes back.

    Raises:
        RuntimeError: machines cannot be made here.
    """
    if reason := why_not():
        raise RuntimeError(f"a machine that dies {reason}")
    machines = Machines(NODES)
    try:
        assert _train(machines, "whole").finish() == 0
        for number in range(first, stop):
            try:
                note(number, _lost(machines, number, random.Random(number)))
            except AssertionError as error:
                note(number, f"AssertionError: {str(error)[-300:]}")
            machines.end_jobs()
    finally:
        machines.close()


def _train(machines: Machines, name: str, *more: str) -> Job:
    return machines.train(*RECIPE, *TWO, "--run-name", name, *more)


def _lost(machines: Machines, number: int, draw: random.Random) -> str:
    """What is lost after the death of a machine; empty if nothing."""
    machines.require(*NODES)
    name, node = f"node-{number}", draw.choice(NODES)
    job = _train(machines, name)
    job.wait_for("starts: ")
    time.sleep(draw.uniform(0.0, 3.0))
    machines.kill(node, silent=number % 2 == 1)
    machines.boot(node)
    if code := job.finish():
        again = _train(machines, name, "--resume")
        if again.finish():
            return f"exit {code}, then {again.process.returncode}: {again.output[-300:]}"
    for metric in ("train/loss", "test/loss"):
        if machines.values(name, metric) != machines.values("whole", metric):
            return f"another {metric}"
    status = machines.python(HEAD, _STATUS.format(name=name))
    return "" if status == ["FINISHED"] else f"MLflow has {status}"
