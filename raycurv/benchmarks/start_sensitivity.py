"""How much a method's result depends on where it starts: final training losses over initial values, on small problems.

Every run is some hundred steps of one thread on data in memory; its result is one line of a file, so that a campaign
that is stopped goes on where it was, and no finished run is repeated.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raycurv import optim
from raycurv.benchmarks import outcome_file
from raycurv.data import Source, locate, parquet_images
from raycurv.data.translation import multi30k
from raycurv.models.autoencoder import autoencoder
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.mlp import mlp
from raycurv.models.transformer import transformer
from raycurv.objective import Objective
from raycurv.objective.losses import mean_squared_error, word_cross_entropy
from raycurv.results import table_formats
from raycurv.train.averaging import AveragedWeights
from raycurv.train.configuration import Setting

FLOOR = 0.01  # smaller losses count as this one
_AVERAGING = 0.99
_MEASURED, _MEASURED_BATCH = 2560, 512  # samples whose mean loss is the result, and how many at a time
_WORDS = 500  # words of each vocabulary

Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingProblem:
    """A network, its data and the length of a run.

    Attributes:
        name: title of the problem's column.
        model: function that makes the network.
        load: function of a number n that returns inputs and targets of the first n training samples.
        loss: loss of :class:`raycurv.Objective`, a name or a function.
        epochs: number of epochs of a run.
        samples: number of training samples.
        batch_size: number of samples in the batch of a step.
        slow: whether fewer initial values are tried.
    """

    name: str
    model: Callable[[], nn.Module]
    load: Callable[[int], Samples]
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy"
    epochs: int = 3
    samples: int = 6400
    batch_size: int = 64
    slow: bool = False

    @property
    def horizon(self) -> optim.Horizon:
        """Length of the run, given to the optimizer."""
        return optim.Horizon(self.epochs, self.samples // self.batch_size, self.samples)


@functools.cache
def images(folder: str, samples: int) -> Samples:
    """The first training images of a folder of RAYCURV_DATA, as networks take them, and their labels."""
    return read(parquet_images(locate(folder), evaluation=None, max_rows=samples).train, samples)


@functools.cache
def reconstruction(folder: str, samples: int) -> Samples:
    """The same images as inputs and, flattened, as targets."""
    inputs, _ = images(folder, samples)
    return inputs, inputs.flatten(1)


@functools.cache
def sentences(folder: str, samples: int) -> Samples:
    """The first training sentences of Multi30k, with the most frequent words and at most 16 of them."""
    return read(multi30k(folder, max_words=_WORDS, max_length=16, max_rows=samples).train, samples)


def read(source: Source, samples: int) -> Samples:
    """The first samples of a source: inputs as networks take them, and targets."""
    inputs, targets = source.read(np.arange(samples), seed=0, epoch=0, training=False)
    return source.convert(inputs, torch.float32), targets


_small_transformer = partial(
    transformer, num_classes=_WORDS, source_words=_WORDS, size=32, heads=4, layers=1, hidden=64, dropout=0.0
)
_narrow = partial(basic_cnn, width=0.25)
PROBLEMS = (
    TrainingProblem("MNIST, tanh MLP", mlp, partial(images, "mnist")),
    TrainingProblem("MNIST, ReLU MLP", partial(mlp, widths=(128, 64), activation="relu"), partial(images, "mnist")),
    TrainingProblem("MNIST, logistic", partial(mlp, widths=()), partial(images, "mnist")),
    TrainingProblem(
        "MNIST autoencoder",
        partial(autoencoder, widths=(128, 64, 30)),
        partial(reconstruction, "mnist"),
        mean_squared_error,
    ),
    TrainingProblem(
        "Multi30k transformer",
        _small_transformer,
        partial(sentences, "multi30k"),
        word_cross_entropy,
        samples=3200,
        epochs=4,
        slow=True,
    ),
    TrainingProblem(
        "CIFAR-10 CNN, BN", partial(_narrow, batch_norm=True), partial(images, "cifar10"), samples=3200, slow=True
    ),
    TrainingProblem("CIFAR-10 CNN", _narrow, partial(images, "cifar10"), samples=3200, slow=True),
)


@dataclass(frozen=True)
class Method:
    """A row of the table: a method and the values of the one setting that is varied.

    Attributes:
        label: label of the row.
        optimizer: name of the registered optimizer.
        setting: name of the setting that is varied.
        values: all of them; slow problems take the first and the last, and the default where it is among them.
        tuned: whether the best value counts, as after a search; otherwise worst and best over all values.
        fixed: settings that are not varied.
    """

    label: str
    optimizer: str
    setting: str
    values: tuple[float, ...]
    tuned: bool = False
    fixed: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Unique name of the row: the optimizer and its fixed settings."""
        return ":".join([self.optimizer, *(f"{name}={value}" for name, value in self.fixed.items())])

    def values_for(self, problem: TrainingProblem) -> tuple[float, ...]:
        """Values of the setting to try on a problem."""
        if self.tuned or not problem.slow:
            return self.values
        return tuple(value for value in self.values if value in (self.values[0], 1.0, self.values[-1]))


_RATES, _DAMPINGS = (1e-5, 1e-3, 1e-1, 10.0), (0.01, 1.0, 10.0, 1000.0)
_FACTORS = (1e-5, 1e-2, 1.0, 10.0)
_ONE_CYCLE = {"schedule": "one_cycle"}
METHODS = (
    Method("SGD + momentum, best of the grid", "momentum", "learning_rate", (1e-2, 3e-2, 1e-1, 3e-1), tuned=True),
    Method("Adam, best of the grid", "adam", "learning_rate", (1e-3, 3e-3, 1e-2), tuned=True),
    Method("SGD + momentum, one cycle, best", "momentum", "learning_rate", (3e-2, 1e-1, 3e-1), True, _ONE_CYCLE),
    Method("Adam, one cycle, best", "adam", "learning_rate", (1e-3, 3e-3, 1e-2), True, _ONE_CYCLE),
    Method("**`auto`**", "auto", "start", _FACTORS),
    Method("`red_adam_free`", "red_adam_free", "start", _FACTORS),
    Method("`curveball`", "curveball", "damping", _DAMPINGS),
    Method("`curveball_free`", "curveball_free", "start", _DAMPINGS),
    Method("`ntlr_sgd`", "ntlr_sgd", "learning_rate", _RATES),
    Method("`ntlr_sgd_free`", "ntlr_sgd_free", "start", _FACTORS),
    Method("`alera`", "alera", "learning_rate", _RATES),
    Method("`alera_free`", "alera_free", "start", _FACTORS),
    Method("`llr_second_order`", "llr_second_order", "learning_rate", _RATES),
    Method("`llr_free`", "llr_free", "start", _FACTORS),
)


@dataclass(frozen=True)
class StartOutcome:
    """One run.

    Attributes:
        problem: name of the problem.
        optimizer: method of the row, :attr:`Method.method`.
        value: value of the setting that is varied.
        seed: seed of the initial weights and of the order of the data.
        raw: mean loss over the measured training samples at the weights that the method evaluates, which for most are
            the last ones; infinite if it diverged.
        averaged: the same at an exponential average of the weights.
        seconds: wall time of all steps, in seconds.
    """

    problem: str
    optimizer: str
    value: float
    seed: int
    raw: float
    averaged: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, float, int]:
        """Key that identifies the run."""
        return self.problem, self.optimizer, self.value, self.seed


def run(
    problem: TrainingProblem, optimizer: str, settings: Mapping[str, Setting], seed: int = 0
) -> tuple[float, float, float]:
    """Train once and measure.

    Args:
        problem: problem to train.
        optimizer: name of the registered optimizer.
        settings: settings of the optimizer.
        seed: seed of the initial weights and of the order of the data.

    Returns:
        Final training loss, that of the averaged weights, seconds.
    """
    torch.manual_seed(seed)
    model = problem.model()
    inputs, targets = problem.load(problem.samples)
    objective = Objective(model, problem.loss)
    stepper = optim.create(optimizer, model, horizon=problem.horizon, **settings)
    average = AveragedWeights(model, _AVERAGING)
    began = time.perf_counter()
    for rows in _order(problem, seed):
        stepper.step(objective.batch(inputs[rows], targets[rows]))
        average.update()
    seconds = time.perf_counter() - began
    with stepper.evaluation_weights():
        raw = measured(objective, inputs, targets)
    with average.applied():
        averaged = measured(objective, inputs, targets)
    return raw, averaged, seconds


def _order(problem: TrainingProblem, seed: int) -> Iterator[Tensor]:
    """The rows of every batch; what does not fill a batch is left out.

    Yields:
        (batch_size,) row numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(problem.epochs):
        order = torch.randperm(problem.samples, generator=generator)
        yield from order[: problem.horizon.steps_per_epoch * problem.batch_size].split(problem.batch_size)


def measured(objective: Objective, inputs: Tensor, targets: Tensor) -> float:
    """The mean loss over the first samples; batch normalisation takes the statistics of batches of 512."""
    batches = zip(inputs[:_MEASURED].split(_MEASURED_BATCH), targets[:_MEASURED].split(_MEASURED_BATCH), strict=True)
    values = [(float(objective.batch(x, y).value()), len(x)) for x, y in batches]
    mean = sum(value * size for value, size in values) / sum(size for _, size in values)
    return mean if math.isfinite(mean) else math.inf


def finished(path: Path) -> list[StartOutcome]:
    """The runs in a file; a last line that was cut off is left out."""
    return outcome_file.read(path, StartOutcome)


def campaign(
    path: Path, problems: Sequence[TrainingProblem] = PROBLEMS, entries: Sequence[Method] = METHODS, seed: int = 0
) -> Iterator[StartOutcome]:
    """All runs that the file does not hold yet, each appended to it as soon as it is done.

    Yields:
        The new ones.
    """
    kept = finished(path)
    outcome_file.rewrite(path, kept)
    done = {outcome.key for outcome in kept}
    for problem in problems:
        for entry in entries:
            for value in entry.values_for(problem):
                if (problem.name, entry.method, value, seed) in done:
                    continue
                found = run(problem, entry.optimizer, {entry.setting: value, **entry.fixed}, seed)
                outcome = StartOutcome(problem.name, entry.method, value, seed, *found)
                outcome_file.append(path, outcome)
                yield outcome


def to_markdown(
    outcomes: Sequence[StartOutcome],
    problems: Sequence[TrainingProblem] = PROBLEMS,
    entries: Sequence[Method] = METHODS,
) -> str:
    """Final training loss, best–worst / worst with averaged weights (worst over best); of tuned baselines the best.

    A value of several seeds counts with their mean.
    """
    used = [problem for problem in problems if any(o.problem == problem.name for o in outcomes)]
    rows = []
    for entry in entries:
        cells = []
        for problem in used:
            mine = [o for o in outcomes if (o.problem, o.optimizer) == (problem.name, entry.method)]
            seeds = [[o for o in mine if o.value == value] for value in dict.fromkeys(o.value for o in mine)]
            raw, averaged = (
                [_mean(getattr(o, kind) for o in group) for group in seeds] for kind in ("raw", "averaged")
            )
            cells.append(_cell(raw, averaged, entry.tuned) if mine else "–")
        if set(cells) != {"–"}:
            rows.append([entry.label, *cells])
    return table_formats.markdown(["", *(problem.name for problem in used)], rows) + "\n"


def _cell(raw: list[float], averaged: list[float], tuned: bool) -> str:
    if tuned:
        return f"{_number(min(raw))} / {_number(min(averaged))}"
    best, worst = max(min(raw), FLOOR), max(*raw, FLOOR)
    ratio = worst / best
    spread = f"×{ratio:.2f}" if ratio < 10 else "diverges" if math.isinf(worst) else f"×{_number(ratio)}"
    return f"{_number(best)}–{_number(worst)} / {_number(max(averaged))} ({spread})"


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(max(value, FLOOR) for value in values)


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:.0e}"
