"""Torch's loss modules as losses per sample, so that the objective of a batch equals the module's value.

An objective is J = Σ w ℓ / Σ w over the samples of a batch. A module with ``reduction='mean'`` is such a mean in three
ways:

- Element-wise losses (MSELoss, L1Loss, SmoothL1Loss, HuberLoss, BCELoss, BCEWithLogitsLoss, PoissonNLLLoss,
  SoftMarginLoss, HingeEmbeddingLoss, KLDivLoss) are means over the elements of the outputs. Then ℓ is the mean over the
  elements of one sample, and w = 1. KLDivLoss with ``reduction='batchmean'`` is the sum over the elements in place of
  their mean.
- MultiLabelSoftMarginLoss is a mean over samples: ℓ is its value for one sample, and w = 1.
- CrossEntropyLoss and NLLLoss take outputs (B, C, …) and class indices (B, …), and divide by the sum of the weights of
  the target classes. Then w is the sum of class weights over the positions of one sample, without those equal to
  `ignore_index`, and ℓ is the sample's sum of losses divided by w (0 where w is 0). Class probabilities as targets of
  CrossEntropyLoss are not weighted by torch's mean: ℓ is the mean over the positions, and w = 1.

Label smoothing keeps these weights. The weights w multiply those of the objective's argument `weights`. Per-sample
statistics such as the absolute curvature are means over samples with the same w.

A module with ``reduction='none'`` is a function like any other and must return shape (B,). Functions of
:mod:`torch.nn.functional`, also in :func:`functools.partial` with keywords, stand for their modules.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycurv.objective.loss_derivatives import ClosedForm, LossAt, LossFunction, softmax_hessian


@dataclass(frozen=True)
class PerSampleLoss:
    """A loss module as a loss per sample.

    Attributes:
        values: function of (outputs, targets); returns ℓ, (B,).
        at: closed form of its derivatives; None if torch differentiates it.
        weights: function of the targets; returns w, (B,) float64. None is 1 for every sample.
    """

    values: LossFunction
    at: ClosedForm | None = None
    weights: Callable[[Tensor], Tensor] | None = None


def per_sample(loss: Callable[..., Any]) -> PerSampleLoss | None:
    """The form per sample of a loss module or function of torch; None for any other function.

    Raises:
        ValueError: the module is not a mean over samples, or has no form per sample.
    """
    module = _module(loss)
    if module is None or getattr(module, "reduction", None) == "none":
        return None
    name, reduction = type(module).__name__, getattr(module, "reduction", None)
    translate = _TRANSLATIONS.get(type(module))
    if translate is None:
        raise ValueError(
            f"torch.nn.{name} has no form per sample here; pass a function of (outputs, targets) that returns one loss "
            f"per sample, shape (B,), such as lambda outputs, targets: torch.nn.{name}(reduction='none')(outputs, "
            "targets).flatten(1).mean(1)"
        )
    allowed = ("mean", "batchmean") if isinstance(module, nn.KLDivLoss) else ("mean",)
    if reduction not in allowed:
        raise ValueError(
            f"torch.nn.{name} has reduction={reduction!r}, but an objective is a mean over samples: use "
            f"reduction={' or '.join(map(repr, allowed))}, or pass a function of (outputs, targets) that returns one "
            f"loss per sample, such as lambda outputs, targets: torch.nn.{name}(reduction='none')(outputs, "
            "targets).flatten(1).sum(1)"
        )
    return translate(module)


def _module(loss: Callable[..., Any]) -> nn.Module | None:
    """The torch loss module that `loss` is or stands for."""
    for function, module in _FUNCTIONS.items():
        if loss is function:
            return module()
        if isinstance(loss, functools.partial) and loss.func is function and not loss.args:
            return module(**loss.keywords)
    # Subclasses may compute anything: they are functions like any other.
    return loss if isinstance(loss, nn.Module) and type(loss).__module__ == nn.MSELoss.__module__ else None


# --- element-wise losses ---------------------------------------------------------------------------------------------

# First and second derivative of one element's loss with respect to its output.
Derivatives = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor | float]]


def _elementwise(derivatives: Derivatives | None, module: nn.Module) -> PerSampleLoss:
    name, unreduced = type(module).__name__, _unreduced(module)
    summed = getattr(module, "reduction", None) == "batchmean"
    _check_element_weight(module)

    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"{name} takes targets in the shape of the outputs, not {tuple(targets.shape)} for "
                f"{tuple(outputs.shape)}: reshape the targets, or squeeze the model's outputs"
            )
        losses = unreduced.to(outputs.dtype)(outputs, _as(targets, outputs)).reshape(len(outputs), -1)
        return losses.sum(1) if summed else losses.mean(1)

    def at(outputs: Tensor, targets: Tensor) -> LossAt:
        found = values(outputs, targets)
        assert derivatives is not None
        first, second = derivatives(unreduced, outputs, _as(targets, outputs))
        elements = max(1, outputs[0].numel())
        return LossAt(found, first / elements, lambda u: u * second / elements)

    return PerSampleLoss(values, None if derivatives is None else at)


def _check_element_weight(module: nn.Module) -> None:
    """Refuse a weight of the elements that has a batch dimension.

    Raises:
        ValueError: the first dimension of `weight` is not 1 and might be the batch.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() > 1 and weight.shape[0] != 1:
        raise ValueError(
            f"torch.nn.{type(module).__name__} has a weight of shape {tuple(weight.shape)}, whose first dimension "
            "would be the batch; give it the shape of one sample's outputs, and weigh samples by Objective(weights=…)"
        )


def _mse(_: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    return 2 * (outputs - targets), 2.0


def _l1(_: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    return torch.sign(outputs - targets), 0.0


def _huber(module: nn.HuberLoss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    error = outputs - targets
    return error.clamp(-module.delta, module.delta), (error.abs() < module.delta).to(outputs.dtype)


def _smooth_l1(module: nn.SmoothL1Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    if module.beta == 0:
        return _l1(module, outputs, targets)
    error = outputs - targets
    return (error / module.beta).clamp(-1, 1), (error.abs() < module.beta).to(outputs.dtype) / module.beta


def _bce_with_logits(module: nn.BCEWithLogitsLoss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    """For (1 − t)·x + (1 + (pos_weight − 1)·t)·log(1 + e⁻ˣ), times the weight."""
    positive = 1.0 if module.pos_weight is None else 1 + (module.pos_weight - 1) * targets
    negative_probability = torch.sigmoid(-outputs)
    first = (1 - targets) - positive * negative_probability
    second = positive * negative_probability * (1 - negative_probability)
    return (first, second) if module.weight is None else (module.weight * first, module.weight * second)


# --- losses of samples -----------------------------------------------------------------------------------------------


def _samplewise(module: nn.Module) -> PerSampleLoss:
    unreduced = _unreduced(module)
    return PerSampleLoss(lambda outputs, targets: unreduced.to(outputs.dtype)(outputs, _as(targets, outputs)))


# --- losses of classes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classes:
    """Class weights and ignored index of CrossEntropyLoss or NLLLoss, for class indices (B, …)."""

    weight: Tensor | None
    ignore_index: int

    def position_weights(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Weight of each position, (B, positions): that of its class, 0 where ignored."""
        counted = (targets != self.ignore_index).reshape(len(targets), -1)
        if self.weight is None:
            return counted.to(dtype)
        return torch.where(counted, self.weight.to(dtype)[self.labels(targets)], 0.0)

    def labels(self, targets: Tensor) -> Tensor:
        """Class of each position, (B, positions), 0 where ignored."""
        return targets.masked_fill(targets == self.ignore_index, 0).reshape(len(targets), -1)

    def sample_weights(self, targets: Tensor) -> Tensor:
        """w, (B,) float64."""
        if targets.is_floating_point():  # probabilities
            return torch.ones(len(targets), dtype=torch.float64, device=targets.device)
        return self.position_weights(targets, torch.float64).sum(1)

    def means(self, losses: Tensor, targets: Tensor) -> Tensor:
        """ℓ, (B,), from the weighted losses of the positions, (B, …)."""
        return losses.reshape(len(losses), -1).sum(1) / self.divisors(targets, losses)

    def divisors(self, targets: Tensor, losses: Tensor) -> Tensor:
        """Positive numbers (B,) by which the sums over positions are divided."""
        if targets.is_floating_point():
            return losses.new_full((len(losses),), losses[0].numel())
        weights = self.position_weights(targets, losses.dtype).sum(1)
        return torch.where(weights > 0, weights, 1.0)


def _cross_entropy(module: nn.CrossEntropyLoss) -> PerSampleLoss:
    classes, smoothing = _Classes(module.weight, module.ignore_index), module.label_smoothing
    if smoothing and module.weight is not None and bool((module.weight <= 0).any()):
        raise ValueError(
            "torch.nn.CrossEntropyLoss has label_smoothing and a class weight that is not positive: samples of weight "
            "0 would have a loss; use positive class weights"
        )

    def unreduced(outputs: Tensor, targets: Tensor) -> Tensor:
        _check_classes("CrossEntropyLoss", outputs, targets)
        weight = None if module.weight is None else module.weight.to(outputs.dtype)
        return F.cross_entropy(
            outputs,
            _as(targets, outputs),
            weight,
            ignore_index=module.ignore_index,
            reduction="none",
            label_smoothing=smoothing,
        )

    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        return classes.means(unreduced(outputs, targets), targets)

    def at(outputs: Tensor, targets: Tensor) -> LossAt:
        losses = unreduced(outputs, targets)
        scores = outputs.reshape(*outputs.shape[:2], -1)  # (B, C, positions)
        p, divisors = torch.softmax(scores, 1), classes.divisors(targets, losses)[:, None, None]
        gradient, mass = _target_mass(classes, smoothing, p, targets)
        mass = mass / divisors
        gradient = gradient.div_(divisors).addcmul_(p, mass)

        def hessian(u: Tensor) -> Tensor:
            return softmax_hessian(p, u.reshape(p.shape), 1).mul_(mass).view(outputs.shape)

        return LossAt(classes.means(losses, targets), gradient.view(outputs.shape), hessian)

    return PerSampleLoss(values, at, classes.sample_weights)


def _target_mass(classes: _Classes, smoothing: float, p: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−m for the loss −Σ m log p of each position, (B, C, positions), and Σ m over the classes, (B, 1, positions)."""
    weight = p.new_ones(1) if classes.weight is None else classes.weight.to(p.dtype)
    weight, spread = weight.view(1, -1, 1), smoothing / p.shape[1]
    if targets.is_floating_point():
        mass = weight * ((1 - smoothing) * targets.reshape(p.shape).to(p.dtype) + spread)
        return -mass, mass.sum(1, keepdim=True)
    counted = (targets != classes.ignore_index).reshape(len(targets), 1, -1).to(p.dtype)
    position_weights = (1 - smoothing) * classes.position_weights(targets, p.dtype)[:, None]
    mass = (spread * weight * counted).expand(p.shape).clone()
    mass.scatter_add_(1, classes.labels(targets)[:, None], position_weights)
    return mass.neg_(), position_weights + (spread * counted * weight.expand(1, p.shape[1], 1).sum(1, keepdim=True))


def _nll(module: nn.NLLLoss) -> PerSampleLoss:
    classes = _Classes(module.weight, module.ignore_index)

    def unreduced(outputs: Tensor, targets: Tensor) -> Tensor:
        _check_classes("NLLLoss", outputs, targets)
        weight = None if module.weight is None else module.weight.to(outputs.dtype)
        return F.nll_loss(outputs, targets, weight, ignore_index=module.ignore_index, reduction="none")

    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        return classes.means(unreduced(outputs, targets), targets)

    def at(outputs: Tensor, targets: Tensor) -> LossAt:
        found = values(outputs, targets)
        weights = classes.position_weights(targets, outputs.dtype)
        slopes = (weights / classes.divisors(targets, weights)[:, None]).neg()[:, None]
        gradient = torch.zeros_like(outputs).reshape(*outputs.shape[:2], -1)
        gradient.scatter_add_(1, classes.labels(targets)[:, None], slopes)
        return LossAt(found, gradient.view(outputs.shape), torch.zeros_like)  # linear in the outputs

    return PerSampleLoss(values, at, classes.sample_weights)


def _check_classes(name: str, outputs: Tensor, targets: Tensor) -> None:
    probabilities = name == "CrossEntropyLoss" and targets.is_floating_point() and targets.shape == outputs.shape
    indices = not targets.is_floating_point() and targets.shape == (*outputs.shape[:1], *outputs.shape[2:])
    if outputs.dim() < 2 or not (probabilities or indices):
        also = " or class probabilities (B, C, …)" if name == "CrossEntropyLoss" else ""
        raise ValueError(
            f"{name} takes outputs (B, C, …) and class indices (B, …){also}, not {outputs.dtype} "
            f"{tuple(outputs.shape)} and {targets.dtype} {tuple(targets.shape)}"
        )


def _unreduced(module: nn.Module) -> nn.Module:
    unreduced = copy.deepcopy(module)
    unreduced.reduction = "none"  # type: ignore[assignment]
    return unreduced


def _as(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets in the dtype of the outputs if they are floating."""
    return targets.to(outputs.dtype) if targets.is_floating_point() else targets


_TRANSLATIONS: dict[type, Callable[[Any], PerSampleLoss]] = {
    nn.MSELoss: functools.partial(_elementwise, _mse),
    nn.L1Loss: functools.partial(_elementwise, _l1),
    nn.SmoothL1Loss: functools.partial(_elementwise, _smooth_l1),
    nn.HuberLoss: functools.partial(_elementwise, _huber),
    nn.BCEWithLogitsLoss: functools.partial(_elementwise, _bce_with_logits),
    nn.BCELoss: functools.partial(_elementwise, None),
    nn.PoissonNLLLoss: functools.partial(_elementwise, None),
    nn.SoftMarginLoss: functools.partial(_elementwise, None),
    nn.HingeEmbeddingLoss: functools.partial(_elementwise, None),
    nn.KLDivLoss: functools.partial(_elementwise, None),
    nn.MultiLabelSoftMarginLoss: _samplewise,
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _nll,
}
_FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.kl_div: nn.KLDivLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
}
