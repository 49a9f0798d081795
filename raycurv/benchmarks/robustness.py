"""How far `auto` holds: final training losses over batch sizes, lengths of runs and disturbances, beside two Adams.

The constants of `auto` were chosen on other problems: the tanh MLP, the ReLU MLP, logistic regression and the
autoencoder on MNIST, an MLP on the Boston housing data, a small CNN on MNIST images of 14×14 pixels, and those that
judged the rule before (`FORMER_PROBLEMS`). `PROBLEMS`, which are networks that no choice was made on, judge.

A run ends with the mean loss over 2,560 training samples at the weights that the method evaluates, at least 0.01. It is
compared with the better of two runs of the same batches: Adam with a learning rate of 1e-3, and Adam on a one-cycle
schedule up to 3e-3. Of several seeds the geometric mean counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raycurv import optim
from raycurv.benchmarks import outcome_file
from raycurv.benchmarks.start_sensitivity import FLOOR, Samples, images, measured, read, reconstruction, sentences
from raycurv.data.translation import multi30k_text
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.gpt import gpt
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.transformer import transformer
from raycurv.models.vision_transformer import vision_transformer
from raycurv.models.wide_resnet import wide_resnet
from raycurv.objective import Objective
from raycurv.objective.losses import word_cross_entropy
from raycurv.results import table_formats

SAMPLES = 6400
_WORDS = 500
_small_transformer = partial(
    transformer, num_classes=_WORDS, source_words=_WORDS, size=32, heads=4, layers=1, hidden=64, dropout=0.0
)

Loss = str | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class JudgingProblem:
    """A network and its data.

    Attributes:
        name: title of the problem.
        model: function that makes the network.
        load: function of a number n that returns inputs and targets of the first n training samples.
        loss: loss of :class:`raycurv.Objective`, a name or a function.
    """

    name: str
    model: Callable[[], nn.Module]
    load: Callable[[int], Samples]
    loss: Loss = "cross_entropy"


def _layer_norm_mlp() -> nn.Module:
    first = (nn.Flatten(), nn.Linear(3072, 128), nn.LayerNorm(128), nn.GELU())
    return nn.Sequential(*first, nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10))


def _label_as_number(samples: int) -> Samples:
    """MNIST images, and their labels as numbers of mean 0 and variance 1."""
    inputs, labels = images("mnist", samples)
    numbers = labels.float()[:, None]
    return inputs, (numbers - numbers.mean()) / numbers.std()


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


FORMER_PROBLEMS = (
    JudgingProblem("CIFAR-10 CNN", partial(basic_cnn, width=0.25), partial(images, "cifar10")),
    JudgingProblem("CIFAR-10 CNN, BN", partial(basic_cnn, width=0.25, batch_norm=True), partial(images, "cifar10")),
    JudgingProblem("CIFAR-10 MLP, layer norm, GELU", _layer_norm_mlp, partial(images, "cifar10")),
    JudgingProblem(
        "CIFAR-10 vision transformer",
        partial(vision_transformer, patch=8, size=32, heads=4, layers=2, hidden=64, dropout=0.0),
        partial(images, "cifar10"),
    ),
    JudgingProblem("MNIST, ten-layer tanh MLP", partial(mlp, widths=(64,) * 9), partial(images, "mnist")),
    JudgingProblem(
        "MNIST, label as a number",
        partial(mlp, widths=(100, 100), activation="relu", num_classes=1),
        _label_as_number,
        _squared_error,
    ),
    JudgingProblem(
        "Multi30k transformer",
        _small_transformer,
        partial(sentences, "multi30k"),
        word_cross_entropy,
    ),
)


class _Mixer(nn.Module):
    """An MLP-Mixer with one layer: patches of 8 × 8 pixels, an MLP over the 16 patches, one over their 32 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, kernel_size=8, stride=8)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.across = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.within = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.out = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        first, second, last = self.norms
        x = self.patches(inputs).flatten(2).transpose(1, 2)
        x = x + self.across(first(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.within(second(x))
        return self.out(last(x).mean(1))


def _convolutional_autoencoder() -> nn.Module:
    down = (nn.Conv2d(3, 12, 3, 2, 1), nn.SiLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.SiLU())
    up = (nn.ConvTranspose2d(16, 12, 2, 2), nn.SiLU(), nn.ConvTranspose2d(12, 3, 2, 2), nn.Flatten())
    return nn.Sequential(*down, *up)


def _texts(samples: int) -> Samples:
    """The first English sentences of Multi30k, with the most frequent words and at most 16 of them."""
    return read(multi30k_text("multi30k", max_words=_WORDS, max_length=16, max_rows=samples).train, samples)


PROBLEMS = (
    JudgingProblem(
        "CIFAR-10 autoencoder", _convolutional_autoencoder, partial(reconstruction, "cifar10"), _squared_error
    ),
    JudgingProblem("CIFAR-10 linear", partial(mlp, input_shape=(3, 32, 32), widths=()), partial(images, "cifar10")),
    JudgingProblem("CIFAR-10 MLP-Mixer", _Mixer, partial(images, "cifar10")),
    JudgingProblem("CIFAR-10 WRN-10-½", partial(wide_resnet, depth=10, widen=1, width=0.5), partial(images, "cifar10")),
    JudgingProblem("MNIST LeNet", partial(lenet, input_shape=(1, 28, 28)), partial(images, "mnist")),
    JudgingProblem("MNIST sigmoid MLP", partial(mlp, widths=(100, 50), activation="sigmoid"), partial(images, "mnist")),
    JudgingProblem(
        "Multi30k GPT",
        partial(gpt, num_classes=_WORDS, input_shape=(17,), size=32, layers=1, hidden=128),
        _texts,
        word_cross_entropy,
    ),
)


@dataclass(frozen=True)
class Condition:
    """What is varied in a run.

    Attributes:
        name: title of the row.
        batch_size: number of samples in the batch of a step.
        steps: number of steps.
        loss_scale: factor of the loss.
        initial_scale: factor of the initial weights.
        label_noise: share of the class labels that are drawn at random.
        l2: factor of ‖θ‖²/2 in the objective.
        bf16: whether the forward pass uses bfloat16 where autocast does.
        pretrained_steps: steps of Adam on the first half of the classes before the run, on all classes, begins.
    """

    name: str
    batch_size: int = 64
    steps: int = 300
    loss_scale: float = 1.0
    initial_scale: float = 1.0
    label_noise: float = 0.0
    l2: float = 0.0
    bf16: bool = False
    pretrained_steps: int = 0


CONDITIONS = (
    *(Condition(f"batches of {size}, 300 steps", batch_size=size) for size in (1, 2, 4, 8, 16, 64, 256, 1024)),
    *(Condition(f"{steps} steps, batches of {size}", size, steps) for steps in (30, 3000) for size in (4, 64)),
    Condition("30000 steps, batches of 16", 16, 30_000),
    Condition("loss × 1e-6", loss_scale=1e-6),
    Condition("loss × 1e6", loss_scale=1e6),
    Condition("initial weights × 0.1", initial_scale=0.1),
    Condition("initial weights × 3", initial_scale=3.0),
    Condition("initial weights × 10", initial_scale=10.0),
    Condition("20 % of the labels wrong", label_noise=0.2),
    Condition("40 % of the labels wrong", label_noise=0.4),
    Condition("L2 1e-3", l2=1e-3),
    Condition("bfloat16", bf16=True),
    Condition("fine-tuning", pretrained_steps=200),
)


@dataclass(frozen=True)
class Method:
    """A registered optimizer with its settings.

    Attributes:
        name: name in the table.
        optimizer: name of the registered optimizer.
        settings: settings of the optimizer.
    """

    name: str
    optimizer: str
    settings: tuple[tuple[str, Any], ...] = ()


REFERENCES = (
    Method("adam 1e-3", "adam", (("learning_rate", 1e-3),)),
    Method("adam 3e-3, one cycle", "adam", (("learning_rate", 3e-3), ("schedule", "one_cycle"))),
)
JUDGED = Method("auto", "auto")
METHODS = (JUDGED, *REFERENCES)
WORST, MEAN = 1.25, 1.0  # goals of the ratios


@dataclass(frozen=True)
class RobustnessOutcome:
    """One run.

    Attributes:
        problem: name of the problem.
        condition: name of the condition.
        method: name of the method.
        seed: seed of the initial weights and of the order of the data.
        loss: final training loss over `Condition.loss_scale`; infinite if it diverged.
        seconds: wall time of all steps, in seconds.
    """

    problem: str
    condition: str
    method: str
    seed: int
    loss: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Key that identifies the run."""
        return self.problem, self.condition, self.method, self.seed


def run(problem: JudgingProblem, condition: Condition, method: Method, seed: int) -> tuple[float, float]:
    """Train once and measure.

    Args:
        problem: problem to train.
        condition: what is varied.
        method: optimizer with its settings.
        seed: seed of the initial weights and of the order of the data.

    Returns:
        Final training loss over the scale of the loss, seconds of all steps.
    """
    torch.manual_seed(seed)
    model = problem.model()
    inputs, targets = problem.load(SAMPLES)
    if condition.pretrained_steps:
        _pretrain(problem, model, inputs, targets, condition.pretrained_steps, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(condition.initial_scale)
    targets = _noisy(targets, condition.label_noise)
    objective = Objective(model, _scaled(problem.loss, condition.loss_scale), condition.l2)
    horizon = optim.Horizon(1, condition.steps, SAMPLES)
    stepper = optim.create(method.optimizer, model, horizon=horizon, **dict(method.settings))
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=condition.bf16):
        for rows in _order(condition.batch_size, condition.steps, seed):
            stepper.step(objective.batch(inputs[rows], targets[rows]))
    seconds = time.perf_counter() - began
    with stepper.evaluation_weights():
        return max(measured(objective, inputs, targets) / condition.loss_scale, FLOOR), seconds


def _pretrain(
    problem: JudgingProblem, model: nn.Module, inputs: Tensor, targets: Tensor, steps: int, seed: int
) -> None:
    """Train on the samples of the first half of the classes; other targets: on the first half of the samples."""
    classes = targets.dim() == 1 and not targets.is_floating_point()
    kept = torch.nonzero(targets < 5).flatten() if classes else torch.arange(len(targets) // 2)
    objective = Objective(model, problem.loss)
    stepper = optim.create("adam", model, learning_rate=1e-3)
    for rows in _order(64, steps, seed + 1, len(kept)):
        stepper.step(objective.batch(inputs[kept[rows]], targets[kept[rows]]))


def _scaled(loss: Loss, factor: float) -> Loss:
    if factor == 1.0:
        return loss
    base = loss if callable(loss) else partial(nn.functional.cross_entropy, reduction="none")
    return lambda outputs, targets: base(outputs, targets) * factor


def _noisy(targets: Tensor, share: float) -> Tensor:
    if not share or targets.dim() != 1:
        return targets
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(targets), generator=generator) < share
    return torch.where(wrong, torch.randint(10, targets.shape, generator=generator), targets)


def _order(batch_size: int, steps: int, seed: int, samples: int = SAMPLES) -> Iterator[Tensor]:
    """The rows of every batch; what does not fill a batch of an epoch is left out.

    Yields:
        (batch_size,) row numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    left = steps
    while left:
        batches = torch.randperm(samples, generator=generator)[: samples // batch_size * batch_size].split(batch_size)
        yield from batches[:left]
        left -= min(left, len(batches))


def finished(path: Path) -> list[RobustnessOutcome]:
    """The runs in a file; a last line that was cut off is left out."""
    return outcome_file.read(path, RobustnessOutcome)


def campaign(
    path: Path,
    problems: Sequence[JudgingProblem] = PROBLEMS,
    conditions: Sequence[Condition] = CONDITIONS,
    seeds: Sequence[int] = (0,),
    methods: Sequence[Method] = METHODS,
) -> Iterator[RobustnessOutcome]:
    """All runs that the file does not hold yet, each appended to it as soon as it is done.

    Yields:
        The new ones.
    """
    kept = finished(path)
    outcome_file.rewrite(path, kept)
    done = {outcome.key for outcome in kept}
    for seed in seeds:
        for condition in conditions:
            for problem in problems:
                for method in methods:
                    if (problem.name, condition.name, method.name, seed) in done:
                        continue
                    found = run(problem, condition, method, seed)
                    outcome = RobustnessOutcome(problem.name, condition.name, method.name, seed, *found)
                    outcome_file.append(path, outcome)
                    yield outcome


def ratios(outcomes: Sequence[RobustnessOutcome]) -> dict[tuple[str, str], float]:
    """Loss of `auto` over the better of the two Adams, by condition and problem, over the seeds that all three have."""
    found = {}
    for condition, problem in dict.fromkeys((o.condition, o.problem) for o in outcomes):
        losses = [
            {o.seed: o.loss for o in outcomes if o.key[:3] == (problem, condition, method.name)} for method in METHODS
        ]
        seeds = set.intersection(*map(set, losses))
        if seeds:
            mine, *others = (statistics.fmean(math.log(loss[seed]) for seed in seeds) for loss in losses)
            found[condition, problem] = math.exp(mine - min(others)) if math.isfinite(min(others)) else 1.0
    return found


def missed(outcomes: Sequence[RobustnessOutcome]) -> list[str]:
    """The ratios above `WORST`, and the mean of all if it is above `MEAN`, a line each."""
    found = ratios(outcomes)
    above = [
        f"{condition}, {problem}: {_cell(ratio)}, above {WORST}"
        for (condition, problem), ratio in found.items()
        if ratio > WORST
    ]
    mean = math.exp(statistics.fmean(map(math.log, found.values()))) if found else 0.0
    return above + ([f"geometric mean of all: {_cell(mean)}, above {MEAN}"] if mean > MEAN else [])


def to_markdown(outcomes: Sequence[RobustnessOutcome]) -> str:
    """A row for each condition: geometric mean and worst of the ratios over the problems, and each of them."""
    found = ratios(outcomes)
    conditions = [c.name for c in CONDITIONS if any(key[0] == c.name for key in found)]
    problems = [p.name for p in PROBLEMS if any(key[1] == p.name for key in found)]
    rows = []
    for condition in conditions:
        values = [found.get((condition, problem)) for problem in problems]
        rows.append([condition, *_summary([v for v in values if v is not None]), *map(_cell, values)])
    rows.append(["all", *_summary(list(found.values())), *("" for _ in problems)])
    return table_formats.markdown(["", "mean", "worst", *problems], rows) + "\n"


def _summary(values: list[float]) -> tuple[str, str]:
    return _cell(math.exp(statistics.fmean(map(math.log, values)))), _cell(max(values))


def _cell(value: float | None) -> str:
    return "–" if value is None else "∞" if math.isinf(value) else f"{value:.2f}"
