"""What a data set must offer, and the two kinds that need no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from raycurv.data.errors import DataError
from raycurv.data.order import Rows


@runtime_checkable
class Source(Protocol):
    """One split of a data set.

    Attributes:
        classes: the names of the classes; None where the targets are not classes.
        input_shape: the shape of one converted sample, for example ``(3, 32, 32)``.
        row_groups: rows of each row group in stored order; one entry for a set without row groups.
        in_memory: True: visited by one permutation; False: by streams of row groups (then a :class:`StreamedSource`).
        skipped: corrupt samples and shards left out so far.
    """

    classes: tuple[str, ...] | None
    input_shape: tuple[int, ...]
    row_groups: tuple[int, ...]
    in_memory: bool

    @property
    def skipped(self) -> int:
        """Corrupt samples and shards left out so far."""

    def __len__(self) -> int: ...

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The samples `rows` on the CPU, in that order, and the same for the same (seed, epoch, row).

        Called from several threads at once. Without `training` nothing is augmented. Corrupt samples may be left out.
        """

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs as the network takes them, computed on the device where `inputs` lie."""


@runtime_checkable
class StreamedSource(Source, Protocol):
    """A set that does not fit in memory: row groups are fetched before they are read, and released after.

    Attributes:
        streams: number of streams of :class:`raycurv.data.order.Streams`.
        window: row groups that are shuffled together.
    """

    streams: int
    window: int

    def fetch(self, group: int) -> None:
        """Read a row group and hold it. Called from several threads at once."""

    def release(self, group: int) -> None:
        """Release the memory of a row group."""


@dataclass(frozen=True)
class Data:
    """What a run learns from, and what it is evaluated on.

    Attributes:
        train: the training set.
        evaluation: the evaluation set; None where there is none.
    """

    train: Source
    evaluation: Source | None = None


class TensorSource:
    """Samples that are tensors already.

    Floating inputs are cast to the dtype of the run, bytes are also scaled to [0, 1], and other whole numbers (token
    ids) stay as they are.

    Args:
        inputs: (N, ...).
        targets: (N, ...); class numbers (N,) with `classes`.
        classes: the names of the classes.

    Raises:
        DataError: the lengths differ, there are no samples, or a target is not one of `classes`.
    """

    in_memory = True
    skipped = 0

    def __init__(self, inputs: Tensor, targets: Tensor, classes: Sequence[str] | None = None) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise DataError(f"{len(inputs)} inputs and {len(targets)} targets; there must be as many, and at least one")
        self.classes: tuple[str, ...] | None = None if classes is None else tuple(classes)
        if self.classes is not None:
            outside = torch.nonzero((targets < 0) | (targets >= len(self.classes)))
            if len(outside):
                row = tuple(outside[0].tolist())
                raise DataError(
                    f"row {row[0]} has the label {targets[row].item()}; {len(self.classes)} classes allow 0 to "
                    f"{len(self.classes) - 1}"
                )
        self.inputs, self.targets = inputs.cpu(), targets.cpu()
        self.input_shape: tuple[int, ...] = tuple(inputs.shape[1:])
        self.row_groups: tuple[int, ...] = (len(inputs),)

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The samples `rows`; never augmented."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        return self.inputs[index], self.targets[index]

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs as the network takes them."""
        return converted(inputs, dtype)


def converted(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating inputs in `dtype`, bytes scaled to [0, 1], other whole numbers as they are."""
    if inputs.dtype == torch.uint8:
        return inputs.to(dtype) / 255
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def tensors(
    inputs: Tensor,
    targets: Tensor,
    *,
    evaluation: tuple[Tensor, Tensor] | None = None,
    classes: Sequence[str] | None = None,
) -> Data:
    """A data set out of tensors: `evaluation` holds the inputs and targets of the evaluation set."""
    held_out = None if evaluation is None else TensorSource(*evaluation, classes=classes)
    return Data(TensorSource(inputs, targets, classes), held_out)
