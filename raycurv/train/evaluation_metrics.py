"""Metrics of an evaluation beside loss and accuracy, exact for any number of workers and any shares.

A metric is one of

- a function of (outputs, targets) that returns one value per sample, (B,): the metric is their mean over the set;
- a :class:`SummedMetric`, for what is not a mean over samples, such as F1;
- an object of torchmetrics (extra ``metrics``), whose own states are gathered over the workers.

Outputs are in float32 or float64. Sums over batches and workers are in float64.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycurv.arguments import require
from raycurv.objective.collectives import Collectives
from raycurv.objective.losses import PADDING

Values = Mapping[str, float | Tensor]
_DIMENSIONS = 8  # most dimensions of a sum or of a state
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
_AVERAGES = ("macro", "micro", "weighted")


@dataclass(frozen=True)
class SummedMetric:
    """A metric computed from sums over all samples, such as F1 from counts.

    Attributes:
        sums: function of (outputs, targets) that returns the sums over a batch, a tensor of one shape for all batches.
        value: function of the sums over the whole set, in float64, that returns the metric, or several by name.
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], float | Tensor | Values]


Metric = Callable[[Tensor, Tensor], Any] | SummedMetric | nn.Module


def require_metric(name: str, metric: object) -> None:
    """Refuse what is no metric.

    Raises:
        ValueError: it is neither a function, nor a SummedMetric, nor an object of torchmetrics.
    """
    if isinstance(metric, SummedMetric) or _has_states(metric) or (callable(metric) and not _is_module(metric)):
        return
    raise ValueError(
        f"metric {name!r} is {type(metric).__name__}; it must be a function of (outputs, targets) that returns one "
        "value per sample, a raycurv.train.SummedMetric, or an object of torchmetrics"
    )


class MetricSums:
    """Collects metrics over the batches of one evaluation.

    Args:
        metrics: metrics by name; objects of torchmetrics are copied, so that they keep their states.
        device: device of outputs and targets.

    Raises:
        ValueError: something in `metrics` is no metric.
    """

    def __init__(self, metrics: Mapping[str, Metric], device: torch.device) -> None:
        for name, metric in metrics.items():
            require_metric(name, metric)
        self._names = tuple(metrics)
        self._summed = {name: _as_summed(name, m) for name, m in metrics.items() if not _has_states(m)}
        self._states: dict[str, Any] = {name: _empty_copy(m, device) for name, m in metrics.items() if _has_states(m)}
        self._totals: dict[str, Tensor] = {}
        self._device = device
        self._samples = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of at least one sample.

        Raises:
            ValueError: a metric refuses the batch, or its sums have another shape than those of earlier batches.
        """
        if outputs.dtype not in (torch.float32, torch.float64) and outputs.is_floating_point():
            outputs = outputs.float()
        self._samples += len(targets)
        for name, metric in self._summed.items():
            found = torch.as_tensor(metric.sums(outputs, targets)).to(self._device, torch.float64)
            total = self._totals.get(name)
            require(f"metric {name!r}: number of dimensions", found.ndim, found.ndim < _DIMENSIONS, "less than 8")
            if total is not None and total.shape != found.shape:
                raise ValueError(_shapes_differ(name, [tuple(total.shape), tuple(found.shape)]))
            self._totals[name] = found if total is None else total + found
        for metric in self._states.values():
            metric.update(outputs, targets)

    def values(self, collectives: Collectives) -> dict[str, float]:
        """The metrics over the samples of all workers, which call this together; at least one has a sample.

        Returns:
            Numbers by name; those of a metric with several numbers as ``name/key``.

        Raises:
            ValueError: sums of workers have different shapes, or a metric gives something other than a number.
        """
        totals = self._global_totals(collectives)
        found: dict[str, float] = {}
        for name in self._names:
            if name in self._states:
                value = _compute(self._states[name], _Gather(collectives, self._device, self._samples > 0))
            else:
                value = self._summed[name].value(totals[name])
            found |= _numbers(name, value)
        return found

    def _global_totals(self, collectives: Collectives) -> dict[str, Tensor]:
        if collectives.size == 1 or not self._summed:
            return self._totals
        own = torch.zeros((len(self._summed), _DIMENSIONS), dtype=torch.int64)
        for row, name in enumerate(self._summed):
            if name in self._totals:
                shape = self._totals[name].shape
                own[row, : 1 + len(shape)] = torch.tensor([1 + len(shape), *shape])
        gathered = _rows(own.to(self._device), collectives).cpu()
        shapes = {}
        for row, name in enumerate(self._summed):
            known = {tuple(line[1 : line[0]]) for line in gathered[:, row].tolist() if line[0]}
            if len(known) != 1:
                raise ValueError(_shapes_differ(name, sorted(known)))
            (shapes[name],) = known
        empty = {name: torch.zeros(shape, dtype=torch.float64, device=self._device) for name, shape in shapes.items()}
        flat = torch.cat([self._totals.get(name, zeros).flatten() for name, zeros in empty.items()])
        parts = collectives.sum(flat).split([zeros.numel() for zeros in empty.values()])
        return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


# --- metrics that come along ---


def top_k_correct(outputs: Tensor, targets: Tensor, k: int = 5) -> Tensor:
    """Whether the class is among the k largest outputs, (B,).

    Args:
        outputs: scores (B, C).
        targets: class indices (B,).
        k: number of classes.

    Raises:
        ValueError: other shapes, or fewer classes than `k`.
    """
    _require_classes("top_k_correct", outputs, targets)
    require("top_k_correct: k", k, 1 <= k <= outputs.shape[1], f"from 1 to the number of classes, {outputs.shape[1]}")
    return (outputs.topk(k, dim=1).indices == targets[:, None]).any(1)


def f1_score(average: str = "macro") -> SummedMetric:
    """F1 = 2·TP / (2·TP + FP + FN), from counts over the whole set.

    Outputs are scores (B, C) of class indices (B,). Targets in the shape of the outputs are binary labels, 0 or 1, and
    an output above 0 (a logit) predicts 1: one label (B,) or (B, 1), or several (B, L).

    Args:
        average: ``macro``, the mean over the classes; ``weighted``, the mean weighted by their samples; ``micro``, from
            the counts of all classes together. Classes that are neither predicted nor a target are left out.

    Raises:
        ValueError: another average.
    """
    require("f1_score: average", average, average in _AVERAGES, f"one of {', '.join(_AVERAGES)}")
    return SummedMetric(_positives, lambda counts: _f1(counts, average))


def perplexity() -> SummedMetric:
    """exp of the mean of −log softmax(outputs)[target], over all samples, or over all words of all sentences.

    Outputs are scores (B, C) of class indices (B,), or scores (B, T, C) of word numbers (B, T), of which 0 is padding
    and does not count.
    """
    return SummedMetric(_log_likelihood, lambda sums: torch.exp(sums[0] / sums[1]))


def _positives(outputs: Tensor, targets: Tensor) -> Tensor:
    """(3, C): predictions that are right, all predictions, and all targets, by class."""
    if outputs.shape == targets.shape:
        predicted, wanted = (outputs > 0).reshape(len(outputs), -1), (targets > 0.5).reshape(len(targets), -1)
        return torch.stack([(predicted & wanted).sum(0), predicted.sum(0), wanted.sum(0)])
    _require_classes("f1_score", outputs, targets)
    classes = outputs.shape[1]
    predicted = outputs.argmax(1)
    groups = (targets[predicted == targets], predicted, targets)
    return torch.stack([torch.bincount(group, minlength=classes) for group in groups])


def _f1(counts: Tensor, average: str) -> Tensor:
    right, predicted, wanted = counts.sum(1, keepdim=True) if average == "micro" else counts
    there = predicted + wanted > 0
    scores = 2 * right[there] / (predicted + wanted)[there]
    weights = wanted[there] if average == "weighted" else torch.ones_like(scores)
    return (weights * scores).sum() / weights.sum()


def _log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """(2,): sum of −log p of the counted targets, and their number."""
    if outputs.ndim == 3 and targets.shape == outputs.shape[:2]:
        counted = targets.flatten() != PADDING
        outputs, targets = outputs.flatten(0, 1)[counted], targets.flatten()[counted]
    else:
        _require_classes("perplexity", outputs, targets)
    losses = F.cross_entropy(outputs, targets, reduction="none").double()
    return torch.stack([losses.sum(), torch.ones_like(losses).sum()])


def _require_classes(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.ndim == 2 and targets.shape == outputs.shape[:1] and not targets.is_floating_point():
        return
    raise ValueError(
        f"{name} takes scores (B, C) and class indices (B,), not {tuple(outputs.shape)} and {targets.dtype} "
        f"{tuple(targets.shape)}"
    )


# --- functions per sample ---


def _as_summed(name: str, metric: Any) -> SummedMetric:
    return (
        metric
        if isinstance(metric, SummedMetric)
        else SummedMetric(lambda o, t: _mean_sums(name, metric(o, t), t), _mean)
    )


def _mean_sums(name: str, values: Any, targets: Tensor) -> Tensor:
    """(2,): sum of weight·value and sum of the weights of a batch.

    Raises:
        ValueError: there is not one value per sample.
    """
    values, weights = values if isinstance(values, tuple) and len(values) == 2 else (values, None)
    weights = torch.ones(len(targets), device=targets.device) if weights is None else weights
    for found in (values, weights):
        if not isinstance(found, Tensor) or found.shape != (len(targets),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"metric {name!r} must return one value per sample, shape ({len(targets)},), not {shape}; a pair is "
                "values and weights, and what is no mean over samples is a raycurv.train.SummedMetric"
            )
    return torch.stack([(values.double() * weights.double()).sum(), weights.double().sum()])


def _mean(sums: Tensor) -> Tensor:
    return sums[0] / sums[1]


def _numbers(name: str, value: Any) -> dict[str, float]:
    """A metric's result as numbers by name.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, Mapping):
        return {key: number for part, one in value.items() for key, number in _numbers(f"{name}/{part}", one).items()}
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return {name: float(value)}
    if isinstance(value, (int, float)):
        return {name: float(value)}
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"metric {name!r} gave {given}; it must be one number, or a dict of numbers by name (for torchmetrics choose "
        "an average, such as average='macro')"
    )


def _shapes_differ(name: str, shapes: list[tuple[int, ...]]) -> str:
    return (
        f"metric {name!r} gave sums of the shapes {' and '.join(map(str, shapes))}: they must have one shape for every "
        "batch, such as the number of classes"
    )


# --- objects of torchmetrics ---


def _is_module(metric: object) -> bool:
    return isinstance(metric, (nn.Module, type))


def _has_states(metric: object) -> bool:
    """Whether this is an object of torchmetrics, which needs no import of it."""
    return isinstance(metric, nn.Module) and all(
        hasattr(metric, name) for name in ("update", "compute", "reset", "sync")
    )


def _empty_copy(metric: Any, device: torch.device) -> Any:
    found = copy.deepcopy(metric).to(device)
    found.set_dtype(torch.float64)
    found.reset()
    return found


def _compute(metric: Any, gather: _Gather) -> Any:
    for module in metric.modules():
        if hasattr(module, "dist_sync_fn"):
            module.dist_sync_fn, module.distributed_available_fn = gather, lambda: gather.size > 1
    with warnings.catch_warnings():
        # A worker without a sample has never called update.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)
        return metric.compute()


class _Gather:
    """Gathers a state of torchmetrics from all workers that have samples, in the order of their ranks.

    Args:
        collectives: the workers, which all call this together.
        device: device of the states.
        counts: whether this worker has a sample.
    """

    def __init__(self, collectives: Collectives, device: torch.device, counts: bool) -> None:
        self._collectives, self._device, self._counts = collectives, device, counts
        self.size = collectives.size

    def __call__(self, state: Tensor, group: object = None) -> list[Tensor]:
        header = torch.zeros(2 + _DIMENSIONS, dtype=torch.int64, device=self._device)
        if self._counts:
            kind, shape = _DTYPES.index(state.dtype), state.shape
            header[: 2 + len(shape)] = torch.tensor([1 + kind, len(shape), *shape])
        headers: list[list[int]] = _rows(header, self._collectives).tolist()
        kinds = [line[0] - 1 for line in headers]
        shapes = [tuple(line[2 : 2 + line[1]]) for line in headers]
        wide = torch.float64 if any(_DTYPES[kind].is_floating_point for kind in kinds if kind >= 0) else torch.int64
        sizes = [int(torch.Size(shape).numel()) if kind >= 0 else 0 for kind, shape in zip(kinds, shapes, strict=True)]
        own = torch.zeros(max(sizes), dtype=wide, device=self._device)
        if self._counts:
            own[: state.numel()] = state.flatten().to(wide)
        rows = _rows(own, self._collectives)
        found = zip(rows, sizes, kinds, shapes, strict=True)
        return [row[:size].to(_DTYPES[kind]).reshape(shape) for row, size, kind, shape in found if kind >= 0]


def _rows(tensor: Tensor, collectives: Collectives) -> Tensor:
    """The equally shaped `tensor` of every worker, one row each, on its device."""
    rows = torch.zeros((collectives.size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    rows[collectives.rank] = tensor
    return collectives.sum(rows)
