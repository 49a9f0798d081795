from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pytest
import torch

from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, Component, Record, RunConfig, check, load_trained_model, train
from raycurv.train.moved_paths import MOVED, current_path, former_path

STOPPED = ("auto", "curveball", "houses")


def objective(values: Mapping[str, float], prefix: str) -> float:
    """The loss with the L2 term, which were one number in that version."""
    return values[f"{prefix}loss"] + values.get(f"{prefix}l2_term", 0.0)


@pytest.mark.parametrize("name", STOPPED)
def test_a_run_that_was_stopped_goes_on(stored: Path, name: str) -> None:
    """As the version that wrote it would have; `auto`, whose rule is another now, from the same weights."""
    expected = json.loads((stored / "going_on.json").read_text())[name]
    store = CheckpointStore(stored / "runs" / name, keep=1)
    config = store.config()
    assert config is not None
    assert config.digest == expected["digest"]
    records: list[Record] = []

    result = train(config, collectives=Local(), store=store, emit=records.extend, resume="must")

    losses = [objective(record.values, "train/") for record in records if record.kind == "step"]
    if config.optimizer == "auto":
        assert losses[0] == pytest.approx(expected["losses"][0], rel=1e-9)
        assert fmean(losses) == pytest.approx(fmean(expected["losses"]), rel=0.5)
        assert expected["values"].keys() <= result.values.keys()
        return
    assert losses == pytest.approx(expected["losses"], rel=1e-9)
    values = dict(result.values) | {"train/epoch_loss": objective(result.values, "train/epoch_")}
    assert {name: values[name] for name in expected["values"]} == pytest.approx(expected["values"], rel=1e-9)


def test_a_run_may_be_resumed_by_its_recipe_whose_functions_have_moved(stored: Path) -> None:
    config = RunConfig(
        "auto",
        Component("raycurv.models.salera_networks:m2", {"width": 0.01}),
        Component("raycurv.data.parquet:parquet_images", {"path": "images", "channels": 1}),
        batch_size=8,
        epochs=3,
        precision="fp64",
    )

    result = train(
        config, collectives=Local(), store=CheckpointStore(stored / "runs" / "auto"), emit=lambda _: None, resume="must"
    )

    assert result.steps == 15


def test_a_run_that_has_ended_is_read_with_its_result(stored: Path) -> None:
    expected = json.loads((stored / "going_on.json").read_text())["rosenbrock"]
    store = CheckpointStore(stored / "runs" / "rosenbrock")
    config, result = store.config(), store.finished()
    assert config is not None
    assert result is not None

    check(config)
    assert config.digest == expected["digest"]
    assert dict(result.values) == expected["values"]
    assert len(result.evaluations) == 1


@pytest.mark.parametrize("name", [*STOPPED, "rosenbrock"])
def test_a_trained_network_is_read_out_of_a_checkpoint(stored: Path, name: str) -> None:
    trained = load_trained_model(CheckpointStore(stored / "runs" / name))

    outputs = trained.model(torch.zeros(2, *trained.input_shape, dtype=torch.float64))
    assert outputs.isfinite().all()
    if name == "curveball":
        averaged = load_trained_model(CheckpointStore(stored / "runs" / name), averaged=True)
        assert not torch.equal(next(averaged.model.parameters()), next(trained.model.parameters()))


def test_every_stored_configuration_is_allowed_and_keeps_its_digest(stored: Path) -> None:
    configurations = json.loads((stored / "configurations.json").read_text())
    assert len(configurations) > 100
    for written in configurations:
        config = RunConfig.from_json(written["config"])
        check(config)
        assert config.digest == written["digest"], config.name


def test_former_paths_lead_to_functions_of_today_and_back() -> None:
    for former, current in MOVED.items():
        former, current = (f"raycurv.{path}" if ":" in path else f"raycurv.{path}:f" for path in (former, current))
        assert current_path(former) == current
        assert current_path(current) == current, "a value is stale: it must be the path of today"
        assert current_path(former_path(current)) == current
    assert current_path("my.models.salera:m2") == "my.models.salera:m2"
