"""Losses per sample as functions of the outputs: the named ones, torch's loss modules, and functions.

Cross-entropy and squared error have closed forms (CurveBall, section 2.3), as have most of torch's modules
(:mod:`~raycurv.objective.torch_losses`). Others are registered by :func:`closed_form`. Any other function of (outputs,
targets) that returns one value per sample is differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from raycurv.arguments import unknown
from raycurv.objective.loss_derivatives import (
    CLOSED_FORMS,
    LossAt,
    LossFunction,
    by_autograd,
    closed_form,
    softmax_hessian,
)
from raycurv.objective.torch_losses import per_sample

PADDING = 0  # word number of padding, which no loss counts


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(outputs)[target] for outputs (B, C) and class indices (B,), shape (B,).

    Raises:
        ValueError: other shapes.
    """
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1]:
        raise ValueError(
            f"cross_entropy takes outputs (B, C) and class indices (B,), not {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}; torch.nn.CrossEntropyLoss() takes outputs (B, C, …) and indices (B, …), and a "
            "function may return one loss per sample from any shapes"
        )
    return F.cross_entropy(outputs, targets, reduction="none")


@closed_form(cross_entropy)
def _cross_entropy_at(outputs: Tensor, targets: Tensor) -> LossAt:
    values = cross_entropy(outputs, targets)
    p = torch.softmax(outputs, 1)
    gradient = p.scatter_add(1, targets[:, None], torch.full_like(p[:, :1], -1.0))
    return LossAt(values, gradient, lambda u: softmax_hessian(p, u))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Σ (outputs − targets)² over everything but the first dimension, shape (B,).

    Raises:
        ValueError: the shapes differ.
    """
    _require_one_shape("squared_error", outputs, targets)
    return (outputs - targets).square().flatten(1).sum(1)


@closed_form(squared_error)
def _squared_error_at(outputs: Tensor, targets: Tensor) -> LossAt:
    values = squared_error(outputs, targets)
    return LossAt(values, 2 * (outputs - targets), lambda u: 2 * u)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of (outputs − targets)² over everything but the first dimension, shape (B,).

    Raises:
        ValueError: the shapes differ.
    """
    _require_one_shape("mean_squared_error", outputs, targets)
    return (outputs - targets).square().flatten(1).mean(1)


def _require_one_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"{name} takes targets in the shape of the outputs, not {tuple(targets.shape)} for {tuple(outputs.shape)}"
        )


def word_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of −log p(word) over the words of each sentence, shape (B,).

    With :func:`word_counts` as weights, the objective is the mean over all words of the batch, as is usual in
    translation.

    Args:
        outputs: scores (B, T, words).
        targets: word numbers (B, T); 0 is padding, which does not count.

    Raises:
        ValueError: other shapes.
    """
    if outputs.dim() != 3 or targets.shape != outputs.shape[:2]:
        raise ValueError(
            f"word_cross_entropy takes scores (B, T, words) and word numbers (B, T), not {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="none")
    return losses.view_as(targets).sum(1) / word_counts(targets).clamp(min=1)


@closed_form(word_cross_entropy)
def _word_cross_entropy_at(outputs: Tensor, targets: Tensor) -> LossAt:
    values = word_cross_entropy(outputs, targets)
    share = ((targets != PADDING) / word_counts(targets).clamp(min=1)[:, None]).to(outputs.dtype)[..., None]
    p = torch.softmax(outputs, -1)
    gradient = p.scatter_add(-1, targets[..., None], torch.full_like(share, -1.0)).mul_(share)
    return LossAt(values, gradient, lambda u: softmax_hessian(p, u).mul_(share))


def word_counts(targets: Tensor) -> Tensor:
    """Number of words of each sentence, (B,): its weight in the objective and in evaluation.

    Args:
        targets: word numbers (B, T); 0 is padding.
    """
    return (targets != PADDING).sum(1)


NAMED: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "squared_error": squared_error}


class Loss:
    """A loss by name, a loss module of torch, or a function of (outputs, targets) that returns shape (B,).

    Args:
        loss: ``"cross_entropy"``, ``"squared_error"``, a module such as ``torch.nn.CrossEntropyLoss()``
            (:mod:`~raycurv.objective.torch_losses` lists them), or a function. CurveBall needs a loss that is convex in
            the outputs.

    Attributes:
        function: the argument `loss`.
        name: name of the loss, for messages.
        weights: function of the targets: weight (B,) that the loss gives to each sample; None is 1 for all.

    Raises:
        ValueError: an unknown name, or a module of torch that is not a mean over samples.
        TypeError: neither a name nor a function.
    """

    def __init__(self, loss: str | LossFunction) -> None:
        if isinstance(loss, str) and loss not in NAMED:
            raise ValueError(f"{unknown('loss', loss, NAMED)}; or a module of torch, or a function returning (B,)")
        if isinstance(loss, type):
            raise TypeError(f"loss is the class {loss.__name__}; pass an instance: {loss.__name__}()")
        if not isinstance(loss, str) and not callable(loss):
            raise TypeError(
                f"loss must be a name, a loss module of torch or a function of (outputs, targets), not "
                f"{type(loss).__name__}"
            )
        self.function = loss
        self.name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        translated = None if isinstance(loss, str) else per_sample(loss)
        self.weights: Callable[[Tensor], Tensor] | None = None
        if translated is None:
            self._values = NAMED[loss] if isinstance(loss, str) else loss
            at = CLOSED_FORMS.get(self._values)
        else:
            self._values, at, self.weights = translated.values, translated.at, translated.weights
        self._at = at or partial(by_autograd, self._values)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One loss per sample, (B,), in float32 or float64.

        Raises:
            ValueError: the loss returns another shape.
        """
        return self._checked(self._values(_wide(outputs), targets), targets)

    @torch.no_grad()
    def at(self, outputs: Tensor, targets: Tensor) -> LossAt:
        """Values, gradient and Hessian products at these outputs, in float32 or float64.

        Raises:
            ValueError: the loss returns another shape than (B,).
        """
        found = self._at(_wide(outputs.detach()), targets)
        self._checked(found.values, targets)
        return found

    def sample_weights(self, targets: Tensor, weights: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Weight of each sample, (B,) float64: the loss's own times those of the function `weights`.

        Raises:
            ValueError: ``weights(targets)`` has another shape.
        """
        samples = len(targets)
        total = torch.ones(samples, dtype=torch.float64, device=targets.device)
        if weights is not None:
            total = weights(targets)
            if total.shape != (samples,):
                raise ValueError(f"weights(targets) must have shape ({samples},), not {tuple(total.shape)}")
        return total.double() if self.weights is None else total.double() * self.weights(targets)

    def _checked(self, values: Tensor, targets: Tensor) -> Tensor:
        samples = len(targets)
        if not isinstance(values, Tensor) or values.shape != (samples,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"loss {self.name!r} must return one value per sample, shape ({samples},), not {shape}; "
                "reduction='none' and a sum or mean over the other dimensions is what most losses need, and a module "
                "such as torch.nn.CrossEntropyLoss() may be given as it is"
            )
        return values


def _wide(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype in (torch.float32, torch.float64) else outputs.float()
