"""Tracked runs as histories, and the job that draws them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from raycurv.cli.compare import Compare
from raycurv.service import Cluster
from raycurv.tracking.client import Tracking
from raycurv.tracking.run_histories import histories
from raycurv.tracking.stored_runs import ExperimentRuns
from raycurv.train import RunConfig
from raycurv.train.configuration import Component
from raycurv.train.records import Record

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, EPOCH, BEGAN = 30, 10, 1_700_000_000.0


@pytest.fixture
def cluster(tmp_path: Path, data_base: Path) -> Cluster:
    shutil.copy(data_base, tmp_path / "mlflow.db")
    return Cluster(runs=str(tmp_path), tracking_uri=None, experiment="stepwise", system_metrics_every=0)


@pytest.fixture
def tracked(cluster: Cluster) -> ExperimentRuns:
    """Two runs that told of every step; one of them told some steps twice, as after a crash."""
    tracking = Tracking(cluster, print)
    for optimizer in ("one", "other"):
        component = Component("tests.service.problems:mine")
        config = RunConfig(name=optimizer, model=component, data=component, optimizer=optimizer)
        tags = {"recipe": "points", "optimizer": optimizer, "seed": "0"}
        run = tracking.open(config, tags, parent=None, resume=False)
        steps = [*range(1, 8), *range(5, STEPS + 1)] if optimizer == "one" else range(1, STEPS + 1)
        for step in steps:
            values = {"train/loss": 1 / step, "optimizer/learning_rate/weight": 0.1 * step, "unwanted": 1.0}
            run.log([Record("step", step, step / EPOCH, BEGAN + step, values)])
            if step % EPOCH == 0:
                run.log([Record("evaluation", step, step / EPOCH, BEGAN + step, {"train/epoch_loss": 1.0})])
        run.metrics({"result/seconds": float(STEPS)}, STEPS, BEGAN + STEPS)
        run.close("FINISHED")
        tracking.done_with(run)
    assert tracking.finish() is None
    return ExperimentRuns(tracking.uri, cluster.experiment)


def test_every_step_comes_back_with_its_epoch_and_second(tracked: ExperimentRuns) -> None:
    one, other = histories(tracked, ("train/loss", "optimizer/learning_rate/*", "train/epoch_loss"))
    assert (one.outcome.optimizer, other.outcome.optimizer) == ("one", "other")
    for run in (one, other):
        assert set(run.traces) == {"train/loss", "optimizer/learning_rate/weight", "train/epoch_loss"}
        loss = run.traces["train/loss"]
        np.testing.assert_array_equal(loss.steps, np.arange(1, STEPS + 1))
        np.testing.assert_allclose(loss.epochs, loss.steps / EPOCH)
        np.testing.assert_allclose(loss.seconds, loss.steps, atol=0.01)
        np.testing.assert_allclose(loss.values, 1 / loss.steps)
        np.testing.assert_allclose(run.traces["train/epoch_loss"].epochs, [1, 2, 3])
    assert histories(tracked, ("train/loss",), recipes={"another"}) == []


def test_the_job_draws_what_the_runs_have(tracked: ExperimentRuns, cluster: Cluster, tmp_path: Path) -> None:
    Compare(figures=str(tmp_path / "figures"), cluster=cluster).run()
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"figures.md", "training.png", "training.svg", "training.csv", "alarms.png", "time.png"} <= drawn
    assert "2 runs, all came to their end" in (tmp_path / "figures" / "figures.md").read_text()
