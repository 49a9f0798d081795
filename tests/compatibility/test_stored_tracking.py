from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from sqlalchemy import create_engine

from raycurv.recipes import search
from raycurv.service import Cluster
from raycurv.service.sweep import OutcomeLog
from raycurv.tracking.client import Tracking
from raycurv.tracking.finished_runs import by_digest
from raycurv.train import Component, RunConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns about its own hints when it is imported
    from mlflow.store.db.utils import _upgrade_db

    from raycurv.tracking import logged_model

# The data base and the parsers below MLflow warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def runs(stored: Path) -> Path:
    """The folder of all runs, with its data base, where it lies now."""
    folder = stored / "tracked"
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.executescript((folder / "mlflow.sql").read_text().replace("{root}", str(stored)))
    database.close()
    engine = create_engine(_uri(folder))
    _upgrade_db(engine)  # nothing, unless the installed MLflow is newer than that of then
    engine.dispose()
    return folder


def _uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def expected(stored: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stored / "tracked.json").read_text())
    return found


def test_finished_runs_are_found_by_the_digests_of_their_configurations(runs: Path, expected: dict[str, Any]) -> None:
    outcomes = by_digest(_uri(runs), "before")

    assert outcomes.keys() == expected["outcomes"].keys()
    for digest, before in expected["outcomes"].items():
        now = json.loads(outcomes[digest].to_json())
        assert {name: now[name] for name in before} == before
        # Later fields: what was not measured is 0, and conditions come from the stored parameters.
        assert (now["step_seconds"], now["startup_seconds"]) == (0.0, 0.0)
        assert now["conditions"]["epochs"]
    config = RunConfig(
        "of-any-name",
        Component("raycurv.models.salera_networks:m2", {"width": 0.01}),
        Component("raycurv.data.parquet:parquet_images", {"path": "images", "channels": 1}),
        batch_size=8,
        epochs=2,
    )
    assert outcomes[config.digest].name == "launched"


def test_trials_of_a_sweep_are_done_in_its_ledger(runs: Path, expected: dict[str, Any]) -> None:
    houses = Component("raycurv.data.csv_table:csv_table", {"path": "houses.csv", "target": "medv", "held_out": 8})
    network = Component("raycurv.models.mlp:mlp", {"num_classes": 1, "widths": ()})
    config = RunConfig("houses", network, houses, loss="squared_error", batch_size=8, epochs=2)
    trials = search.grid_trials(config, ["momentum"], {"learning_rate": (0.01, 0.1)}, search.get_rule("full"))

    done = OutcomeLog(runs / "sweeps" / "swept" / "outcomes.jsonl").done

    assert {trial.name: trial.config.digest for trial in trials} == expected["trials"]
    assert {f"swept-{t.name}": t.config.digest for t in trials} == {n: o.labels["config"] for n, o in done.items()}
    assert all(outcome.status == "finished" and len(outcome.points) == 2 for outcome in done.values())


def test_a_logged_network_computes_what_it_did(runs: Path, expected: dict[str, Any]) -> None:
    inputs = torch.linspace(-1, 1, 36).reshape(1, 1, 6, 6)
    uri = f"runs:/{expected['ids']['launched']}/model"

    trained = logged_model.fetch(uri, None, str(runs))
    served = mlflow.pyfunc.load_model(uri)  # runs the code that the former version logged

    with torch.no_grad():
        assert np.allclose(trained.model(inputs).numpy(), expected["outputs"], atol=1e-6)
    assert np.allclose(served.predict(inputs.numpy()), expected["outputs"], atol=1e-6)
    assert trained.classes == ("zero", "one", "two")


def test_what_mlflow_did_not_take_is_delivered(runs: Path, expected: dict[str, Any]) -> None:
    cluster = Cluster(runs=str(runs), experiment="before", system_metrics_every=0)
    tracking = Tracking(cluster, print)
    (written,) = runs.glob("unsent/*/*.jsonl")
    written.write_text(written.read_text().replace("{root}", str(runs.parent)))
    os.makedirs(tracking._unsent, exist_ok=True)  # named after the data base, which has moved
    shutil.move(written, tracking._unsent)
    run = expected["ids"]["away"]

    assert tracking.send_unsent() == 5
    tracking.finish()

    found = tracking.client.get_run(run)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"test/loss": 0.5, "test/accuracy": 0.75}
    assert found.data.tags["raycurv.event"] == "step 5: wrote a checkpoint"
    assert tracking.client.download_artifacts(run, "notes.txt")
    assert logged_model.fetch(f"runs:/{run}/model", None, str(runs)).step == 10


def test_a_run_of_the_launch_goes_on_under_its_name(runs: Path, expected: dict[str, Any]) -> None:
    tracking = Tracking(Cluster(runs=str(runs), experiment="before", system_metrics_every=0), print)
    config = RunConfig.from_json((runs / "checkpoints" / "launched" / "config.json").read_text())

    opened = tracking.open(dataclasses.replace(config, epochs=3), {"recipe": "images"}, None, resume=True)
    tracking.finish()

    assert opened.id == expected["ids"]["launched"]
