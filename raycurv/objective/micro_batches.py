"""Batches in several forward passes: micro-batches that fit in memory, or curvature from some of the samples."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raycurv.arguments import require
from raycurv.objective.direction import Direction
from raycurv.objective.linearisation import Linearisation

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch


def micro_batch_sizes(batch: Batch, size: int) -> list[int]:
    """Sizes of this worker's micro-batches, `size` samples at most each.

    Every worker has the same number of them, because they synchronise batch normalisation. With several workers, this
    reads one tensor from the device.
    """
    collectives = batch.objective.collectives
    count = max(1, math.ceil(batch.samples / size))
    if collectives.size > 1:
        counts = torch.zeros(collectives.size, dtype=torch.float64, device=batch.objective.device)
        counts[collectives.rank] = count
        count = int(collectives.sum(counts).max())
    return [max(0, min(size, batch.samples - size * index)) for index in range(count)]


def divide(batch: Batch, sizes: Sequence[int]) -> None:
    """Divide a batch into micro-batches of these sizes, which answer all its questions from now on.

    Raises:
        RuntimeError: the undivided batch has been asked before.
    """
    if batch.asked:
        raise RuntimeError("a batch can be divided before its first question only: its dropout mask has been drawn")
    start, micro_batch = 0, functools.partial(type(batch), batch.objective, is_micro_batch=True)
    for size in sizes:
        rows = slice(start, start + size)
        inputs = pytree.tree_map(operator.itemgetter(rows), batch.inputs)
        batch.micro_batches.append(micro_batch(inputs, batch.targets[rows]))
        start += size
    # An empty micro-batch holds a blank sample of weight 0, which is a row of the whole batch too.
    batch.empty = any(micro_batch.empty for micro_batch in batch.micro_batches)
    batch.targets = torch.cat([micro_batch.targets for micro_batch in batch.micro_batches])
    batch.sample_weights = torch.cat([micro_batch.sample_weights for micro_batch in batch.micro_batches])


def divide_for_curvature(batch: Batch, fraction: float) -> int:
    """Number of leading micro-batches that hold this fraction of the samples; divides the batch if it is undivided.

    Raises:
        ValueError: `fraction` is not in (0, 1].
    """
    require("fraction", fraction, 0 < fraction <= 1, "in (0, 1]")
    if batch.objective.micro_batch is not None:
        return max(1, math.ceil(fraction * len(batch.micro_batches)))
    if not batch.micro_batches:
        count = math.ceil(fraction * batch.samples)
        sizes = [count, batch.samples - count]
        # Several workers run the same passes, with a blank sample where one of them has none.
        divide(batch, sizes if batch.objective.collectives.size > 1 else [size for size in sizes if size])
    return len(batch.micro_batches) if fraction == 1 else 1


@torch.no_grad()
def summed_gradient(batch: Batch) -> tuple[Tensor, Direction]:
    """Loss and gradient without the L2 term, one micro-batch at a time, with one sum over the workers."""
    losses, total = [], None
    for micro_batch in batch.micro_batches:
        linear = micro_batch.local_linearisation(record=False)
        losses.append(linear.loss_sum())
        total = _add(total, linear.pull_local(linear.gradient))
    loss, gradient = _global_means(batch, torch.stack(losses).sum(), total)
    return loss, batch.watched(gradient)


class MicroBatchedLinearisation(Linearisation):
    """The linearisation of a divided batch: tangents of its leading micro-batches, 0 for the others.

    With `micro_batch`, activations are not kept: every question repeats the forward passes. The two micro-batches of a
    batch that is divided for its curvature keep theirs.

    Args:
        batch: the divided batch.
        curved: number of leading micro-batches whose tangents are wanted.
        direction: a first direction to push, or None.
        record: False if nothing will be pushed later.

    Attributes:
        partial: whether tangents cover only some of the samples. Products with H_L are then scaled up to the weight of
            all samples. Take the slope along a direction from the gradient, which is that of all samples.
    """

    def __init__(
        self, batch: Batch, curved: int, direction: Sequence[Tensor] | None = None, *, record: bool = True
    ) -> None:
        keep = batch.objective.micro_batch is None
        self._linearisations = list[Linearisation | None]()
        outputs, tangents = [], []
        for index, micro_batch in enumerate(batch.micro_batches):
            recorded = index < curved and (direction is not None or (keep and record))
            linear = micro_batch.local_linearisation(record=recorded)
            outputs.append(linear.outputs)
            if direction is not None and index < curved:
                tangents.append(linear.push(direction))
            self._linearisations.append(linear if keep else None)
        super().__init__(batch, torch.cat(outputs))
        self._sizes, self._curved = [len(out) for out in outputs], curved
        self.partial = curved < len(batch.micro_batches)
        all_weights = batch.sample_weights.sum()
        curved_weights = batch.sample_weights[: sum(self._sizes[:curved])].sum()
        self._scale = torch.where(curved_weights > 0, all_weights / curved_weights, 0.0)
        if direction is not None:
            self.tangent = self._padded(tangents)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L·u for a `u` made of tangents, (B, …)."""
        product = super().hessian(u)
        return product * self._scale.to(product.dtype) if self.partial else product

    def pull(self, cotangent: Tensor, *, keep: bool = False) -> Direction:
        """J_φ·u / Σw over all micro-batches and workers, with one sum over the workers."""
        total = None
        for index, part in enumerate(cotangent.split(self._sizes)):
            total = _add(total, self._linearisation(index, record=False).pull_local(part, keep=keep))
        self._loss, gradient = _global_means(self.batch, self.loss_sum(), total)
        return self.batch.watched(gradient)

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """The tangent of this worker's outputs along `direction`, (B, …), 0 for samples without tangents."""
        return self._padded([self._linearisation(i, record=True).push(direction) for i in range(self._curved)])

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Sums over this worker's samples; all but the value are scaled up from the samples with tangents."""
        sums = [torch.stack(self._micro_batch_sums(index, direction)) for index in range(self._curved)]
        return [self.loss_sum(), *(torch.stack(sums).sum(0)[1:] * self._scale)]

    def _micro_batch_sums(self, index: int, direction: Sequence[Tensor]) -> list[Tensor]:
        linear, d = self._linearisations[index], self.batch.objective.direction(direction)
        return self.batch.micro_batches[index].taylor_sums(d, None) if linear is None else linear.taylor_sums(d)

    def _linearisation(self, index: int, *, record: bool) -> Linearisation:
        kept = self._linearisations[index]
        return self.batch.micro_batches[index].local_linearisation(record=record) if kept is None else kept

    def _padded(self, tangents: list[Tensor]) -> Tensor:
        rest = self._at.gradient[sum(self._sizes[: self._curved]) :]
        return torch.cat([*tangents, torch.zeros_like(rest)])


def _add(total: Direction | None, other: Direction) -> Direction:
    """The sum, in the memory of `total`."""
    if total is None:
        return other
    total.flat.add_(other.flat)
    return total


def _global_means(batch: Batch, loss_sum: Tensor, total: Direction | None) -> tuple[Tensor, Direction]:
    """Loss and gradient from Σw·ℓ and J_φ·u of this worker, with one sum over the workers."""
    assert total is not None  # a divided batch has at least one micro-batch
    if batch.objective.collectives.size == 1:
        return batch.means(loss_sum)[0], Direction(batch.global_mean(total.flat), total)
    means = batch.global_mean(torch.cat([total.flat, loss_sum.view(1).to(total.flat.dtype)]))
    return means[-1].double(), Direction(means[:-1], total)
