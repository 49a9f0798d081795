"""A sweep whose MLflow has no room left, or is away: nothing that has ended is lost, and all of it arrives later."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv import optim
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.service.cluster import Cluster
from raycurv.service.driver_lock import DriverLock
from raycurv.service.errors import LaunchError
from raycurv.service.limits import Limits
from raycurv.service.outcome_log import OutcomeLog
from raycurv.service.run_state import RunState
from raycurv.service.sweep import Sweep, settings_digest
from raycurv.service.terminal import TerminalProgress
from raycurv.tracking.client import Tracking
from tests.service.driving import wait_until
from tests.service.problems import mine
from tests.service.serving import Server
from tests.service.sweeping import many

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave a page."""
    (folder / "filler").write_bytes(b"x" * (shutil.disk_usage(folder).free - 4096))


def test_a_ledger_without_room_says_what_to_do_and_keeps_what_it_has(small_disk: Path) -> None:
    ledger = OutcomeLog(small_disk / "outcomes.jsonl")
    ledger.add(Outcome("one", "r", "sgd"))
    fill(small_disk)
    with pytest.raises(LaunchError, match=r"cannot write down how two ended: .*No space left.*free disk space"):
        ledger.add(Outcome("two", "r", "sgd", reason="x" * 9000))
    (small_disk / "filler").unlink()
    again = OutcomeLog(ledger.path)
    assert set(again.done) == {"one"}
    again.add(Outcome("two", "r", "sgd"))
    assert set(OutcomeLog(ledger.path).done) == {"one", "two"}


class Three:
    """A sweep of three trials that have ended, for MLflow to log."""

    def __init__(self, runs: Path, uri: str, experiment: str) -> None:
        self.said: list[str] = []
        self.uri, self.experiment = uri, experiment
        cluster = Cluster(
            runs=str(runs), tracking_uri=uri, experiment=experiment, tracking_patience=0.5, system_metrics_every=0
        )
        self.tracking = Tracking(cluster, self.said.append)
        parent = self.tracking.parent(experiment, {"sweep": "full"}, False)
        self.ledger = OutcomeLog(runs / "sweeps" / "full" / "outcomes.jsonl")
        terminal = TerminalProgress(io.StringIO())
        terminal.notify = self.said.append  # type: ignore[method-assign]
        self.sweep = Sweep(
            "full", cluster, Limits(), self.ledger, self.tracking, parent, terminal, DriverLock(), lambda: None
        )
        points = (EvaluationPoint(1.0, 4, 0.5, {"train/epoch_loss": 1.0}),)
        self.trials = many(3)
        initial = map(self.sweep._initial, self.trials)
        self.ended = [dataclasses.replace(o, status="finished", points=points, steps=4) for o in initial]

    def record(self) -> None:
        """Record them, as the callback of Ray Tune does."""
        for outcome, trial in zip(self.ended, self.trials, strict=True):
            config = dataclasses.replace(trial.config, name=outcome.name).to_json()
            self.sweep.record(outcome, RunState(outcome), config)

    def assert_kept(self, reason: str) -> None:
        """All is in the log of outcomes, and the user knows why MLflow has none of it."""
        wait_until(lambda: self.said)
        assert set(OutcomeLog(self.ledger.path).done) == {outcome.name for outcome in self.ended}
        (message,) = self.said
        assert f"MLflow does not answer ({reason}" in message

    def assert_logged(self) -> None:
        """MLflow gets all of it, once."""
        wait_until(lambda: "MLflow answers again" in self.said[-1])
        assert self.tracking.finish() is None
        self.assert_complete()

    def assert_complete(self) -> None:
        """MLflow has all of it, once."""
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.`raycurv.optimizer` = 'sgd'")
        assert sorted(run.data.tags["raycurv.run_name"] for run in runs) == sorted(o.name for o in self.ended)
        assert {(run.info.status, run.data.metrics["train/epoch_loss"]) for run in runs} == {("FINISHED", 1.0)}


def test_trials_stay_while_mlflow_has_no_room_and_arrive_when_it_has(
    small_disk: Path, tmp_path: Path, data_base: Path
) -> None:
    shutil.copy(data_base, small_disk)
    three = Three(tmp_path, f"sqlite:///{small_disk}/mlflow.db", "disk")
    fill(small_disk)
    three.record()
    three.assert_kept("(sqlite3.OperationalError) database or disk is full")
    (small_disk / "filler").unlink()
    three.assert_logged()


def test_trials_stay_while_the_server_is_away_and_arrive_when_it_is_back(server: Server, tmp_path: Path) -> None:
    three = Three(tmp_path, server.uri, "back")
    server.stop()
    try:
        three.record()
        three.assert_kept("")
    finally:
        server.start()
    three.assert_logged()


def test_trials_that_a_server_never_takes_are_delivered_by_the_next_start(server: Server, tmp_path: Path) -> None:
    three = Three(tmp_path, server.uri, "never")
    server.stop()
    try:
        three.record()
        assert three.tracking.finish() is not None
    finally:
        server.start()
    again = Tracking(three.sweep.cluster, print)
    assert again.send_unsent() == 3
    assert again.send_unsent() == 0
    again.finish()
    three.assert_complete()


def test_trials_that_were_done_with_other_defaults_are_named_and_kept(tmp_path: Path, data_base: Path) -> None:
    shutil.copy(data_base, tmp_path / "mlflow.db")
    three = Three(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "defaults")
    labels = [outcome.labels for outcome in three.ended]
    of_an_earlier_version = {name: value for name, value in labels[1].items() if name != "settings_digest"}
    changed = [{**labels[0], "settings_digest": "other"}, of_an_earlier_version, labels[2]]
    for outcome, label in zip(three.ended, changed, strict=True):
        three.ledger.add(dataclasses.replace(outcome, labels=label))

    assert [outcome.status for outcome in three.sweep.run(three.trials)] == ["finished"] * 3
    three.tracking.finish()
    (message,) = [line for line in three.said if "other defaults" in line]
    assert message.startswith("1 trials that are done had other defaults of sgd")


def test_settings_that_are_given_at_their_defaults_have_the_digest_of_none() -> None:
    none = mine(optimizer="sgd")
    given = dataclasses.replace(
        none, optimizer_settings={"learning_rate": optim.settings("sgd")["learning_rate"].default}
    )
    other = dataclasses.replace(none, optimizer_settings={"learning_rate": 0.123})
    assert settings_digest(none) == settings_digest(given) != settings_digest(other)
    for name in optim.names():
        assert settings_digest(mine(optimizer=name))
