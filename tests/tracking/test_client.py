from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import mlflow
import numpy as np
import pytest
import torch

from raycurv.cli.parsing import parse
from raycurv.cli.ui import Ui
from raycurv.objective.collectives import Local
from raycurv.results.palette import colour_of
from raycurv.service import Cluster
from raycurv.service.errors import reported
from raycurv.service.node_metrics import NodeSampler
from raycurv.tracking import provenance, views
from raycurv.tracking.client import Tracking, TrackingError, open_command, require_version
from raycurv.tracking.messages import RUN_ID, LogRecords, LogRun, LogText, from_bytes, to_bytes
from raycurv.tracking.run_page import configuration, flat
from raycurv.tracking.unsent_files import append_lines
from raycurv.train import CheckpointStore, Record, UntrustedCodeError, train
from raycurv.train.data_summary import DataSummary
from raycurv.train.trust import targets
from tests.service.problems import mine, perceptron

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns about its own hints when it is imported
    from raycurv.tracking import logged_model

# The data base and the parsers below MLflow warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")
TAGS = {"recipe": "points", "optimizer": "curveball", "seed": "0"}


@pytest.fixture
def cluster(tmp_path: Path, data_base: Path) -> Cluster:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(data_base, runs / "mlflow.db")
    return Cluster(runs=str(runs), tracking_uri=None, experiment="test", system_metrics_every=0, tracking_patience=5.0)


@pytest.fixture
def tracking(cluster: Cluster) -> Iterator[Tracking]:
    tracking = Tracking(cluster, print)
    yield tracking
    tracking.finish()


def step(number: int, loss: float = 0.5) -> Record:
    return Record("step", number, number / 10, 1.0 + number, {"train/loss": loss})


def steps(tracking: Tracking, run: str, name: str = "train/loss") -> list[int]:
    return [metric.step for metric in tracking.client.get_metric_history(run, name)]


def test_a_run_has_its_configuration_its_tags_and_a_readable_name(tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.text("config.json", mine().to_json())
    run.log([step(1), Record("event", 1, 0.1, 2.0, {"steps": 20}, "something happened")])
    run.close("FINISHED")
    tracking.finish()

    stored = tracking.client.get_run(run.id)
    assert stored.info.run_name == "points · curveball · seed 0"
    assert stored.info.status == "FINISHED"
    assert stored.data.params["model.target"] == "tests.service.problems:perceptron"
    assert stored.data.params["batch_size"] == "16"
    assert stored.data.tags["raycurv.run_name"] == "points"
    assert stored.data.tags["raycurv.event"] == "step 1: something happened"
    assert stored.data.metrics == {"train/loss": 0.5, "epoch": 0.1}
    assert mlflow.artifacts.load_text(f"{stored.info.artifact_uri}/config.json") == mine().to_json()


def test_the_page_of_a_run_has_mlflows_own_fields_and_few_tags(tracking: Tracking) -> None:
    tags = {**TAGS, "stage": "final", "commit": "c" * 40, "launch": "points", "checkpoints": "/runs/checkpoints/points"}
    run = tracking.open(mine(optimizer_settings={"damping": 3.0}), tags, None, resume=False)
    run.tags({"status": "finished"})
    tracking.finish()

    stored = tracking.client.get_run(run.id).data
    own = {name.removeprefix("raycurv.") for name in stored.tags if name.startswith("raycurv.")}
    searched = {"run_name", "host", "pid", "started", "heartbeat", "launch"}
    assert own == searched | {"recipe", "optimizer", "seed", "stage", "status", "commit"}
    assert stored.tags["mlflow.user"] == provenance.user()
    assert stored.tags["mlflow.source.type"] == "LOCAL"
    assert stored.tags["mlflow.source.git.commit"] == "c" * 40
    assert stored.tags["mlflow.runColor"] == colour_of("curveball")
    assert "**curveball** (damping=3), seed 0" in stored.tags["mlflow.note.content"]
    assert "--run-name points --resume" in stored.tags["mlflow.note.content"]
    assert stored.params["launch.checkpoints"] == "/runs/checkpoints/points"
    assert "torch " in stored.params["launch.versions"]
    assert stored.params["launch.command"]


def test_parameters_are_what_a_person_sets_or_compares(tracking: Tracking) -> None:
    run = tracking.open(mine(l2=0.0, batch_size=16, log_every=7), TAGS, None, resume=False)
    tracking.finish()

    params = tracking.client.get_run(run.id).data.params
    assert {"optimizer", "seed", "epochs", "batch_size", "l2", "log_every", "model.target", "data.target"} <= set(
        params
    )
    assert not {"name", "weights", "micro_batch", "start_from", "stop_after"} & set(params)
    assert configuration(params) == {
        name: value
        for name, value in flat(json.loads(mine(l2=0.0, batch_size=16, log_every=7).to_json())).items()
        if name != "name"
    }


def test_an_experiment_says_what_it_is_and_has_views_unless_a_user_changed_them(cluster: Cluster) -> None:
    first = Tracking(cluster, print)
    first.client.set_experiment_tag(first.experiment, views.NOTE_TAG, "ours")
    first.finish()
    tracking = Tracking(cluster, print)
    tracking.finish()

    tags = tracking.client.get_experiment(tracking.experiment).tags
    assert tags[views.NOTE_TAG] == "ours"
    assert tags[views.KIND_TAG] == "custom_model_development"
    for key in (views.CHARTS, views.SEARCH):
        view = json.loads(tags[views.VIEW_TAG + key])
        assert view["name"]
        assert json.loads(view["state"])["compareRunCharts"]


def test_links_open_the_charts_of_the_runs_in_the_layout_for_training() -> None:
    link = open_command("http://host:5000/", "7")
    assert link.startswith("http://host:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=")
    assert link.endswith("compareRunsMode=CHART")


def test_the_name_in_mlflow_contains_the_run_name_that_the_user_gave(cluster: Cluster) -> None:
    names = []
    for run_name in ("first", "second"):
        tracking = Tracking(dataclasses.replace(cluster, run_name=run_name), print)
        run = tracking.open(dataclasses.replace(mine(), name=run_name), TAGS, None, resume=False)
        tracking.finish()
        names.append(tracking.client.get_run(run.id).info.run_name)

    assert names == ["first · points · curveball · seed 0", "second · points · curveball · seed 0"]


def test_the_data_base_and_the_artifacts_lie_in_the_folder_of_runs(cluster: Cluster, tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)

    assert tracking.uri == f"sqlite:///{cluster.runs}/mlflow.db"
    assert tracking.client.get_run(run.id).info.artifact_uri.startswith(f"file://{cluster.runs}/artifacts/")
    program, command, *options = shlex.split(open_command(tracking.uri))
    assert (Path(program).name, command) == ("raycurv", "ui")
    assert parse(Ui, options).tracking_uri == tracking.uri


def test_a_resumed_run_is_the_same_one_without_duplicated_steps(cluster: Cluster, tracking: Tracking) -> None:
    first = tracking.open(mine(), TAGS, None, resume=False)
    first.log([step(1), step(2), step(3)])
    tracking.finish()

    again = Tracking(cluster, print)
    second = again.open(mine(), TAGS, None, resume=True)
    second.log([step(2), step(3), step(4), step(4), step(5)])
    again.finish()

    assert second.id == first.id
    assert steps(again, first.id) == [1, 2, 3, 4, 5]


def test_no_history_is_read_to_find_the_last_step_of_a_resumed_run(
    cluster: Cluster, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([step(1), step(2), step(3, loss=float("nan"))])
    run.metrics({"test/loss": float("nan")}, 2, 1.0)
    tracking.finish()

    again = Tracking(cluster, print)
    with monkeypatch.context() as patched:
        patched.delattr(mlflow.MlflowClient, "get_metric_history")  # it grows with the run
        resumed = again.open(mine(), TAGS, None, resume=True)
    resumed.log([step(number) for number in range(1, 5)])
    resumed.metrics({"test/loss": 0.5}, 2, 2.0)
    again.finish()
    assert steps(again, run.id) == [1, 2, 3, 4]
    assert steps(again, run.id, "test/loss") == [2]


def test_a_name_that_exists_is_refused(tracking: Tracking) -> None:
    tracking.open(mine(), TAGS, None, resume=False)
    with pytest.raises(TrackingError, match="--resume to go on with it, or choose another --run-name"):
        tracking.open(mine(), TAGS, None, resume=False)


def test_a_metric_that_is_not_a_number_is_kept(tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([step(1, float("nan")), step(2, float("inf")), step(3)])
    tracking.finish()

    assert steps(tracking, run.id) == [1, 2, 3]


def test_a_metric_whose_name_mlflow_refuses_arrives_under_a_near_one(tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([Record("evaluation", 1, 0.1, 2.0, {"test/f1@0.5": 0.5, "test//größe (m²)": 1.0, "train/loss": 0.25})])
    tracking.finish()

    metrics = tracking.client.get_run(run.id).data.metrics
    assert metrics == {"test/f1_0.5": 0.5, "test/_/größe _m²_": 1.0, "train/loss": 0.25}


def test_a_resumed_run_repeats_no_metric_whose_name_mlflow_refuses(cluster: Cluster, tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([Record("evaluation", 1, 0.1, 2.0, {"test/f1@0.5": 0.5})])
    tracking.finish()
    again = Tracking(cluster, print)
    resumed = again.open(mine(), TAGS, None, resume=True)
    resumed.log([Record("evaluation", step, 0.1, 9.0, {"test/f1@0.5": 0.5}) for step in (1, 2)])
    again.finish()
    assert steps(again, run.id, "test/f1_0.5") == [1, 2]


def test_another_major_version_of_mlflow_is_refused() -> None:
    require_version("3.99.0")
    with pytest.raises(TrackingError, match=r"MLflow 4.0.1 is installed.*pip install 'mlflow>=3,<4'"):
        require_version("4.0.1")


def test_runs_of_launches_without_a_name_are_told_apart(tracking: Tracking) -> None:
    config = dataclasses.replace(mine(), name="points-curveball-20261126-094500-ecf5")
    run = tracking.open(config, {**TAGS, "launch": config.name}, None, resume=False)
    tracking.finish()
    assert tracking.client.get_run(run.id).info.run_name == "points · curveball · seed 0 · ecf5"


def test_many_steps_at_once_arrive_complete(tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([step(number) for number in range(1, 3001)])
    tracking.finish()

    assert steps(tracking, run.id) == list(range(1, 3001))


def test_system_metrics_go_to_every_run_that_trains_and_to_no_other(cluster: Cluster) -> None:
    tracking = Tracking(dataclasses.replace(cluster, system_metrics_every=0.01), print)
    parent = tracking.parent("all", {}, resume=False)
    first, second = (
        tracking.open(dataclasses.replace(mine(), name=name), TAGS, parent.id, resume=False) for name in "ab"
    )
    first.running()
    time.sleep(1.5)
    first.close("FINISHED")
    parent.close("FINISHED")
    tracking.finish()

    name = "system/cpu_utilization_percentage"
    cpu = [tracking.client.get_metric_history(run.id, name) for run in (parent, first, second)]
    assert cpu[0]
    assert cpu[1]
    assert not cpu[2]
    assert all(metric.value > 0 for metric in cpu[1])


def test_a_worker_measures_its_node() -> None:
    record = NodeSampler(None, 3, 10.0, active=False).record()
    assert "system/node_3/cpu_utilization_percentage" in record.values
    assert record.values["system/node_3/system_memory_usage_megabytes"] > 0


def test_a_worker_sends_the_metrics_of_its_node_for_the_run_that_trains() -> None:
    mailbox = _Mailbox()
    sampler = NodeSampler(mailbox, 0, 0.05)
    sampler.run = "first"
    deadline = time.monotonic() + 60
    while not mailbox.messages and time.monotonic() < deadline:
        time.sleep(0.02)
    sampler.close()
    message = from_bytes(mailbox.messages[0])
    assert isinstance(message, LogRecords)
    assert message.run == "first"
    assert message.records[0].kind == "system"


class _Mailbox:
    """A mailbox of this process, in place of an actor."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.put = SimpleNamespace(remote=self.messages.append)


def test_a_trial_starts_when_it_started_and_is_described(tracking: Tracking) -> None:
    config = dataclasses.replace(mine(), name="trial")
    tags = {**TAGS, "stage": "search", "sweep": "sweep", "status": "finished"}
    summary = DataSummary("points", "0123", "tests:points", 128, 128, (2,), 3)
    data = Record("data", 0, 0.0, 1000.0, {}, summary.to_json())
    record = Record("evaluation", 8, 1.0, 1005.0, {"test/accuracy": 0.75})
    tracking.put(LogRun("trial", config.to_json(), tags, None, (data, record), "FINISHED", 1010.0, 1000.0))
    tracking.finish()

    run = tracking.find("trial")
    assert run is not None
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 1_010_000)
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"points-training", "points-test"}
    assert "| 0.75 |" in run.data.tags["mlflow.note.content"]
    assert "--run-name sweep --resume" in run.data.tags["mlflow.note.content"]


def test_the_runs_of_a_launch_start_when_their_training_does(tracking: Tracking) -> None:
    parent = tracking.parent("all", {}, resume=False)
    configs = [dataclasses.replace(mine(), name=name) for name in ("first", "second", "lost", "never")]
    first, second, lost, never = (tracking.open_later(config, TAGS, parent.id, resume=False) for config in configs)
    for run, began in ((first, 1000.0), (second, 1020.0)):
        run.begin(began)
        run.running()
        run.log([Record("step", 1, 0.1, began + 5, {"train/loss": 0.5})])
        run.text("config.json", "{}")
        run.describe(f"runs:/{RUN_ID}/first")
        run.close("FINISHED", began + 10)
    lost.tags({"reason": "its launch ended"})
    lost.close("FAILED")
    assert not never.has_begun
    tracking.finish()

    assert tracking.find("never") is None
    closed = tracking.find("lost")
    assert closed is not None
    assert closed.info.status == "FAILED"
    assert closed.data.tags["raycurv.reason"] == "its launch ended"
    assert closed.info.end_time - closed.info.start_time < 60_000
    for name, start in (("first", 1_000_000), ("second", 1_020_000)):
        stored = tracking.find(name)
        assert stored is not None
        assert (stored.info.start_time, stored.info.end_time, stored.info.status) == (start, start + 10_000, "FINISHED")
        assert stored.info.run_name == "points · curveball · seed 0"
        assert stored.data.tags["mlflow.parentRunId"] == parent.id
        assert stored.data.tags["mlflow.note.content"] == f"runs:/{stored.info.run_id}/first"
        assert stored.data.params["optimizer"] == "curveball"
        assert stored.data.metrics["train/loss"] == 0.5
        assert mlflow.artifacts.load_text(f"{stored.info.artifact_uri}/config.json") == "{}"
    assert len(tracking.client.search_runs([tracking.experiment])) == 4


def test_a_run_that_starts_while_mlflow_is_away_is_created_once_it_answers(
    cluster: Cluster, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.open_later(mine(), TAGS, None, resume=False)
    away = Mock(side_effect=ConnectionError("away"))
    tracking._settings = dataclasses.replace(cluster, tracking_patience=0.5)
    with monkeypatch.context() as patched:
        for call in ("search_runs", "create_run", "log_batch", "get_experiment"):
            patched.setattr(tracking.client, call, away)
        run.begin(1000.0)
        run.log([step(1), step(2)])
        run.tags({"status": "finished"})
        run.text("config.json", "{}")
        run.close("FINISHED", 1010.0)
        assert tracking.finish() is not None

    # The next driver writes to another experiment.
    again = Tracking(dataclasses.replace(cluster, experiment="other"), print)
    assert again.send_unsent() > 0
    again.finish()
    stored = again.find("points", tracking.experiment)
    assert stored is not None
    assert steps(again, stored.info.run_id) == [1, 2]
    assert (stored.info.start_time, stored.info.status) == (1_000_000, "FINISHED")
    assert stored.data.tags["raycurv.status"] == "finished"
    assert again.find("points") is None
    assert not [*again._unsent.iterdir()]


def test_a_resumed_run_keeps_its_start(cluster: Cluster, tracking: Tracking) -> None:
    tracking.open_later(mine(), TAGS, None, resume=False).begin(1000.0)
    tracking.finish()
    again = Tracking(cluster, print)
    with pytest.raises(TrackingError, match="--resume to go on with it"):
        again.open_later(mine(), TAGS, None, resume=False)
    run = again.open_later(mine(), TAGS, None, resume=True)
    run.begin(2000.0)
    run.running()
    again.finish()
    stored = again.client.get_run(run.id)
    assert (stored.info.start_time, stored.info.status) == (1_000_000, "RUNNING")


def test_a_trial_of_another_experiment_is_delivered_there(cluster: Cluster, tracking: Tracking) -> None:
    parent = tracking.parent("sweep", {}, resume=False)
    tracking.finish()
    other = Tracking(dataclasses.replace(cluster, experiment="other"), print)
    config, tags = dataclasses.replace(mine(), name="trial"), {**TAGS, "sweep": "sweep"}
    other.put(LogRun("trial", config.to_json(), tags, parent.id, (step(1),), "FINISHED", 1010.0, 1000.0))
    other.finish()
    assert tracking.find("trial") is not None
    assert other.find("trial") is None


def test_runs_whose_driver_is_gone_are_closed(tracking: Tracking) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tracking.open(mine(), TAGS, None, resume=False)
    tracking.client.set_tag(dead.id, "raycurv.pid", str(process.pid))
    other = tracking.client.create_run(tracking.experiment, run_name="not ours")

    assert tracking.close_abandoned() == ["points · curveball · seed 0"]
    assert tracking.client.get_run(dead.id).info.status == "KILLED"
    assert tracking.client.get_run(other.info.run_id).info.status == "RUNNING"


def test_a_driver_on_another_machine_is_gone_when_its_heart_has_stopped(tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    tracking.client.set_tag(run.id, "raycurv.host", "elsewhere")
    assert tracking.close_abandoned() == []

    tracking.client.set_tag(run.id, "raycurv.heartbeat", "1000")
    assert tracking.close_abandoned() == ["points · curveball · seed 0"]


def test_what_could_not_be_sent_is_sent_by_the_next_start(cluster: Cluster, tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    tracking.finish()
    append_lines(tracking._unsent / "1.jsonl", [to_bytes(LogRecords(run.id, (step(7),)))])

    again = Tracking(cluster, print)
    assert again.send_unsent() == 1
    assert steps(again, run.id) == [7]
    assert again.send_unsent() == 0
    again.finish()


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    cluster = Cluster(runs=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"MLflow at http://127.0.0.1:9 cannot be used: .*--tracking-uri"):
        Tracking(cluster, print)


def test_two_processes_can_start_with_no_data_base_at_a_time(tmp_path: Path) -> None:
    code = "import sys; from raycurv.service import Cluster; from raycurv.tracking.client import Tracking;"
    code += "Tracking(Cluster(runs=sys.argv[1]), print).finish()"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=_environment()) for _ in range(2)]

    assert [process.wait(120) for process in both] == [0, 0]


def test_a_logged_model_answers_as_the_trained_network_does(cluster: Cluster, tracking: Tracking) -> None:
    store = CheckpointStore(str(Path(cluster.checkpoints) / "points"))
    train(mine(epochs=1), collectives=Local(), store=store, emit=lambda records: None)
    run = tracking.open(mine(epochs=1), TAGS, None, resume=False)
    run.model(store.uri)
    run.close("FINISHED")
    tracking.finish()
    inputs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)

    mlflow.set_tracking_uri(tracking.uri)
    outputs = mlflow.pyfunc.load_model(f"runs:/{run.id}/points").predict(inputs)
    fetched = logged_model.fetch(f"runs:/{run.id}/model", tracking.uri, cluster.runs)
    network = perceptron(3)
    state: Any = store.load()
    network.load_state_dict(state["model"])

    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_array_equal(fetched.model(torch.from_numpy(inputs)).detach().numpy(), expected)
    assert fetched.step == 8
    assert fetched.classes == ("a", "b", "c")
    files = {path.suffix for path in Path(cluster.runs, "artifacts").rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pickle", ".joblib"}


def test_a_run_has_its_data_and_its_model_has_name_example_and_metrics(cluster: Cluster, tracking: Tracking) -> None:
    store = CheckpointStore(str(Path(cluster.checkpoints) / "points"))
    config = dataclasses.replace(mine(epochs=1), name="dash1.0")
    run = tracking.open(config, TAGS, None, resume=False)
    train(config, collectives=Local(), store=store, emit=run.log)
    run.model(store.uri)
    run.register("points of the test")
    run.register("points of the test")
    run.close("FINISHED")
    tracking.finish()

    stored = tracking.client.get_run(run.id)
    sets = {entry.tags[0].value: entry.dataset for entry in stored.inputs.dataset_inputs}
    assert sets.keys() == {"training", "test"}
    assert json.loads(sets["training"].profile)["num_rows"] == 128
    assert "[-1, 2]" in sets["training"].schema
    (output,) = stored.outputs.model_outputs
    model = tracking.client.get_logged_model(output.model_id)
    assert model.name == "dash1-0"
    linked = {metric.key: metric for metric in model.metrics}
    assert linked.keys() >= {"train/epoch_loss", "test/loss", "test/accuracy"}
    assert linked["test/accuracy"].value == stored.data.metrics["test/accuracy"]
    assert len(steps(tracking, run.id, "test/accuracy")) == 1
    ranked = tracking.client.search_logged_models(
        [tracking.experiment], order_by=[{"field_name": "metrics.test/accuracy", "ascending": False}]
    )
    assert [found.model_id for found in ranked] == [output.model_id]
    (version,) = tracking.client.search_model_versions("name = 'points of the test'")
    assert version.run_id == run.id
    loaded = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    assert loaded.input_example.shape == (1, 2)
    assert loaded.predict(loaded.input_example).shape == (1, 3)


def test_a_network_of_code_that_nobody_allowed_is_not_logged_and_waits(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYCURV_TRUST", "")
    store = CheckpointStore(str(Path(cluster.checkpoints) / "points"))
    train(mine(epochs=1), collectives=Local(), store=store, emit=lambda records: None)
    first = Tracking(dataclasses.replace(cluster, trust=()), print)
    run = first.open(mine(epochs=1), TAGS, None, resume=False)
    run.model(store.uri)
    assert first.finish() is None
    assert "names 'tests.service.problems:perceptron', which is no model" in capsys.readouterr().out
    assert len([*Path(cluster.runs).glob("unsent/*/*.spool")]) == 1

    again = Tracking(dataclasses.replace(cluster, trust=()), print)
    assert again.send_unsent() == 0
    assert "--trust tests.service.problems" in capsys.readouterr().out
    again.finish()
    last = Tracking(dataclasses.replace(cluster, trust=("tests",)), print)
    assert last.send_unsent() == 1
    last.finish()
    address = f"runs:/{run.id}/model"
    with pytest.raises(UntrustedCodeError, match="the logged model names"):
        logged_model.fetch(address, last.uri, cluster.runs, ())
    assert logged_model.fetch(address, last.uri, cluster.runs, ("tests",)).step == 8
    # The model brings the package `tests` along, whose code MLflow imports.
    assert mlflow.pyfunc.load_model(f"runs:/{run.id}/points").predict(np.zeros((1, 2), np.float32)).shape == (1, 3)


def test_the_network_of_a_run_is_logged_by_its_own_driver_without_further_trust(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCURV_TRUST", "")
    store = CheckpointStore(str(Path(cluster.checkpoints) / "points"))
    train(mine(epochs=1), collectives=Local(), store=store, emit=lambda records: None)
    tracking = Tracking(dataclasses.replace(cluster, trust=()), print, targets(mine()))
    run = tracking.open(mine(epochs=1), TAGS, None, resume=False)
    run.model(store.uri)
    tracking.finish()
    assert logged_model.fetch(f"runs:/{run.id}/model", tracking.uri, cluster.runs, ("tests",)).step == 8


def test_the_commit_of_a_run_is_known() -> None:
    assert len(provenance.commit()["commit"]) == 40


def test_an_uploaded_folder_may_be_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURV_COMMIT", "abc-dirty")
    assert provenance.commit() == {"commit": "abc", "dirty": "true"}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {
        "OMP_NUM_THREADS": "1"
    }


def test_a_password_in_the_tracking_uri_is_shown_nowhere(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "http://me:sesame@127.0.0.1:9/mlflow"
    monkeypatch.setattr(sys, "argv", ["raycurv", "train", "digits", "--tracking-uri", uri])
    assert provenance.command() == "raycurv train digits --tracking-uri 'http://me:***@127.0.0.1:9/mlflow'"
    assert open_command(uri) == "http://me:***@127.0.0.1:9/mlflow"
    with pytest.raises(SystemExit), reported(str(tmp_path)):
        Tracking(dataclasses.replace(cluster, tracking_uri=uri), print)
    shown = capsys.readouterr()
    assert "me:***@127.0.0.1:9" in shown.err
    written = [path for folder in (tmp_path, Path(cluster.runs)) for path in folder.rglob("*") if path.is_file()]
    assert any("failures" in path.parts for path in written)
    assert not any("sesame" in f"{path} {path.read_bytes()!r}" for path in written)
    assert "sesame" not in shown.err + shown.out


def test_what_an_earlier_driver_left_is_delivered_beside_a_line_that_was_cut(
    cluster: Cluster, tracking: Tracking, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    tracking.finish()
    path = tracking._unsent / "1.jsonl"
    append_lines(path, [to_bytes(LogRecords(run.id, (step(number),))) for number in (1, 2)])
    path.write_text(path.read_text()[:-20])

    again = Tracking(cluster, print)
    assert again.send_unsent() == 1
    assert "1 line(s) of" in capsys.readouterr().out
    assert steps(again, run.id) == [1]
    again.finish()
    assert [file.suffix for file in sorted(path.parent.iterdir())] == [".bad", ".sent"]


KILLED = """
import os, signal, sys, time
from raycurv.results.palette import colour_of
from raycurv.service import Cluster
from raycurv.tracking.client import Tracking
from raycurv.train import Record
from tests.service.problems import mine

tracking = Tracking(Cluster(runs=sys.argv[1], tracking_uri=None, experiment="test", system_metrics_every=0), print)
run = tracking.open(mine(), {"recipe": "points", "optimizer": "curveball", "seed": "0"}, None, resume=False)
run.log([Record("step", n, n / 10, 1.0 + n / 3, {"train/loss": 0.1 / n, "nan": float("nan")}) for n in range(1, 5001)])
run.text("config.json", "{}")
run.close("FINISHED")
assert tracking.save()
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_what_a_killed_driver_had_accepted_is_delivered_once_by_the_next_start(
    cluster: Cluster, seconds: float
) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", KILLED, cluster.runs, str(seconds)]
    assert subprocess.run(command, env=_environment() | {"PYTHONPATH": root}).returncode == -signal.SIGKILL

    again = Tracking(cluster, print)
    assert again.send_unsent() > 0 or seconds  # a fast server may have taken all of it by then
    assert again.close_abandoned() == []
    run = again.find("points")
    assert run is not None
    assert steps(again, run.info.run_id) == list(range(1, 5001))
    assert steps(again, run.info.run_id, "nan") == list(range(1, 5001))
    assert run.info.status == "FINISHED"
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.json") == "{}"
    again.finish()
    assert not [*again._unsent.iterdir()]


def test_a_batch_that_mlflow_got_before_its_driver_died_is_stored_once(tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    batch = LogRecords(run.id, (step(1, float("nan")), step(2, float("inf")), step(3)))
    for _ in range(2):
        tracking._deliver(batch)
    assert steps(tracking, run.id) == [1, 2, 3]


def test_what_a_living_driver_has_waiting_is_left_to_it(cluster: Cluster, tracking: Tracking) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    tracking._outbox.postpone(LogText)
    run.text("config.json", "{}")
    assert tracking.save()

    other = Tracking(cluster, print)
    assert other.send_unsent() == 0
    other.finish()
    tracking.finish()
    last = Tracking(cluster, print)
    assert last.send_unsent() == 1
    last.finish()


def test_an_artifact_root_that_cannot_be_written_holds_up_neither_metrics_nor_later_starts(
    cluster: Cluster, tracking: Tracking
) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    root = Path(cluster.runs) / "artifacts"
    root.write_text("a file where a folder should be")
    said: list[str] = []
    cluster = dataclasses.replace(cluster, tracking_patience=0.5)
    for number in (1, 2):
        now = Tracking(cluster, said.append)
        now.send_unsent()
        again = now.open(mine(), TAGS, None, resume=True)
        again.text("config.json", "{}")
        again.log([step(number)])
        again.close("FINISHED")
        assert now.finish() is not None
        assert steps(now, run.id) == list(range(1, number + 1))
        assert now.client.get_run(run.id).info.status == "FINISHED"
        assert "MLflow does not take artifacts" in said[-1]

    root.unlink()
    last = Tracking(cluster, said.append)
    assert last.send_unsent() == 2
    last.finish()
    assert mlflow.artifacts.load_text(f"{last.client.get_run(run.id).info.artifact_uri}/config.json") == "{}"


def test_a_metric_name_that_mlflow_refuses_costs_no_other_value(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycurv.tracking.client.accepted_name", lambda name: name)
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log([step(1), Record("evaluation", 1, 0.1, 2.0, {"top 5 %": 0.5, "top 5": 0.5}), step(2)])
    tracking.finish()
    assert steps(tracking, run.id) == [1, 2]
    assert steps(tracking, run.id, "top 5") == [1]
    (path,) = tracking._unsent.glob("*.refused")
    assert path.read_text().count('"top 5 %"') == 1


def test_the_records_of_a_run_that_was_deleted_are_set_aside_together(
    cluster: Cluster, tracking: Tracking, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tracking.open(mine(), TAGS, None, resume=False)
    tracking.client.delete_run(run.id)
    run.log([step(number) for number in range(1, 301)])
    assert tracking.finish() is None
    (path,) = tracking._unsent.glob("*.refused")
    assert len(path.read_text().splitlines()) <= 3
    assert capsys.readouterr().out.count("MLflow refused LogRecords") == 1

    tracking.client.restore_run(run.id)
    path.rename(path.with_suffix(".jsonl"))  # as the message says
    again = Tracking(cluster, print)
    again.send_unsent()
    again.finish()
    assert steps(again, run.id) == list(range(1, 301))


def test_a_damaged_queue_of_an_earlier_driver_is_set_aside(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tracking: Tracking
) -> None:
    path = tracking._unsent / "1.spool"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no data base" * 1000)
    (path.parent / "2.spool").write_bytes(b"")  # of a driver that died while it made the file
    assert tracking.send_unsent() == 0
    assert "1.spool is damaged" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == ["1.bad"]


def test_the_network_of_a_finished_run_that_starts_again_is_logged_once(cluster: Cluster, tracking: Tracking) -> None:
    store = CheckpointStore(str(Path(cluster.checkpoints) / "points"))
    train(mine(epochs=1), collectives=Local(), store=store, emit=lambda records: None)
    run = tracking.open(mine(epochs=1), TAGS, None, resume=False)
    for _ in range(2):
        run.model(store.uri)
    tracking.finish()
    assert len(tracking.client.search_logged_models([tracking.experiment])) == 1
