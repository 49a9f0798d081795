from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, Record, Result, RunConfig, train
from raycurv.train.divergence import add_losses, divergence
from raycurv.train.training_run import TrainingPosition
from tests.train.problems import Kept, config


def go(folder: Path, wanted: RunConfig, resume: str = "never") -> Result:
    store = CheckpointStore(str(folder))
    return train(wanted, collectives=Local(), store=store, emit=Kept(), resume=resume)  # type: ignore[arg-type]


def of(losses: list[float], batch_size: int = 64) -> str:
    position = TrainingPosition()
    records = [Record("step", i + 1, 0.0, 0.0, {"train/loss": loss}) for i, loss in enumerate(losses)]
    add_losses(position, records, batch_size, len(losses))
    return divergence(position, batch_size, len(losses))


@pytest.mark.parametrize(
    "losses",
    [
        [2.3 / (1 + i) for i in range(100)],
        [2.3 + 0.4 * (-1) ** (i + 1) for i in range(100)],  # has learned nothing
        [2.3, *([0.1] * 90), 80.0, *([0.1] * 8)],  # one hard batch near the end
        [2.3, *([50.0] * 60), *([0.2] * 39)],  # has recovered
        [-3.0, *([-1.0] * 99)],  # a loss that may be negative
        [2.3, 9.0, 9.0],  # too short to be sure
    ],
)
def test_these_have_not_diverged(losses: list[float]) -> None:
    assert of(losses) == ""


def test_these_have_diverged() -> None:
    assert of([2.0, *([0.5] * 98), 1e13]) == "the training loss ended at 1e+13, 5e+12 times its first value"
    assert of([2.0, *([0.5] * 80), *([4.5] * 19)]) == (
        "the training loss was above twice its first value, 2, in the last tenth (median 4.5)"
    )
    assert of([2.0, *([0.5] * 80), *([math.nan] * 19)]).startswith("the training loss ended at inf")
    assert of([2.0, 1e4])


def test_small_batches_take_the_median_of_their_first_steps() -> None:
    lucky = [1e-6, *([2.3] * 99), *([1.0] * 900)]
    assert of(lucky, batch_size=1) == ""


def test_a_run_whose_loss_explodes_has_a_result_that_says_so_also_after_a_resume(tmp_path: Path) -> None:
    wanted = config(
        optimizer="sgd", optimizer_settings={"learning_rate": 1e4}, loss="tests.train.problems:absolute_error", epochs=6
    )
    whole = go(tmp_path / "whole", wanted)
    go(tmp_path / "parts", replace(wanted, stop_after=28))
    resumed = go(tmp_path / "parts", wanted, "must")
    assert "times its first value" in whole.diverged
    assert resumed.diverged == whole.diverged
    assert go(tmp_path / "good", replace(wanted, optimizer_settings={})).diverged == ""


def test_the_result_of_an_earlier_version_is_read() -> None:
    text = '{"name": "a", "steps": 1, "epochs": 1.0, "values": {}, "evaluations": [], "seconds": 1.0, '
    old = Result.from_json(text + '"images_per_second": 2.0, "stopped": false}')
    assert (old.diverged, old.operations, old.step_seconds) == ("", 0.0, 0.0)


@pytest.mark.parametrize(("losses", "still"), [([2.3] * 100, True), ([2.3, *([0.1] * 99)], False)])
def test_a_run_that_never_takes_a_step_is_named_unless_its_loss_is_low(losses: list[float], still: bool) -> None:
    position = TrainingPosition()
    rates = [1.0] * 40 + [0.0] * 60
    values = [{"train/loss": loss, "optimizer/learning_rate": rate} for loss, rate in zip(losses, rates, strict=True)]
    add_losses(position, [Record("step", i + 1, 0.0, 0.0, value) for i, value in enumerate(values)], 64, 100)
    said = divergence(position, 64, 100)
    assert said == ("the learning rate was 0 since step 41: no direction led downhill" if still else "")


def test_a_concave_run_of_auto_to_1e26_is_named(tmp_path: Path) -> None:
    wanted = config(optimizer="auto", optimizer_settings={}, loss="tests.train.problems:negative_square", epochs=24)
    assert go(tmp_path, wanted).diverged
