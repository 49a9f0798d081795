"""Cost of one optimizer step, as ratios to the plain SGD step of the same network.

- Operations: matrix products and convolutions, by torch's FlopCounterMode; repeatable to the last digit.
- Wall time: median over rounds in which SGD and the optimizer take a step in turn, in one process, so that a machine
  that slows down slows both.
- Peak memory: bytes of all tensor storages alive at once, beyond those alive before the step; the allocator's own
  count on a GPU.
"""

from __future__ import annotations

import ast
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from raycurv import optim
from raycurv.benchmarks.double_backward import DoubleBackwardBatch
from raycurv.models.autoencoder import autoencoder
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.lenet import lenet
from raycurv.models.resnet import resnet18
from raycurv.models.transformer import transformer
from raycurv.models.vgg import vgg
from raycurv.objective import Batch, Objective
from raycurv.objective.losses import word_counts, word_cross_entropy
from raycurv.results import table_formats

BASELINE = "sgd"
# Passes are compiled at their second batch and compared at the third: CurveBall's checks of λ at steps 1, 5 and 10.
WARM_UP_STEPS = 11
Loss = str | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """A network and its mini-batch.

    Attributes:
        build: function that makes the network.
        inputs: function that makes the inputs.
        targets: function that makes the targets, given the inputs.
        loss: loss of :class:`raycurv.Objective`, a name or a function.
        weights: function of the targets that returns the sample weights, as in :class:`raycurv.Objective`.
        l2: factor of ½‖Θ‖².
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    targets: Callable[[Any], Tensor]
    loss: Loss = "cross_entropy"
    weights: Callable[[Tensor], Tensor] | None = None
    l2: float = 0.0


def images(build: Callable[[], nn.Module], *shape: int) -> Workload:
    """A classifier of ten classes on images of this shape, the batch first."""
    return Workload(build, partial(torch.randn, shape), lambda x: torch.randint(10, (len(x),)))


def sentences(samples: int, length: int, vocabulary: int, **settings: int) -> Workload:
    """A translator of sentences of this length; in the source and the target every word is there."""
    build = partial(transformer, vocabulary, source_words=vocabulary, **settings)
    inputs = partial(torch.randint, 1, vocabulary, (samples, 2, length))
    return Workload(build, inputs, lambda x: x[:, 1].roll(-1, 1), word_cross_entropy, word_counts)


WORKLOADS: dict[str, Workload] = {
    "basic CNN": images(partial(basic_cnn, batch_norm=False), 128, 3, 32, 32),
    "basic CNN + BN": images(partial(basic_cnn, batch_norm=True), 128, 3, 32, 32),
    "VGG11-softplus": images(partial(vgg, depth=11, activation="softplus5", batch_norm=False), 64, 3, 32, 32),
    "LeNet-tanh": images(partial(lenet, input_shape=(1, 28, 28), activation="tanh"), 128, 1, 28, 28),
    "autoencoder": Workload(autoencoder, partial(torch.rand, 128, 1, 28, 28), lambda x: x.flatten(1), "squared_error"),
    "ResNet-18": images(resnet18, 32, 3, 32, 32),
    "transformer": sentences(32, 20, 2000, size=128, heads=4, layers=2, hidden=256),
}


@dataclass(frozen=True)
class MeasuredOptimizer:
    """An optimizer with settings, to be measured.

    Attributes:
        optimizer: name of the registered optimizer.
        settings: its settings, by name.
        batch: class of the batches that the optimizer steps on.
        note: addition to the label, where the batch class is not the default.
    """

    optimizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    batch: type[Batch] = Batch
    note: str = ""

    @property
    def label(self) -> str:
        """Label in the table."""
        given = ", ".join([*(f"{name}={value!r}" for name, value in self.settings.items()), *filter(None, [self.note])])
        return f"{self.optimizer} ({given})" if given else self.optimizer

    @classmethod
    def parse(cls, text: str) -> MeasuredOptimizer:
        """Read ``name`` or ``name:setting=value,setting=value``.

        Raises:
            ValueError: the name or a setting is unknown, or a value is no literal of Python.
        """
        name, _, rest = text.partition(":")
        try:
            pairs = [pair.split("=", 1) for pair in rest.split(",") if pair]
            settings = {key.strip(): ast.literal_eval(value) for key, value in pairs}
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{text!r} must look like red_sgd:lean=True,scale=0.5") from error
        optim.check(name, **settings)
        return cls(name, settings)


# What the registry's defaults do not show.
VARIANTS = (
    MeasuredOptimizer("curveball", {"damping_interval": None}),
    MeasuredOptimizer("curveball", batch=DoubleBackwardBatch, note="J·z by two reverse passes"),
    MeasuredOptimizer("red_sgd", {"lean": True}),
)


def parse_optimizers(names: Sequence[str], fraction: float | None = None) -> tuple[MeasuredOptimizer, ...]:
    """Parse the optimizers of a command line.

    Args:
        names: texts for :meth:`MeasuredOptimizer.parse`. ``all`` is every registered optimizer at its defaults, and
            :data:`VARIANTS`.
        fraction: fraction of the batch for the curvature in additional measurements of CurveBall and RED.

    Raises:
        ValueError: a name or a setting is unknown.
    """
    found: list[MeasuredOptimizer] = []
    for name in names:
        found += (
            [*map(MeasuredOptimizer, optim.names()), *VARIANTS] if name == "all" else [MeasuredOptimizer.parse(name)]
        )
    if fraction is not None:
        found += [MeasuredOptimizer(name, {"curvature_fraction": fraction}) for name in ("curveball", "red_sgd")]
    return tuple(found)


@dataclass(frozen=True)
class StepCost:
    """Ratios to the SGD step of the same network.

    Attributes:
        workload: name of the network.
        subject: label of the subject.
        operations: mean over one period of the method's checks (five steps).
        seconds: median wall time.
        memory: peak memory.
        skipped: reason why there are no numbers; empty if there are.
        warm_up: seconds of the first steps, in which passes are compiled where that is asked for.
    """

    workload: str
    subject: str
    operations: float | None = None
    seconds: float | None = None
    memory: float | None = None
    skipped: str = ""
    warm_up: float | None = None

    @property
    def text(self) -> str:
        """One line."""
        first = "" if self.warm_up is None else f"  (first steps: {self.warm_up:.1f} s)"
        return f"{self.workload}: {self.subject}  {self.skipped or self.ratios}{first}"

    @property
    def ratios(self) -> str:
        """Operations / wall time / peak memory."""
        if self.operations is None:
            return "–"
        return f"{self.operations:.2f} / {self.seconds:.2f} / {self.memory:.2f}"


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages that are alive at once and were made while it is entered.

    Args:
        by_operator: keep what was alive at the peak.
        on_operator: called after every operator with the bytes that are alive.

    Attributes:
        peak: the largest number of bytes so far.
        at_peak: bytes at the peak by operator that made them and shape; with `by_operator` alone.
    """

    def __init__(self, *, by_operator: bool = False, on_operator: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.peak = 0
        self._on_operator = on_operator
        self.at_peak: dict[str, int] = {}
        self._by_operator = by_operator
        self._alive: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute one operator and look at what it made, views and results in place left out."""
        given = {tensor.untyped_storage()._cdata for tensor in pytree.tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        out = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in filter(_is_tensor, out if isinstance(out, (list, tuple)) else (out,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                made_by = f"{func.__name__} {tuple(tensor.shape)}"
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes(), made_by))
        total = sum(size for _, size, _ in self._alive.values())
        if total > self.peak:
            self.peak = total
            self.at_peak = self._sorted() if self._by_operator else {}
        if self._on_operator is not None:
            self._on_operator(total)
        return out

    def _sorted(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for _, size, made_by in self._alive.values():
            sizes[made_by] = sizes.get(made_by, 0) + size
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


class StepRunner:
    """One optimizer on its own copy of a network, ready to step.

    Args:
        workload: network and mini-batch.
        subject: optimizer with its settings.
        device: device of the network and the batch.
        compile: whether the objective compiles its passes.
    """

    def __init__(
        self, workload: Workload, subject: MeasuredOptimizer, device: torch.device, *, compile: bool = False
    ) -> None:
        torch.manual_seed(0)
        model = workload.build().to(device)
        self.device, self.batch = device, subject.batch
        # The check of the first batch is no part of a step.
        self.objective = Objective(
            model, workload.loss, workload.l2, weights=workload.weights, check_consistency=False, compile=compile
        )
        horizon = optim.Horizon(epochs=10, steps_per_epoch=100, training_samples=12_800)
        self.optimizer = optim.create(subject.optimizer, model, horizon=horizon, **subject.settings)
        self.data = []
        for _ in range(2 if self.optimizer.needs_validation else 1):
            inputs = workload.inputs()
            self.data.append((inputs.to(device), workload.targets(inputs).to(device)))

    def step(self) -> None:
        """One step on its fixed batch."""
        batch, *held_out = (self.batch(self.objective, *data) for data in self.data)
        self.optimizer.step(batch, validation=held_out[0] if held_out else None)

    def warm_up(self) -> float:
        """Take steps until all passes are compiled; returns their seconds."""
        started = time.perf_counter()
        for _ in range(WARM_UP_STEPS):
            self.step()
        return time.perf_counter() - started

    def operations(self, steps: int) -> float:
        """Floating-point operations of a step, the mean over `steps`."""
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                self.step()
        return counter.get_total_flops() / steps

    def memory(self) -> int:
        """Peak bytes of a step, beyond those alive before it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            return torch.cuda.max_memory_allocated(self.device) - before
        with PeakMemory() as counter:
            self.step()
        return counter.peak

    def seconds(self) -> float:
        """Wall time of a step; on a GPU the time between events around its kernels, with all waits for Python."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000
        started = time.perf_counter()
        self.step()
        return time.perf_counter() - started


def step_runner(workload: str, subject: MeasuredOptimizer) -> StepRunner:
    """A subject on its own copy of a network, on the CPU; its ``step`` takes one.

    Raises:
        ValueError: the workload is unknown, or the optimizer refuses it.
    """
    return StepRunner(_workload(workload), subject, torch.device("cpu"))


def peak_by_operator(workload: str, subject: MeasuredOptimizer) -> dict[str, int]:
    """Bytes alive at the peak of a step on the CPU, by the operator that made them, largest first."""
    stepper = step_runner(workload, subject)
    stepper.step()
    with PeakMemory(by_operator=True) as memory:
        stepper.step()
    return memory.at_peak


def measure(
    workload: str,
    subjects: Sequence[MeasuredOptimizer],
    *,
    rounds: int = 20,
    device: torch.device | str = "cpu",
    period: int = 5,
    compile: bool = False,
) -> Iterator[StepCost]:
    """Costs of these subjects on one network, one after the other; what refuses the network says why.

    Args:
        workload: a key of :data:`WORKLOADS`.
        subjects: optimizers to measure.
        rounds: steps of each subject, and of SGD between them, whose wall time is measured.
        device: device of the networks and the batches.
        period: steps over which operations are averaged, a multiple of the interval at which λ is checked.
        compile: whether passes are compiled, those of SGD too; operations and memory are those without.

    Yields:
        The cost of each subject.

    Raises:
        ValueError: the workload is unknown.
    """
    chosen, place = _workload(workload), torch.device(device)
    baseline = StepRunner(chosen, MeasuredOptimizer(BASELINE), place)
    operations, memory = baseline.operations(1), baseline.memory()
    if compile:
        baseline = StepRunner(chosen, MeasuredOptimizer(BASELINE), place, compile=True)
        baseline.warm_up()
    for subject in subjects:
        try:
            stepper = StepRunner(chosen, subject, place)
            stepper.step()  # the first step of a method may do less or more than the others
            counted, peak, cold = stepper.operations(period), stepper.memory(), None
            if compile:
                stepper = StepRunner(chosen, subject, place, compile=True)
                cold = stepper.warm_up()
            ratios = [stepper.seconds() / baseline.seconds() for _ in range(rounds)]
        except (ValueError, RuntimeError, ImportError) as error:
            yield StepCost(workload, subject.label, skipped=str(error).splitlines()[0])
            continue
        seconds = statistics.median(ratios)
        yield StepCost(workload, subject.label, counted / operations, seconds, peak / memory, warm_up=cold)


def _workload(name: str) -> Workload:
    if name not in WORKLOADS:
        raise ValueError(f"workload {name!r} is unknown; it is one of {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def to_markdown(costs: Sequence[StepCost]) -> str:
    """The costs as a table: networks as columns, operations / wall time / peak memory in each field."""
    networks = list(dict.fromkeys(cost.workload for cost in costs))
    ratios = {(cost.subject, cost.workload): cost.ratios for cost in costs}
    subjects = dict.fromkeys(cost.subject for cost in costs)
    rows = [[subject, *(ratios.get((subject, network), "–") for network in networks)] for subject in subjects]
    table = table_formats.markdown(["one step", *networks], rows)
    reasons = dict.fromkeys(f"- {cost.subject} on {cost.workload}: {cost.skipped}" for cost in costs if cost.skipped)
    return "\n".join([table, *(["", "Skipped:", "", *reasons] if reasons else [])])


def to_csv(costs: Sequence[StepCost]) -> str:
    """The costs as comma-separated values, one row for each network and subject."""
    return table_formats.comma_separated(
        ("network", "subject", "operations", "seconds", "memory", "skipped"),
        ((c.workload, c.subject, c.operations, c.seconds, c.memory, c.skipped) for c in costs),
    )
