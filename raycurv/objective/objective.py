"""A model, a loss and an L2 term as one function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raycurv.objective.batch import Batch
from raycurv.objective.checks import Covers, covered_by, trainable
from raycurv.objective.collectives import Collectives, Local
from raycurv.objective.direction import Direction
from raycurv.objective.forward import ForwardModule
from raycurv.objective.losses import Loss, LossFunction


class Objective:
    """A model, a loss per sample and an L2 term.

    Args:
        model: called as ``model(inputs)``; returns one tensor whose first dimension is the batch.
        loss: ``"cross_entropy"``, ``"squared_error"``, or a function of (outputs, targets) returning (B,).
        l2: factor of ½‖Θ‖².
        weights: ``weights(targets)`` (B,) for samples that count differently.
        collectives: how numbers become global; one process by default.
        l2_covers: which parameters the L2 term covers: ``"all"`` (the papers'), ``"weights"`` (two or more
            dimensions, so neither biases nor the scales of normalisations), or a function of (name, parameter).
        micro_batch: None, or how many samples of a worker's share are computed at once. Every answer is then a sum over
            such micro-batches and nothing is kept between questions, for networks whose batch does not fit in memory:
            CurveBall takes 3.0 and RED 2.7 times the operations of an SGD step. Equal to the whole batch's answer, but
            that batch normalisation takes each micro-batch's statistics, and running statistics move once for each.

    Attributes:
        parameters: the trainable parameters, in the order of ``model.parameters()``; directions follow it.

    Raises:
        TypeError: `model` is no module, or a trainable parameter is not real and floating.
        ValueError: no trainable parameter, parameters of several devices or dtypes, or a bad `l2` or `micro_batch`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        l2: float = 0.0,
        *,
        weights: Callable[[Tensor], Tensor] | None = None,
        collectives: Collectives | None = None,
        l2_covers: Covers = "all",
        micro_batch: int | None = None,
    ) -> None:
        self.model = model
        self.loss = Loss(loss)
        named = trainable(model)
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        if not 0 <= l2 < float("inf"):
            raise ValueError(f"l2 is {l2!r}; it must be a finite number of at least 0")
        if micro_batch is not None and not (isinstance(micro_batch, int) and micro_batch >= 1):
            raise ValueError(f"micro_batch is {micro_batch!r}; it must be None or a whole number of at least 1")
        self.l2, self.micro_batch = l2, micro_batch
        self.covered = [covered_by(l2_covers, name, parameter) for name, parameter in named]
        self.weights = weights
        self.collectives: Collectives = collectives if collectives is not None else Local()
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self._traced = ForwardModule(model, self)
        self._wrapped: nn.Module | None = None
        self.unused_parameters = False

    def batch(self, inputs: Any, targets: Tensor) -> Batch:
        """This worker's share of one global batch.

        Args:
            inputs: a tensor or any pytree of tensors, (B, …) each.
            targets: (B, …). B may be 0 where there are several workers.

        Raises:
            TypeError: `targets` or a leaf of `inputs` is no tensor.
            ValueError: the first dimensions differ, or a single worker has no sample.
        """
        return Batch(self, inputs, targets)

    def direction(self, tensors: Iterable[Tensor | None]) -> Direction:
        """Tensors in the order of the parameters as one direction; None is zero."""
        return Direction.of(tensors, self.parameters)

    def l2_gradient(self, at: Sequence[Tensor]) -> Direction:
        """The gradient of the L2 term at these values, which is also its Hessian times them: l2·Θ where covered."""
        masked = [x if covered else None for x, covered in zip(at, self.covered, strict=True)]
        return Direction.of(masked, self.parameters).scaled(self.l2)

    @torch.no_grad()
    def l2_value(self, at: Sequence[Tensor]) -> Tensor:
        """l2/2·‖Θ‖² at these values, 0-d float64."""
        if self.l2 == 0:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        norms = torch._foreach_norm([x for x, covered in zip(at, self.covered, strict=True) if covered])
        return 0.5 * self.l2 * torch.stack(norms).double().square().sum()

    def _distributed(self, batch: Batch) -> nn.Module:
        """The traced model in DDP, made at the first batch, when it is known which parameters the model uses."""
        if self._wrapped is None:
            if self.collectives.size == 1:
                self._wrapped = self._traced
            else:
                # The workers must agree, or they would wait for different all-reduces.
                found = torch.tensor(float(batch._has_unused_parameters()), device=self.device)
                self.unused_parameters = bool(self.collectives.sum(found) > 0)
                self._wrapped = self.collectives.wrap(self._traced, find_unused_parameters=self.unused_parameters)
        return self._wrapped
