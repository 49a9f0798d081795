"""Curvature from the first samples of a batch in the forward pass of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raycurv.arguments import require
from raycurv.curvature import UnsupportedOperator
from raycurv.curvature.row_tape import RowTape
from raycurv.objective.linearisation import Linearisation

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch


def row_tape(batch: Batch, fraction: float) -> RowTape | None:
    """A tape for the first samples of a batch, or None if these must have a forward pass of their own.

    One pass is possible on one worker and without compilation, if all operators of the model work on each sample alone
    and have a rule in :mod:`raycurv.curvature.row_tape`. A rehearsal of the first batch of each kind finds that out.

    Args:
        batch: a batch.
        fraction: fraction of the samples that the curvature is taken from.

    Raises:
        ValueError: `fraction` is not in (0, 1].
    """
    require("fraction", fraction, 0 < fraction <= 1, "in (0, 1]")
    objective, rows = batch.objective, math.ceil(fraction * batch.samples)
    alone = objective.collectives.size == 1 and objective.compiled_steps is None and objective.micro_batch is None
    whole = batch.asked and not batch.in_one_pass
    if not alone or whole or batch.micro_batches or rows == batch.samples:
        return None
    inputs = pytree.tree_leaves(batch.inputs)
    kind = (objective.model.training, *((x.shape, x.dtype) for x in inputs))
    known = objective.works_by_rows
    if kind not in known:
        tape = RowTape(objective.parameters, inputs, rows, batch.samples)
        with objective.uncounted(), batch.rehearsal(), torch.enable_grad():
            try:
                batch.outputs(tape=tape)
                known[kind] = tape.unknown is None
            except UnsupportedOperator:
                known[kind] = False
    batch.in_one_pass = known[kind]
    return RowTape(objective.parameters, inputs, rows, batch.samples) if known[kind] else None


class PartialLinearisation(Linearisation):
    """The linearisation of an undivided batch: tangents of its first samples, 0 for the others.

    Products with H_L are scaled up to the weight of all samples. Take the slope along a direction from the gradient,
    which is that of all samples.

    Args:
        batch: the batch.
        outputs: outputs of the model, with their graph.
        tape: tape that has recorded the forward pass.
    """

    partial = True

    def __init__(self, batch: Batch, outputs: Tensor, tape: RowTape) -> None:
        super().__init__(batch, outputs)
        self._rows = rows = tape.rows
        inputs = pytree.tree_map(lambda x: x[:rows], batch.inputs)
        part = batch.part_of_same_pass(inputs, batch.targets[:rows])
        known = tape.unknown is None
        self._part = Linearisation(part, outputs[:rows], tape) if known else part.local_linearisation(record=True)
        weights, curved = batch.sample_weights.sum(), part.sample_weights.sum()
        self._scale = torch.where(curved > 0, weights / curved, 0.0)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L·u for a `u` made of tangents, (B, …)."""
        product = self._part.hessian(u[: self._rows])
        return self._padded(product * self._scale.to(product.dtype))

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """The tangent of this worker's outputs along `direction`, (B, …), 0 for samples without tangents."""
        return self._padded(self._part.push(direction))

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ over this worker's outputs, 0-d float64, where `u` or `v` is made of tangents."""
        return super().inner(u[: self._rows], v[: self._rows])

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Sums over this worker's samples; all but the value are scaled up from the samples with tangents."""
        sums = torch.stack(self._part.taylor_sums(direction))
        return [self.loss_sum(), *(sums[1:] * self._scale)]

    def _padded(self, tangent: Tensor) -> Tensor:
        gradient = self._at.gradient
        return torch.cat([tangent, gradient.new_zeros((len(gradient) - len(tangent), *gradient.shape[1:]))])
