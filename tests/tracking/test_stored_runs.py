from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from raycurv.cli.compare import Compare
from raycurv.results.conditions import conditions_of_config
from raycurv.service import Cluster
from raycurv.tracking import notebook, stored_runs, stores
from raycurv.tracking.client import Tracking, TrackingError
from raycurv.tracking.stored_runs import ExperimentRuns
from raycurv.train import Record
from tests.service.problems import mine
from tests.service.serving import Server
from tests.tracking import many_runs

pytestmark = pytest.mark.filterwarnings("ignore")
TAGS = {"recipe": "points", "optimizer": "curveball", "seed": "0"}


@pytest.fixture
def runs(tmp_path: Path, data_base: Path) -> Path:
    shutil.copy(data_base, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def uri(runs: Path) -> str:
    return f"sqlite:///{runs}/mlflow.db"


def experiment(runs: Path, name: str) -> Tracking:
    return Tracking(Cluster(runs=str(runs), tracking_uri=None, experiment=name, system_metrics_every=0), print)


def evaluation(epoch: float, step: int, **values: float) -> Record:
    return Record("evaluation", step, epoch, time.time(), {name.replace("__", "/"): v for name, v in values.items()})


def filled(runs: Path, name: str, count: int, points: int) -> None:
    tracking = experiment(runs, name)
    tracking.finish()
    many_runs.fill(runs / "mlflow.db", int(tracking.experiment), count, points)


def test_a_data_base_and_a_server_give_the_same_as_the_client_does_run_by_run(
    server: Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(server.uri)
    number = client.create_experiment("same")
    many_runs.fill(server.data_base, int(number), 5, 5)
    # A server cuts its answers off: here in the middle of a run, and a run may be longer than an answer.
    for most, longest in ((25_000, 100), (12, 3), (4, 100)):
        monkeypatch.setattr(stores, "VALUES_IN_A_CALL", most)
        monkeypatch.setattr(stores, "RUNS_IN_A_CALL", longest)
        over_http, direct = (ExperimentRuns(u, "same") for u in (server.uri, f"sqlite:///{server.data_base}"))
        names = ["train/loss", "test/accuracy"]
        one, other = over_http.values(names), direct.values(names)
        for column in ("run", "name", "step", "time", "value"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
        assert len(one.value) == 5 * 5 * 2
    assert over_http.outcomes == direct.outcomes
    run = direct.runs[3]
    history = client.get_metric_history(run.id, "train/loss")
    values = direct.values(["train/loss"], [run])
    assert values.value.tolist() == [metric.value for metric in history]
    assert values.step.tolist() == [metric.step for metric in history]


def test_a_server_without_the_bulk_call_is_read_run_by_run_and_said_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = MlflowClient(server.uri).create_experiment("old server")
    many_runs.fill(server.data_base, int(number), 3, 5)
    monkeypatch.setattr(stores, "_BULK", "/ajax-api/2.0/mlflow/metrics/of-another-version")
    tracked = ExperimentRuns(server.uri, "old server")

    assert [len(o.points) for o in tracked.outcomes] == [5, 5, 5]
    (note,) = tracked.notes
    assert "has no bulk call for metrics (status 404; another version of MLflow?)" in note


def test_forty_thousand_values_are_read_in_seconds(runs: Path, uri: str) -> None:
    filled(runs, "many", 50, 100)
    began = time.process_time()
    outcomes = ExperimentRuns(uri, "many").outcomes
    table = notebook.metrics("many", tracking_uri=uri)

    assert time.process_time() - began < 5.0  # half a second; one metric of one run at a time takes tens of them
    assert len(outcomes) == 50
    assert all(len(o.points) == 100 and len(o.points[0].values) == 3 for o in outcomes)
    assert len(table) == 50 * (100 * len(many_runs.METRICS) + 2)


@pytest.mark.slow
def test_a_report_of_five_thousand_runs_takes_less_than_a_minute_and_two_gigabytes(runs: Path, uri: str) -> None:
    filled(runs, "many", 5000, 20)
    words = ["--runs", str(runs), "--experiment", "many", "--report", str(runs / "report.html")]
    command = [sys.executable, "-m", "raycurv.cli", "compare", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"MLFLOW_TRACKING_URI": ""})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert "5,000 runs" in (runs / "report.html").read_text()
    assert used.ru_utime + used.ru_stime < 60.0
    assert used.ru_maxrss < 2_000_000  # kilobytes


def test_what_was_logged_comes_back_also_what_is_not_finite(runs: Path, uri: str) -> None:
    tracking = experiment(runs, "odd")
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([Record("step", 8, 2.0, time.time(), {"train/loss": math.nan})])
    run.log(
        [
            evaluation(1, 4, train__epoch_loss=math.inf, test__loss=math.nan),
            evaluation(2, 8, train__epoch_loss=1.0, train__epoch_l2_term=0.5, test__l2_term=0.25),
        ]
    )
    run.close("FINISHED")
    tracking.open(replace(mine(), name="going"), TAGS, None, resume=False)
    tracking.client.create_run(tracking.experiment, run_name="not ours")
    tracking.finish()
    tracked = ExperimentRuns(uri, "odd")
    (outcome,) = tracked.outcomes

    assert outcome.points[0].values["train/epoch_loss"] == math.inf
    assert math.isnan(outcome.points[0].values["test/loss"])
    assert outcome.points[1].values == {"train/epoch_loss": 1.0, "train/epoch_l2_term": 0.5, "test/l2_term": 0.25}
    assert [(p.epoch, p.step) for p in outcome.points] == [(1.0, 4), (2.0, 8)]
    assert tracked.notes == [
        "Left out: 1 run that other programs wrote (without the tag raycurv.optimizer).",
        "Left out: 1 run that still goes on.",
    ]


def test_one_table_has_a_row_for_every_run_and_another_one_for_every_value(runs: Path, uri: str) -> None:
    tracking = experiment(runs, "tidy")
    run = tracking.open(mine(optimizer_settings={"damping": 3.0}), TAGS | {"commit": "abc"}, None, resume=False)
    run.log([Record("step", step, step / 4, time.time(), {"train/loss": 1 / step}) for step in range(1, 11)])
    losses = {4: 0.5, 8: 0.25, 10: 0.3}
    run.log(
        [
            evaluation(step / 4, step, train__epoch_loss=v, test__accuracy=1 - v, test__f1=v, test__margin=v)
            for step, v in losses.items()
        ]
    )
    pace = {"result/step_seconds": 0.25, "result/startup_seconds": 1.5}
    run.metrics({"result/seconds": 3.0, "result/operations": 1e9, **pace}, 10, time.time())
    run.close("FINISHED")
    lost = tracking.open(replace(mine(seed=3), name="lost"), TAGS | {"seed": "3"}, None, resume=False)
    lost.tags({"status": "diverged", "reason": "the loss was infinite"})
    lost.close("FAILED")
    tracking.finish()

    table = notebook.runs("tidy", uri).set_index("name")
    row = table.loc["points"]
    assert (row.recipe, row.optimizer, row.setting, row.seed) == ("points", "curveball", "damping=3", 0)
    assert (row.status, row.seconds, row.steps, row.epochs, row.operations) == ("finished", 3.0, 10, 2.5, 1e9)
    assert (row.step_seconds, row.startup_seconds) == (0.25, 1.5)
    outcome = next(o for o in stored_runs.outcomes(uri, "tidy") if o.name == "points")
    assert (outcome.step_seconds, outcome.startup_seconds) == (0.25, 1.5)
    assert outcome.conditions == conditions_of_config(mine())
    assert (row["train/epoch_loss"], row["best train/epoch_loss"], row["best test/accuracy"]) == (0.3, 0.25, 0.75)
    assert (row["test/f1"], row["best test/f1"], row["test/margin"]) == (0.3, 0.5, 0.3)
    assert "best test/margin" not in table
    assert (row["config.batch_size"], row["config.optimizer_settings.damping"], row.commit) == (16, 3.0, "abc")
    assert tuple(table.loc["lost"][["status", "reason", "seed"]]) == ("diverged", "the loss was infinite", 3)

    values = notebook.metrics("tidy", ["train/loss"], runs=table[table.status == "finished"], tracking_uri=uri)
    assert values.step.tolist() == list(range(1, 11))
    assert values.epoch.tolist() == [step / 4 for step in range(1, 11)]
    assert set(values.name) == {"points"}
    with pytest.raises(ValueError, match="no run has a metric 'train/lost'; there are epoch, result/operations"):
        notebook.metrics("tidy", ["train/lost"], tracking_uri=uri)


def test_a_data_base_of_another_mlflow_is_read_as_it_is_and_not_changed(runs: Path, uri: str) -> None:
    filled(runs, "old", 2, 5)
    with sqlite3.connect(runs / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
        connection.execute("ALTER TABLE runs RENAME COLUMN deleted_time TO something_else")
    before = (runs / "mlflow.db").read_bytes()
    tracked = ExperimentRuns(uri, "old")

    assert [len(o.points) for o in tracked.outcomes] == [5, 5]
    (note,) = tracked.notes
    assert "another version of MLflow (schema another" in note
    assert (runs / "mlflow.db").read_bytes() == before


def test_what_cannot_be_read_is_said_with_what_to_do(runs: Path, uri: str, tmp_path: Path) -> None:
    experiment(runs, "empty").finish()
    with pytest.raises(TrackingError, match=r"experiment 'empty' has no run that has ended; train something first"):
        _ = ExperimentRuns(uri, "empty").outcomes
    assert len(notebook.runs("empty", uri)) == 0
    with pytest.raises(TrackingError, match=r"has no experiment 'mine'; it has: Default, empty"):
        ExperimentRuns(uri, "mine")
    with pytest.raises(TrackingError, match=r"there is no MLflow data base at .*nothing\.db"):
        ExperimentRuns(f"sqlite:///{tmp_path}/nothing.db", "mine")
    assert not (tmp_path / "nothing.db").exists()
    with pytest.raises(TrackingError, match="mlflow migrate-filestore"):
        ExperimentRuns("file:///somewhere/mlruns", "mine")
    (tmp_path / "other.db").write_text("not a data base, but a text that somebody has put here\n" * 20)
    with pytest.raises(TrackingError, match=r"cannot be read: file is not a database\. Is it one of MLflow"):
        ExperimentRuns(f"sqlite:///{tmp_path}/other.db", "mine")


def test_a_comparison_says_what_is_odd_and_shows_the_rest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(runs, "odd", 12, 5)
    with sqlite3.connect(runs / "mlflow.db") as connection:
        (broken, silent) = [run for (run,) in connection.execute("SELECT run_uuid FROM runs ORDER BY start_time")][-2:]
        connection.execute("UPDATE metrics SET value = 0, is_nan = 1 WHERE run_uuid = ? AND step = 150", [broken])
        connection.execute("DELETE FROM metrics WHERE run_uuid = ?", [silent])
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
    cluster = Cluster(runs=str(runs), tracking_uri=None, experiment="odd")
    Compare(report=str(runs / "report.html"), cluster=cluster).run()

    text = (runs / "report.html").read_text()
    for remark in (
        "another version of MLflow (schema another",
        "These are runs of 2 recipes (lenet, vgg)",
        "train/epoch_loss is NaN or infinite at some time in 1 of",
        "train/epoch_loss was not measured in 1 of",
    ):
        assert remark in text
    assert text.count("<figure") >= 8
    assert "wrote" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--recipe resnet is the recipe of no run; there are runs of lenet, vgg"):
        Compare(recipe=("resnet",), cluster=cluster).run()


def test_epochs_are_those_that_the_run_logged_however_often_it_was_evaluated() -> None:
    run = stores.StoredRun("id", "0", "", "FINISHED", 0.0, 1.0, latest={"epoch": 8.0}, last_step={"epoch": 184})
    steps = np.array([8, 23, 46, 184])  # evaluated within epochs of 23 steps, too
    assert stored_runs.epochs_at(run, steps, steps) == pytest.approx([8 / 23, 1, 2, 8])
    old = replace(run, latest={}, last_step={})
    assert stored_runs.epochs_at(old, [23, 46], np.array([23, 46, 69])) == pytest.approx([1, 2, 3])
