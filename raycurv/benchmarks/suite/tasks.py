"""Tasks of the suite: a recipe, a fixed number of steps, and a target of one metric."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycurv import recipes
from raycurv.arguments import require, require_whole, unknown
from raycurv.results.outcomes import Outcome
from raycurv.train.configuration import RunConfig

TRAINING_SAMPLES = 2560  # samples of the training loss at an evaluation
TRAINING_LOSS = "training_set/loss"


@dataclass(frozen=True)
class SuiteTask:
    """One task.

    Attributes:
        name: name of the task, and of its runs.
        title: title of its column.
        recipe: name of the registered recipe.
        steps: number of steps of every run.
        every: steps between two evaluations.
        metric: metric of the target; an accuracy must rise to it, anything else fall.
        target: value to reach.
        options: arguments of the recipe.
        costly: whether a run takes more than three minutes on one core; then only some methods run.
        floor: smallest training loss that counts; smaller ones count as this one.
        start: name of the registered recipe whose run gives the weights to start from; None for random ones.

    Raises:
        ValueError: a number is out of bounds.
    """

    name: str
    title: str
    recipe: str
    steps: int
    every: int
    metric: str
    target: float
    options: Mapping[str, Any] = field(default_factory=dict)
    costly: bool = False
    floor: float = 0.01
    start: str | None = None

    def __post_init__(self) -> None:
        require_whole("SuiteTask.steps", self.steps, 1)
        require_whole("SuiteTask.every", self.every, 1)
        require("SuiteTask.every", self.every, self.every <= self.steps, f"at most the {self.steps} steps of a run")

    @property
    def rises(self) -> bool:
        """Whether a larger value of the metric is better."""
        return self.metric.endswith("accuracy")

    def reached(self, value: float) -> bool:
        """Whether a value of the metric is at the target or better; NaN is not."""
        return (operator.ge if self.rises else operator.le)(value, self.target)

    def config(self, start_from: str | None = None) -> RunConfig:
        """The run of the task, with the recipe's own optimizer.

        Args:
            start_from: checkpoints of the run of :attr:`start`.

        Raises:
            ValueError: the data are missing.
        """
        return dataclasses.replace(
            recipes.build(self.recipe, self.options),
            name=self.name,
            max_steps=self.steps,
            evaluate_every_steps=self.every,
            evaluate_training=True,
            evaluate_training_samples=TRAINING_SAMPLES,
            start_from=start_from,
        )

    @property
    def operations(self) -> float:
        """Floating-point operations of a run with SGD, as estimated from the recipe's forward pass.

        NaN for a recipe that is not registered.
        """
        entry = next((entry for entry in recipes.registered_recipes() if entry.name == self.recipe), None)
        if entry is None:
            return math.nan
        config = recipes.build(self.recipe, {**self.options, "data": os.curdir})  # no data are needed
        width = recipes.Scale.of(self.options.get("scale", 1.0)).width
        return 3e9 * entry.gflop * width**2 * config.batch_size * self.steps

    def step_reached(self, outcome: Outcome) -> int | None:
        """First evaluated step at which a run is at the target; None if it never is."""
        values = ((point.step, point.values.get(self.metric)) for point in outcome.points)
        return next((step for step, value in values if value is not None and self.reached(value)), None)


_SMALL_CNN = {"scale": (1.0, 0.2, 0.25)}
_HALF_RESNET = {"scale": (1.0, 0.25, 0.5)}
ACCURACY, LOSS = "test/accuracy", "test/loss"

# Cheapest first. The target of AlgoPerf's MNIST is AlgoPerf's. Those of Boston, digits and fine-tuning are about the
# median of the best values of runs on the grids of tuned Adam and momentum, on seed 0; no other method had run, but
# `auto` and Adam in an example of fine-tuning. All others are provisional until their grids have run, and are then set
# by the same rule.
TASKS = (
    SuiteTask("boston-mlp", "Boston, MLP", "boston_mlp", 1300, 26, LOSS, 0.11, floor=0.01),
    SuiteTask("digits", "digits, CNN", "digits", 184, 8, ACCURACY, 0.985),
    SuiteTask(
        "digits-fine-tuning", "digits, fine-tuning", "digits_last_four", 18, 2, ACCURACY, 0.91, start="digits_first_six"
    ),
    SuiteTask("mnist-noisy-labels", "MNIST, 40 % wrong labels", "mnist_noisy_labels", 2814, 67, ACCURACY, 0.965),
    SuiteTask("mnist-batches-of-4", "MNIST, batches of 4", "mnist_batches_of_4", 6000, 150, ACCURACY, 0.94),
    SuiteTask("mnist-algoperf", "MNIST, AlgoPerf", "mnist_algoperf", 7813, 200, ACCURACY, 0.97),
    SuiteTask("mnist-fob", "MNIST, FOB", "mnist_fob", 3540, 118, ACCURACY, 0.977),
    SuiteTask("mnist-autoencoder", "MNIST, autoencoder", "mnist_autoencoder", 4690, 134, LOSS, 0.011, floor=1e-3),
    SuiteTask("mnist-tanh-mlp", "MNIST, CurveBall's MLP", "mnist_tanh_mlp", 9380, 234, ACCURACY, 0.975),
    SuiteTask("mnist-logistic", "MNIST, LLR's logistic", "llr_mnist_logistic", 18760, 469, ACCURACY, 0.924),
    SuiteTask("multi30k-gpt", "Multi30k, GPT", "multi30k_gpt", 1814, 90, LOSS, 2.9),
    SuiteTask("cifar10-cnn", "CIFAR-10, CNN", "cifar10_basic_cnn_bn", 1564, 92, ACCURACY, 0.58, _SMALL_CNN),
    SuiteTask("cifar10-vit", "CIFAR-10, ViT", "cifar10_vision_transformer", 1564, 92, ACCURACY, 0.45),
    SuiteTask("mnist-ntlr-mlp", "MNIST, NTLR's MLP", "ntlr_mnist_mlp", 9380, 234, ACCURACY, 0.98, costly=True),
    SuiteTask("mnist-salera-m2b", "MNIST, SALERA's M2b", "salera_mnist_m2b", 20000, 500, ACCURACY, 0.98, costly=True),
    SuiteTask(
        "cifar10-resnet18", "CIFAR-10, ResNet-18 of half width", "cifar10_resnet18", 1955, 391, ACCURACY, 0.7,
        _HALF_RESNET, costly=True,
    ),
    SuiteTask("cifar10-airbench", "CIFAR-10, airbench", "cifar10_airbench", 485, 49, ACCURACY, 0.9, costly=True),
)  # fmt: skip


def select(names: Sequence[str], *, costly: bool = False) -> tuple[SuiteTask, ...]:
    """Tasks by name in the order of the suite; without names all, the costly ones only where they are asked for.

    Args:
        names: names of tasks.
        costly: whether the costly ones belong to all.

    Raises:
        ValueError: there is no task of a name.
    """
    known = {task.name: task for task in TASKS}
    for name in names:
        if name not in known:
            raise ValueError(unknown("task", name, known))
    return tuple(task for task in TASKS if (task.name in names if names else costly or not task.costly))
