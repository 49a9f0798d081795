"""Kill the driver again and again, and count what MLflow has in the end.

    python -m tests.reliability.driver_kills --folder FOLDER [--runs 6] [--without-ray]

Each run has a small network, about 130 steps a second, a checkpoint every ten steps, and five kills of its driver: one
before its first step, three while it trains, and one in its last second, at its table, or just after it. It goes on
with ``--resume auto``, at once. After the last kill it is completed by ``--resume``, by ``raycurv tracking reap`` if it
had finished, or by the start of another run. Without Ray, the driver and the training are one process that starts in
seconds. FOLDER keeps a line for each run, so that an interrupted campaign goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mlflow import MlflowClient
from mlflow.entities import Run

from raycurv.service import local_ray
from raycurv.train import CheckpointStore
from tests.reliability.equality import difference, undisturbed
from tests.service.driving import SECONDS, Driver, Job

EPOCHS, STEPS_AN_EPOCH, PAUSE = 150, 8, 0.006
STEPS = EPOCHS * STEPS_AN_EPOCH
RECIPE = ("jobs/train.py", "--recipe", "tests.service.problems:mine", "--option", f"epochs={EPOCHS}", f"pause={PAUSE}")
OPTIONS = ("--checkpoint-every", "10", "--log-every", "1", "--no-log-model")
LAST = ("last second", "result", "table", "after the table")


@dataclass(frozen=True)
class Row:
    """A run of the campaign.

    Attributes:
        run: number of the run.
        kills: moments of the kills.
        logged: steps in MLflow right after each kill.
        completed: how the run was completed.
        steps: rows of the training loss in MLflow at the end.
        once: steps that are there exactly once.
        evaluations: evaluations that are there exactly once.
        equal: whether parameters, optimizer and losses are those of the run without kills, to the last bit.
        status: status of the run in MLflow.
    """

    run: int
    kills: tuple[str, ...]
    logged: tuple[int, ...]
    completed: str
    steps: int
    once: int
    evaluations: int
    equal: bool
    status: str

    @property
    def complete(self) -> bool:
        """Whether nothing was lost or doubled."""
        found = (self.steps, self.once, self.evaluations, self.equal, self.status)
        return found == (STEPS, STEPS, EPOCHS, True, "FINISHED")


class Campaign:
    """Runs with kills, beside one without.

    Args:
        driver: starts the jobs.
        prefix: script that starts the job's, if there is one.
    """

    def __init__(self, driver: Driver, prefix: tuple[str, ...] = ()) -> None:
        self.driver, self.prefix = driver, prefix
        self.seconds_to_start = 10.0

    def reference(self) -> None:
        """Train the run without kills, unless it is there."""
        store = CheckpointStore(str(self.driver.checkpoints(undisturbed())))
        if store.finished() is None:
            job = self._start(undisturbed(), *(["--resume"] if store.exists() else []))
            _wait_for(job, ("loading torch",))
            began = time.monotonic()
            _wait_for(job, ("starts: ", "goes on at"))
            self.seconds_to_start = time.monotonic() - began
            self._require(job.finish())

    def run(self, number: int) -> Row:
        """Train one run with five kills."""
        draw = random.Random(number)
        name = f"killed-{number}"
        self._forget(name)
        moments = ["beginning", "start", "middle", "middle", LAST[number % len(LAST)]]
        logged = []
        for count, moment in enumerate(moments):
            job = self._start(name, *(["--resume", "auto"] if count else []))
            self._kill(job, moment, draw)
            logged.append(len(self._history(name, "train/loss")) if self._runs(name) else 0)
        completed = self._complete(name, moments[-1], number)
        return self._row(number, tuple(moments), tuple(logged), completed)

    def _forget(self, name: str) -> None:
        """Remove what an interrupted campaign left of a run."""
        shutil.rmtree(self.driver.checkpoints(name), ignore_errors=True)
        for run in self._runs(name):
            self._client().delete_run(run.info.run_id)

    def _start(self, name: str, *more: str) -> Job:
        return self.driver.start(*self.prefix, *RECIPE, *OPTIONS, "--run-name", name, *more)

    def _kill(self, job: Job, moment: str, draw: random.Random) -> None:
        match moment:
            case "beginning":
                _wait_for(job, ("loading torch",))
                time.sleep(draw.uniform(0.0, self.seconds_to_start))
            case "start":
                _wait_for(job, ("starts: ", "goes on at"))
                time.sleep(draw.uniform(0.0, 1.5))
            case "middle":
                _wait_for(job, (" done:",), draw.randint(2, EPOCHS // 3 - 10))
                time.sleep(draw.uniform(0.0, 0.3))
            case "last second":
                _wait_for(job, (f"epoch {EPOCHS - draw.randint(0, 8)} done:",))
            case "result":
                _wait_for(job, ("finished after",))
            case "table":
                _wait_for(job, ("images/s  seconds", "See the runs"))
            case "after the table":
                _wait_for(job, ("images/s  seconds", "See the runs"))
                time.sleep(draw.uniform(0.05, 0.4))
        job.process.kill()
        job.process.wait()

    def _complete(self, name: str, last: str, number: int) -> str:
        finished = CheckpointStore(str(self.driver.checkpoints(name))).finished() is not None
        if finished and "table" in last and number % 3 == 1:
            self._require(self.driver.run("jobs/tracking.py", "reap"))
            return "reap"
        if finished and "table" in last and number % 3 == 2:
            other = ("--recipe", RECIPE[2], "--run-name", f"beside-{number}", "--no-log-model")
            self._require(self.driver.run(*self.prefix, RECIPE[0], *other))
            return "another start"
        self._require(self._start(name, "--resume").finish())
        return "resume"

    def _require(self, finished: Any) -> None:
        assert finished.code == 0, finished.output

    def _row(self, number: int, kills: tuple[str, ...], logged: tuple[int, ...], completed: str) -> Row:
        name = f"killed-{number}"
        losses, tests = self._history(name, "train/loss"), self._history(name, "test/loss")
        (run,) = self._runs(name)
        equal = self._equal(name) and losses == self._history(undisturbed(), "train/loss")
        once = _once(losses, range(1, STEPS + 1))
        evaluations = _once(tests, range(STEPS_AN_EPOCH, STEPS + 1, STEPS_AN_EPOCH))
        return Row(number, kills, logged, completed, len(losses), once, evaluations, equal, run.info.status)

    def _equal(self, name: str) -> bool:
        return not difference(
            *(CheckpointStore(str(self.driver.checkpoints(each))).load() for each in (name, undisturbed()))
        )

    def _runs(self, name: str) -> list[Run]:
        client = self._client()
        experiment = client.get_experiment_by_name("test")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.`raycurv.run_name` = '{name}'"))

    def _history(self, name: str, metric: str) -> list[tuple[int, float]]:
        (run,) = self._runs(name)
        history = self._client().get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    def _client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.driver.runs}/mlflow.db")


def _once(found: Sequence[tuple[int, float]], expected: Sequence[int]) -> int:
    steps = [step for step, _ in found]
    return sum(steps.count(step) == 1 for step in expected)


def _wait_for(job: Job, texts: Sequence[str], times: int = 1) -> None:
    """Wait until one of the texts was written so often, or the job has ended."""
    deadline = time.monotonic() + SECONDS
    while not any(job.output.count(text) >= times for text in texts) and job.process.poll() is None:
        assert time.monotonic() < deadline, job.output
        time.sleep(0.005)
    assert job.process.poll() is None or any(text in job.output for text in texts), job.output


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, with their sum."""
    lines = [
        "| run | driver killed | steps in MLflow at each | completed by | steps once | evaluations once | bit-equal |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        kills, logged = ", ".join(row.kills), ", ".join(map(str, row.logged))
        counts = f"{row.once} of {STEPS} | {row.evaluations} of {EPOCHS}"
        lines.append(
            f"| {row.run} | {kills} | {logged} | {row.completed} | {counts} | {'yes' if row.equal else 'no'} |"
        )
    kills, complete = sum(len(row.kills) for row in rows), sum(row.complete for row in rows)
    return "\n".join([*lines, f"\n{kills} kills; {complete} of {len(rows)} runs complete"])


def read_rows(path: Path) -> list[Row]:
    """Rows of a campaign so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Row(**{name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(x).items()}) for x in lines]


@contextlib.contextmanager
def campaign(folder: Path, *, without_ray: bool = False) -> Iterator[Campaign]:
    """A campaign in a folder, on a Ray of its own or without one.

    Yields:
        The campaign, with the run without kills.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext(_NoHead()) if without_ray else local_ray.local_ray(2) as head:
        driver = Driver(head, folder / "runs")  # type: ignore[arg-type]
        made = Campaign(driver, ("tests/reliability/one_process.py",) if without_ray else ())
        try:
            made.reference()
            yield made
        finally:
            driver.end()


class _NoHead:
    environment: ClassVar[dict[str, str]] = {}


def main() -> None:
    """Carry out the runs that are missing, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--without-ray", action="store_true")
    given = parser.parse_args()
    path = given.folder / "driver_kills.jsonl"
    done = {row.run for row in read_rows(path)}
    if missing := [number for number in range(given.runs) if number not in done]:
        with campaign(given.folder, without_ray=given.without_ray) as made:
            for number in missing:
                row = made.run(number)
                with path.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(row)) + "\n")
                sys.stdout.write(f"{row}\n")
                sys.stdout.flush()
    sys.stdout.write(table(read_rows(path)) + "\n")


if __name__ == "__main__":
    main()
