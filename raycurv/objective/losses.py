"""Losses of single samples as functions of the outputs: value, gradient J_L and Hessian products H_L·u.

Cross-entropy and squared error carry closed forms (CurveBall, section 2.3), others get theirs by :func:`closed_form`.
Any other function of (outputs, targets) that returns one value per sample is differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]
PADDING = 0  # word number of padding, which no loss counts


@dataclass(frozen=True)
class LossAt:
    """The losses at some outputs.

    Attributes:
        values: (B,), one loss per sample.
        gradient: J_L, the derivative of each sample's loss by its outputs, in the shape of the outputs.
        hessian: u ↦ H_L·u, sample by sample, in the shape of the outputs.
    """

    values: Tensor
    gradient: Tensor
    hessian: Callable[[Tensor], Tensor]


ClosedForm = Callable[[Tensor, Tensor], LossAt]
_CLOSED: dict[LossFunction, ClosedForm] = {}


def closed_form(loss: LossFunction) -> Callable[[ClosedForm], ClosedForm]:
    """Decorate the closed form of a loss: the function of (outputs, targets) that returns its :class:`LossAt`."""

    def add(at: ClosedForm) -> ClosedForm:
        _CLOSED[loss] = at
        return at

    return add


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(outputs)[target] for outputs (B, C) and class indices (B,), shape (B,).

    Raises:
        ValueError: other shapes.
    """
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1]:
        raise ValueError(
            f"cross_entropy takes outputs (B, C) and class indices (B,), not {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}; for other shapes give a function that returns one loss per sample"
        )
    return F.cross_entropy(outputs, targets, reduction="none")


@closed_form(cross_entropy)
def _cross_entropy_at(outputs: Tensor, targets: Tensor) -> LossAt:
    values = cross_entropy(outputs, targets)
    p = torch.softmax(outputs, 1)
    gradient = p.scatter_add(1, targets[:, None], torch.full_like(p[:, :1], -1.0))
    return LossAt(values, gradient, lambda u: softmax_hessian(p, u))


def softmax_hessian(p: Tensor, u: Tensor) -> Tensor:
    """(diag(p) − ppᵀ)·u over the last dimension: Hessian products of −log softmax, whatever the target."""
    weighted = p * u
    return weighted.addcmul_(p, weighted.sum(-1, keepdim=True), value=-1)


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
    """A loss by name, or a function of (outputs, targets) that returns shape (B,).

    Args:
        loss: ``"cross_entropy"``, ``"squared_error"`` or a function. For CurveBall it must be convex in the outputs.

    Attributes:
        function: what it was made of, a name or a function.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a function.
    """

    def __init__(self, loss: str | LossFunction) -> None:
        if isinstance(loss, str) and loss not in NAMED:
            raise ValueError(f"loss {loss!r} is unknown; it is one of {', '.join(NAMED)} or a function returning (B,)")
        if not isinstance(loss, str) and not callable(loss):
            raise TypeError(f"loss must be a name or a function of (outputs, targets), not {type(loss).__name__}")
        self.function = loss
        self.name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        self._values = NAMED[loss] if isinstance(loss, str) else loss
        self._at = _CLOSED.get(self._values) or partial(_generic_at, self._values)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One loss per sample, (B,), in float32 or wider."""
        return self._checked(self._values(_wide(outputs), targets), targets)

    @torch.no_grad()
    def at(self, outputs: Tensor, targets: Tensor) -> LossAt:
        """Values, gradient and Hessian products at these outputs, in float32 or wider."""
        found = self._at(_wide(outputs.detach()), targets)
        self._checked(found.values, targets)
        return found

    def _checked(self, values: Tensor, targets: Tensor) -> Tensor:
        samples = len(targets)
        if not isinstance(values, Tensor) or values.shape != (samples,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"loss {self.name!r} must return one value per sample, shape ({samples},), not {shape}; "
                "reduction='none' and a sum over the other dimensions is what most losses need"
            )
        return values


def _generic_at(loss: LossFunction, outputs: Tensor, targets: Tensor) -> LossAt:
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        values = loss(leaf, targets)
        gradient = torch.autograd.grad(values.sum(), leaf, create_graph=True)[0]

    def hessian(u: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(u)
        return torch.autograd.grad(gradient, leaf, u, retain_graph=True)[0]

    return LossAt(values.detach(), gradient.detach(), hessian)


def _wide(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype in (torch.float32, torch.float64) else outputs.float()
