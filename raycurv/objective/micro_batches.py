"""A batch answered part by part: micro-batches that fit in memory, or samples for the curvature and the others."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raycurv.objective.direction import Direction
from raycurv.objective.linearisation import Linearisation

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch


def micro_batches(batch: Batch, size: int) -> list[int]:
    """Sizes of a worker's micro-batches; as many on every worker, because they synchronise batch normalisation.

    Agreeing on the number reads one tensor from the device where there are several workers.
    """
    collectives = batch.objective.collectives
    count = max(1, math.ceil(batch.samples / size))
    if collectives.size > 1:
        counts = torch.zeros(collectives.size, dtype=torch.float64, device=batch.objective.device)
        counts[collectives.rank] = count
        count = int(collectives.sum(counts).max())
    return [max(0, min(size, batch.samples - size * index)) for index in range(count)]


def split(batch: Batch, sizes: Sequence[int]) -> None:
    """Divide a batch into parts of these sizes; from now on it is answered by them.

    Raises:
        RuntimeError: it has been asked something as a whole.
    """
    if batch._generators is not None:
        raise RuntimeError("a batch can be divided before its first question only: its dropout mask has been drawn")
    start, part = 0, functools.partial(type(batch), batch.objective, is_part=True)
    for size in sizes:
        cut = slice(start, start + size)
        batch.parts.append(part(pytree.tree_map(operator.itemgetter(cut), batch.inputs), batch.targets[cut]))
        start += size
    # Parts without a sample hold a blank one of weight 0, which is a row like the others.
    batch.empty = any(part.empty for part in batch.parts)
    batch.targets = torch.cat([part.targets for part in batch.parts])
    batch.sample_weights = torch.cat([part.sample_weights for part in batch.parts])


def curvature_samples(batch: Batch, fraction: float) -> int:
    """How many leading parts hold this fraction of the samples; divides the batch where it is not yet.

    Raises:
        ValueError: `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; it must be in (0, 1]")
    if batch.objective.micro_batch is not None:
        return max(1, math.ceil(fraction * len(batch.parts)))
    if not batch.parts:
        curved = math.ceil(fraction * batch.samples)
        sizes = [curved, batch.samples - curved]
        # Several workers go through the same passes, with blank samples where one has none.
        split(batch, sizes if batch.objective.collectives.size > 1 else [size for size in sizes if size])
    return len(batch.parts) if fraction == 1 else 1


@torch.no_grad()
def summed_gradient(batch: Batch) -> tuple[Tensor, Direction]:
    """Loss and gradient without the L2 term, one part after the other; one gradient-sized all-reduce at the end."""
    losses, pulled = [], []
    for part in batch.parts:
        linear = part._alone(record=False)
        losses.append(linear.loss_sum())
        pulled.append(linear.pull_here(linear.gradient))
        pulled = [_sum(pulled)]
    return batch._means(torch.stack(losses).sum())[0], global_mean(batch, pulled[0])


def global_mean(batch: Batch, total: Direction) -> Direction:
    """A sum over this worker's samples to the weighted mean over all workers', in one all-reduce; may be in place."""
    weight = batch.sample_weights.sum().to(total.flat.dtype)
    if batch.objective.collectives.size == 1:
        total.flat.div_(weight)
        return total
    carried = batch.objective.collectives.sum(torch.cat([total.flat, weight.view(1)]))
    return Direction(carried[:-1] / carried[-1], total)


class MicroBatchedLinearisation(Linearisation):
    """The linearisation of a divided batch. Tangents are those of the leading parts, and 0 for the others.

    Of micro-batches nothing is kept: each question computes their forward passes again. The two parts of a batch
    divided for its curvature are kept.

    Args:
        batch: divided.
        curved: number of leading parts whose tangents are wanted.
        direction: a first direction to push, or None.
        record: False if nothing will be pushed later.

    Attributes:
        partial: tangents are those of a part of the samples. Products with H_L count these samples for all;
            the slope along a direction is to be taken from the gradient, which is of all samples.
    """

    def __init__(
        self, batch: Batch, curved: int, direction: Sequence[Tensor] | None = None, *, record: bool = True
    ) -> None:
        keep = batch.objective.micro_batch is None
        self._parts, self._kept = batch.parts, list[Linearisation | None]()
        outputs, tangents = [], []
        for index, part in enumerate(batch.parts):
            linear = part._alone(record=index < curved and (direction is not None or (keep and record)))
            outputs.append(linear.outputs)
            if direction is not None and index < curved:
                tangents.append(linear.push(direction))
            self._kept.append(linear if keep else None)
        super().__init__(batch, None, torch.cat(outputs), None)
        self._rows, self._curved = [len(out) for out in outputs], curved
        self.partial = curved < len(batch.parts)
        whole, seen = batch.sample_weights.sum(), batch.sample_weights[: sum(self._rows[:curved])].sum()
        self._scale = torch.where(seen > 0, whole / seen, 0.0)
        if direction is not None:
            self.tangent = self._whole(tangents)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L·u for a `u` made of tangents."""
        product = super().hessian(u)
        return product * self._scale.to(product.dtype) if self.partial else product

    def pull(self, cotangent: Tensor, *, keep: bool = False) -> Direction:
        """J_φ·u / Σw over all parts and workers: the only gradient-sized all-reduce."""
        pulled: list[Direction] = []
        for index, piece in enumerate(cotangent.split(self._rows)):
            pulled.append(self._linear(index, record=False).pull_here(piece, keep=keep))
            pulled = [_sum(pulled)]
        return global_mean(self.batch, pulled[0])

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """The tangent of this worker's outputs along `direction`, 0 for samples whose tangents are not wanted."""
        return self._whole([self._linear(index, record=True).push(direction) for index in range(self._curved)])

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """As for a whole batch; all but the value from the samples whose tangents are wanted, counted for all."""
        sums = [torch.stack(self._sums_of_part(index, direction)) for index in range(self._curved)]
        return [self.loss_sum(), *(torch.stack(sums).sum(0)[1:] * self._scale)]

    def _sums_of_part(self, index: int, direction: Sequence[Tensor]) -> list[Tensor]:
        kept = self._kept[index]
        at_once = self.batch.objective.direction(direction)
        return self._parts[index]._taylor_sums(at_once, None) if kept is None else kept.taylor_sums(direction)

    def _linear(self, index: int, *, record: bool) -> Linearisation:
        kept = self._kept[index]
        return self._parts[index]._alone(record=record) if kept is None else kept

    def _whole(self, tangents: list[Tensor]) -> Tensor:
        rest = self._at.gradient[sum(self._rows[: self._curved]) :]
        return torch.cat([*tangents, torch.zeros_like(rest)])


def _sum(directions: list[Direction]) -> Direction:
    """The first direction plus the others, in its place."""
    for other in directions[1:]:
        directions[0].flat.add_(other.flat)
    return directions[0]
