"""How a launch closes a run that came to its end."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from raycurv.objective.collectives import Local
from raycurv.service import Cluster, launch
from raycurv.service.errors import LaunchError
from raycurv.service.journal import JournaledCheckpoints
from raycurv.service.launch import _Launch, checkpoint_patience, how_to_go_on
from raycurv.service.plan import plan
from raycurv.tracking.messages import WorkersNotice
from raycurv.train import CheckpointStore, Result, train
from tests.service.problems import mine


def close(result: Result) -> tuple[Mock, Mock]:
    """The run in MLflow and the terminal, after the launch has closed the run."""
    tracked, notify = Mock(), Mock()
    driver = SimpleNamespace(
        tracked={"one": tracked},
        states={"one": SimpleNamespace(ended=1005.0)},
        plan=SimpleNamespace(name="one"),
        planned={"one": SimpleNamespace(label="one", checkpoints="", config=mine(), recipe="mine")},
        cluster=SimpleNamespace(log_model=False),
        tracking=Mock(),
        progress=SimpleNamespace(notify=notify, end=Mock()),
    )
    _Launch._finish(driver, "one", result)  # type: ignore[arg-type]
    return tracked, notify


@pytest.mark.parametrize(("why", "status", "state"), [("", "finished", "FINISHED"), ("it rose", "diverged", "FAILED")])
def test_a_run_that_diverged_is_closed_and_shown_as_diverged(why: str, status: str, state: str) -> None:
    result = Result("one", 4, 1.0, {}, (), 2.0, 8.0, operations=64.0, step_seconds=0.25, diverged=why)
    tracked, notify = close(result)

    tracked.tags.assert_called_once_with({"status": status, "reason": why})
    tracked.close.assert_called_once_with(state, 1005.0)
    assert tracked.metrics.call_args.args[2] == 1005.0
    summary = tracked.metrics.call_args.args[0]
    assert (summary["result/operations"], summary["result/step_seconds"]) == (64.0, 0.25)
    assert f"one: {status} after 4 steps, 2.0 s" in notify.call_args.args[0]


@pytest.mark.filterwarnings("ignore")
def test_a_launch_of_finished_runs_delivers_what_mlflow_lacks_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    names = ("done-sgd", "done-adam")
    runs = [dataclasses.replace(mine(), optimizer=name) for name in ("sgd", "adam")]
    for name, config in zip(names, runs, strict=True):
        sink = Mock(accepted=0, send=lambda records: 0)
        store = JournaledCheckpoints(str(tmp_path / "checkpoints" / name), 2, sink)
        train(dataclasses.replace(config, name=name), collectives=Local(), store=store, emit=store.emit)
    no_ray = Mock(side_effect=AssertionError("no Ray is needed"))
    monkeypatch.setattr(sys.modules["raycurv.service.launch"], "ray_session", no_ray)
    cluster = Cluster(runs=str(tmp_path), run_name="done", resume="auto", log_model=False, system_metrics_every=0)

    for _ in range(2):
        results = launch(runs, cluster)

        assert [result.steps for result in results] == [16, 16]
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        found = {run.data.tags["raycurv.run_name"]: run for run in client.search_runs(["1"])}
        assert set(found) == {"done", *names}
        for name in names:
            assert found[name].info.status == "FINISHED"
            steps = [metric.step for metric in client.get_metric_history(found[name].info.run_id, "train/loss")]
            assert steps == list(range(1, 17))


@pytest.mark.parametrize("finished", [True, False])
def test_a_worker_that_dies_after_its_runs_have_finished_is_no_failure(finished: bool) -> None:
    fit = Mock(error=RuntimeError("terminate called without an active exception"))
    fit.is_alive.return_value = False
    driver = SimpleNamespace(asked=None, stopped=False, _tasks=lambda: (), _receive=Mock(), _finished=lambda: finished)
    driver._explained = lambda error: LaunchError(str(error))
    workers = SimpleNamespace(mailbox=Mock(), fit=fit, give=Mock())
    if finished:
        _Launch._follow(driver, workers, "")  # type: ignore[arg-type]
        return
    with pytest.raises(LaunchError, match="terminate called"):
        _Launch._follow(driver, workers, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("finished", [True, False])
def test_a_notice_about_workers_counts_as_long_as_runs_have_not_finished(finished: bool) -> None:
    shown = Mock()
    driver = SimpleNamespace(_finished=lambda: finished, _show_workers=shown)
    notice = WorkersNotice("worker 1 died", "failure")
    _Launch._handle(driver, notice)  # type: ignore[arg-type]
    assert shown.call_args_list == ([] if finished else [((notice,),)])


@pytest.mark.parametrize(
    ("number", "environment", "seconds"),
    [
        (signal.SIGINT, {}, 30.0),
        (signal.SIGTERM, {}, 8.5),
        (signal.SIGTERM, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 1.5),
        (signal.SIGTERM, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_JOB_STOP_WAIT_TIME_S": "60"}, 58.5),
        (signal.SIGTERM, {"RAY_JOB_STOP_WAIT_TIME_S": "soon"}, 8.5),
        (signal.SIGTERM, {"RAY_JOB_STOP_WAIT_TIME_S": "0"}, 1.5),
    ],
)
def test_the_last_checkpoint_has_the_time_that_the_signal_leaves(
    number: signal.Signals, environment: dict[str, str], seconds: float
) -> None:
    assert checkpoint_patience(number, environment) == seconds


def test_a_stopped_launch_names_its_newest_checkpoint(tmp_path: Path) -> None:
    planned = plan([mine()], Cluster(runs=str(tmp_path), run_name="halted"))
    (run,) = planned.runs
    assert how_to_go_on(planned) == (
        "halted; there is no checkpoint, so it begins again at step 0; go on with --run-name halted --resume"
    )
    store = CheckpointStore(run.checkpoints)
    train(run.config, collectives=Local(), store=store, emit=lambda records: None, stop=lambda: True)
    steps = store.newest_step()
    assert how_to_go_on(planned) == (
        f"halted; the newest checkpoint of halted has {steps} steps; go on with --run-name halted --resume"
    )
