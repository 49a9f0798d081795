from __future__ import annotations

import math

import pytest

from raycurv.results.gathering import best_run, gathered_metrics
from raycurv.results.outcomes import EvaluationPoint, Outcome, Status


def run(
    name: str, loss: float, accuracy: float | None, optimizer: str = "sgd", stage: str = "final",
    status: Status = "finished", seconds: float = 10.0, operations: float = 100.0,
) -> Outcome:  # fmt: skip
    values = {"train/epoch_loss": loss} | ({} if accuracy is None else {"test/accuracy": accuracy})
    points = (EvaluationPoint(1.0, 10, seconds, values),)
    return Outcome(
        name, "points", optimizer, stage=stage, status=status, points=points, steps=10, seconds=seconds,
        operations=operations, step_seconds=seconds / 10,
    )  # fmt: skip


def test_the_best_run_is_the_final_one_of_largest_accuracy() -> None:
    runs = [run("a", 0.1, 0.8), run("b", 0.2, 0.9), run("searched", 0.1, 0.99, stage="search")]
    assert best_run([*runs, run("lost", 0.0, 1.0, status="diverged")]) == runs[1]
    assert best_run([run("a", 0.1, None), run("b", 0.05, None)]) == run("b", 0.05, None)
    assert best_run([run("lost", math.nan, math.nan)]) is None


def test_a_gathering_run_has_the_figures_of_its_best_member_and_the_ratios_of_the_headline() -> None:
    searched = [run(f"s{i}", 0.5, 0.8, stage="search") for i in range(3)]
    found = gathered_metrics([*searched, run("tuned", 0.5, 0.8), run("free", 0.4, 0.9, "auto")])

    assert found["test/accuracy"] == 0.9
    assert found["train/epoch_loss"] == 0.4
    assert found["headline/runs"] == 5
    assert found["headline/failed"] == 0
    assert found["headline/operations_ratio"] == pytest.approx(4.0)
    assert all(map(math.isfinite, found.values()))
