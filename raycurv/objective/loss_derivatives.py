"""Derivatives of a loss with respect to the outputs: gradient J_L and products with the Hessian H_L, per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossAt:
    """Losses and their derivatives at some outputs.

    Attributes:
        values: loss of each sample, (B,).
        gradient: J_L, the derivative of each sample's loss with respect to its outputs, in the shape of the outputs.
        hessian: function u ↦ H_L·u, sample by sample, in the shape of the outputs.
    """

    values: Tensor
    gradient: Tensor
    hessian: Callable[[Tensor], Tensor]


ClosedForm = Callable[[Tensor, Tensor], LossAt]
CLOSED_FORMS: dict[LossFunction, ClosedForm] = {}


def closed_form(loss: LossFunction) -> Callable[[ClosedForm], ClosedForm]:
    """Register the closed form of a loss: a function of (outputs, targets) that returns its :class:`LossAt`."""

    def add(at: ClosedForm) -> ClosedForm:
        CLOSED_FORMS[loss] = at
        return at

    return add


def by_autograd(loss: LossFunction, outputs: Tensor, targets: Tensor) -> LossAt:
    """Derivatives of any loss: reverse mode for the gradient, and reverse mode again for each Hessian product."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        values = loss(leaf, targets)
        gradient = torch.autograd.grad(values.sum(), leaf, create_graph=True)[0]

    def hessian(u: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(u)
        return torch.autograd.grad(gradient, leaf, u, retain_graph=True, materialize_grads=True)[0]

    return LossAt(values.detach(), gradient.detach(), hessian)


def softmax_hessian(p: Tensor, u: Tensor, dim: int = -1) -> Tensor:
    """(diag(p) − ppᵀ)·u along `dim`: Hessian products of −log softmax for any target."""
    return torch.ops.aten._softmax_backward_data.default(u, p, dim, p.dtype)
