"""RED's Table 3: seconds of an epoch with a fixed learning rate and with RED's, and their ratio.

The optimizers take a step in turn, on batches of the recipe's size and random samples. So a machine that slows down
slows all of them. An epoch is a step times the steps in an epoch; reading data and evaluation are left out. The device
is the GPU if there is one, otherwise the CPU.

The paper measures on an NVIDIA Quadro RTX 5000. It has no ratios; they are those of its seconds. Its row "Iteration per
epoch" exchanges MNIST (235) and CIFAR (196).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from raycurv.benchmarks.step_cost import MeasuredOptimizer, StepRunner, Workload
from raycurv.recipes import registry
from raycurv.recipes.scale import Scaling
from raycurv.recipes.table import TableEntry
from raycurv.train.build import resolve_loss
from raycurv.train.configuration import RunConfig

ROUNDS = 20  # steps of each optimizer
# Columns in pairs: a fixed learning rate, and RED's along the same direction.
OPTIMIZERS = {
    "SGD": "sgd",
    "RED-SGD": "red_sgd",
    "RMSProp": "rmsprop_bias_corrected",
    "RED-RMSProp": "red_rmsprop",
}


@dataclass(frozen=True)
class PrintedTimes:
    """A column of Table 3.

    Attributes:
        title: data set and network.
        shape: shape of one sample.
        classes: number of classes; 0 for the autoencoder.
        seconds: the paper's seconds of an epoch, in the order of :data:`OPTIMIZERS`.
    """

    title: str
    shape: tuple[int, ...]
    classes: int
    seconds: tuple[float, ...]


PRINTED = {
    "red_mnist_lenet": PrintedTimes("MNIST, LeNet", (1, 28, 28), 10, (5.3, 7.6, 5.4, 7.7)),
    "red_cifar10_vgg11": PrintedTimes("CIFAR-10, VGG11", (3, 32, 32), 10, (16.4, 30.1, 16.8, 30.5)),
    "red_cifar100_vgg19": PrintedTimes("CIFAR-100, VGG19", (3, 32, 32), 100, (36.3, 65.0, 36.9, 65.0)),
    "red_mnist_autoencoder": PrintedTimes("MNIST, autoencoder", (1, 28, 28), 0, (5.1, 5.7, 5.3, 5.9)),
}


def entries(share: float, recipes: Sequence[str] = tuple(PRINTED), scale: Scaling = 1.0) -> list[TableEntry]:
    """The table.

    Args:
        share: fraction of :data:`ROUNDS`; at least three are taken.
        recipes: names of the recipes, the rows.
        scale: scale of the recipes, whose width is that of their networks.
    """
    rounds = max(3, round(share * ROUNDS))
    return [entry for name in recipes for entry in _row(PRINTED[name], seconds_of_epoch(name, rounds, scale))]


def seconds_of_epoch(recipe: str, rounds: int, scale: Scaling = 1.0) -> dict[str, list[float]]:
    """Seconds of an epoch of each optimizer, one number from each round."""
    config = registry.build(recipe, {"data": os.curdir, "scale": scale})  # the data are not read
    steps = next(r.samples for r in registry.registered_recipes() if r.name == recipe) / config.batch_size
    workload = _workload(config, PRINTED[recipe])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runners = {label: StepRunner(workload, MeasuredOptimizer(name), device) for label, name in OPTIMIZERS.items()}
    for runner in runners.values():
        runner.step()  # the first step also allocates
    found: dict[str, list[float]] = {label: [] for label in runners}
    for _ in range(rounds):
        for label, runner in runners.items():
            found[label].append(steps * runner.seconds())
    return found


def _workload(config: RunConfig, printed: PrintedTimes) -> Workload:
    classes, shape = printed.classes, printed.shape
    return Workload(
        partial(config.model.build, input_shape=shape, num_classes=classes),
        partial(torch.rand, config.batch_size, *shape),
        (lambda x: torch.randint(classes, (len(x),))) if classes else (lambda x: x.flatten(1)),
        resolve_loss(config.loss),
        l2=config.l2,
    )


def _row(printed: PrintedTimes, found: Mapping[str, Sequence[float]]) -> Iterator[TableEntry]:
    paper = dict(zip(OPTIMIZERS, printed.seconds, strict=True))
    for plain, red in (("SGD", "RED-SGD"), ("RMSProp", "RED-RMSProp")):
        for label in (plain, red):
            yield _entry(printed.title, f"{label}, s", found[label], f"{paper[label]:.1f}", "{:.1f}")
        ratios = [after / before for before, after in zip(found[plain], found[red], strict=True)]
        yield _entry(printed.title, f"{red} / {plain}", ratios, f"{paper[red] / paper[plain]:.2f}", "{:.2f}")


def _entry(row: str, column: str, values: Sequence[float], printed: str, form: str) -> TableEntry:
    """Median and quartiles over the rounds."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return TableEntry(row, column, middle, low, high, printed=printed, form=form, quartiles=True)
