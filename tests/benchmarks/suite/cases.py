"""Hand-made tasks, methods and outcomes of the suite."""

from __future__ import annotations

from collections.abc import Sequence

from raycurv.arguments import format_settings
from raycurv.benchmarks.suite.methods import SuiteMethod
from raycurv.benchmarks.suite.tasks import SuiteTask
from raycurv.results.outcomes import EvaluationPoint, Outcome, Status

EASY = SuiteTask("easy", "Easy", "mnist_algoperf", 40, 10, "test/accuracy", 0.9)
HARD = SuiteTask("hard", "Hard", "boston_mlp", 40, 10, "test/loss", 0.5)
COSTLY = SuiteTask("costly", "Costly", "cifar10_airbench", 40, 10, "test/accuracy", 0.9, costly=True)
ADAM = SuiteMethod("adam", "adam", {"learning_rate": 0.001})
AUTO = SuiteMethod("auto", "auto", costly=True)
RATES = ({"learning_rate": 0.1}, {"learning_rate": 0.3}, {"learning_rate": 3.0})
TUNED = SuiteMethod("sgd, tuned", "sgd", kind="tuned", grid=RATES, costly=True)


def outcome(
    task: SuiteTask,
    method: SuiteMethod,
    values: Sequence[float],
    *,
    seed: int = 0,
    loss: float = 0.2,
    settings: dict[str, float] | None = None,
    status: Status = "finished",
    operations: float = 4e9,
    step_seconds: float = 0.25,
) -> Outcome:
    """A run with one value of the task's metric at every evaluation."""
    text = format_settings(method.settings if settings is None else settings)
    points = tuple(
        EvaluationPoint(0.1 * i, i * task.every, float(i), {task.metric: value, "training_set/loss": loss})
        for i, value in enumerate(values, start=1)
    )
    return Outcome(
        f"{task.name}-{method.name}-{text}-{seed}", task.name, method.optimizer, text, seed, status=status,
        points=points, steps=task.steps, seconds=len(values), operations=operations,
        step_seconds=step_seconds, labels={"commit": "abcdef123"},
    )  # fmt: skip
