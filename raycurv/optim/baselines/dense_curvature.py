"""Curvature as a dense matrix, for tiny networks.

Shared by methods that factorise a matrix of (number of parameters)² entries: the Gauss-Newton matrix from tangents of
the outputs, the exact Hessian from a second backward pass for each parameter. All results are global and float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import has_batch_norm


@dataclass(frozen=True)
class Quadratic:
    """A quadratic model of the objective at the parameters, float64.

    Attributes:
        loss: objective, 0-d.
        gradient: gradient of the objective, (p,).
        matrix: Gauss-Newton matrix or Hessian with the L2 term, (p, p).
    """

    loss: Tensor
    gradient: Tensor
    matrix: Tensor

    def finite(self) -> Tensor:
        """0-d bool: whether every number is finite."""
        return torch.isfinite(self.loss) & torch.isfinite(self.gradient).all() & torch.isfinite(self.matrix).all()


@torch.no_grad()
def gauss_newton(batch: Batch) -> Quadratic:
    """J_φ H_L J_φᵀ and the gradient, from one forward pass and a tangent for each parameter."""
    objective = batch.objective
    linear = batch.linearise()
    identity = torch.eye(_size(objective), dtype=objective.dtype, device=objective.device)
    tangents = [linear.push(Direction(row, objective.parameters)) for row in identity]
    outputs = torch.stack(tangents).flatten(1).double()  # row i: the outputs' derivative by parameter i
    curved = torch.stack([linear.hessian(tangent) for tangent in tangents]).flatten(1).double()
    return _global(batch, linear.means()[0], outputs @ linear.gradient.flatten().double(), outputs @ curved.T)


def hessian(batch: Batch) -> Quadratic:
    """The exact Hessian and the gradient, row by row by plain double backward.

    Vectorising over the rows (``torch.func.jacrev`` twice) gives wrong second derivatives for layer norm in torch 2.14.

    Raises:
        NotImplementedError: batch normalisation on several workers, whose statistics have no second backward pass.
    """
    if batch.objective.collectives.size > 1 and has_batch_norm(batch.objective.model):
        raise NotImplementedError(
            "newton cannot differentiate batch normalisation twice across workers: train on one worker, or use "
            "curveball"
        )
    objective, parameters = batch.objective, batch.objective.parameters
    with torch.enable_grad():
        total = batch.loss_sum(batch.outputs())
        gradient = _flat(torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True), objective)
        rows = [_row(entry, objective) for entry in gradient]
    matrix = torch.stack(rows).double()
    loss = batch.means(total.detach())[0]
    return _global(batch, loss, gradient.detach().double(), (matrix + matrix.T) / 2)


def check_size(name: str, parameters: int, limit: int) -> None:
    """Refuse a network whose dense matrix is too large.

    Raises:
        ValueError: there are more parameters than the limit.
    """
    if parameters > limit:
        raise ValueError(
            f"{name} keeps a dense matrix and takes at most max_parameters={limit} parameters; the model has "
            f"{parameters}, whose matrix would take {parameters**2 * 8 / 2**30:.3g} GiB and a factorisation every "
            "step: use curveball, or raise max_parameters if you mean it"
        )


def move(objective: Objective, step: Tensor) -> None:
    """Θ ← Θ + step."""
    with torch.no_grad():
        torch._foreach_add_(objective.parameters, list(Direction(step.to(objective.dtype), objective.parameters)))


def _global(batch: Batch, loss: Tensor, gradient: Tensor, matrix: Tensor) -> Quadratic:
    """Local weighted sums to global means, in one all-reduce, with the L2 term on top."""
    objective, size = batch.objective, len(gradient)
    means = batch.global_mean(torch.cat([matrix.flatten(), gradient]))
    matrix, gradient = means[: size * size].view(size, size), means[size * size :]
    if objective.l2:
        ones = [torch.ones_like(parameter) for parameter in objective.parameters]
        matrix = matrix + torch.diag(objective.l2_gradient(ones).flat.double())
        gradient = gradient + objective.l2_gradient(objective.parameters).flat.double()
        loss = loss + objective.l2_value(objective.parameters)
    return Quadratic(loss, gradient, matrix)


def _row(entry: Tensor, objective: Objective) -> Tensor:
    if not entry.requires_grad:
        return torch.zeros(_size(objective), dtype=objective.dtype, device=objective.device)
    second = torch.autograd.grad(entry, objective.parameters, retain_graph=True, allow_unused=True)
    return _flat(second, objective)


def _flat(tensors: tuple[Tensor | None, ...], objective: Objective) -> Tensor:
    pairs = zip(tensors, objective.parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in pairs])


def _size(objective: Objective) -> int:
    return sum(parameter.numel() for parameter in objective.parameters)
