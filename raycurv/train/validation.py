"""A part of the training set that is held out, for optimizers that learn from a validation batch at every step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raycurv.data import Loader, Source
from raycurv.data.order import Rows
from raycurv.train.random_state import derive


class SourceSubset:
    """Some rows of a set in memory.

    Args:
        source: the whole set.
        rows: those of the part, (N,).
        training: whether they are augmented as training samples are.
    """

    in_memory = True

    def __init__(self, source: Source, rows: Rows, *, training: bool) -> None:
        self._source, self._rows, self._training = source, rows, training
        self.classes, self.input_shape = source.classes, source.input_shape
        self.row_groups: tuple[int, ...] = (len(rows),)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def skipped(self) -> int:
        """Corrupt samples of the whole set left out so far."""
        return self._source.skipped

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The samples `rows` of the part."""
        return self._source.read(self._rows[rows], seed=seed, epoch=epoch, training=training and self._training)

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs as the network takes them."""
        return self._source.convert(inputs, dtype)


def split_validation(source: Source, share: float, seed: int) -> tuple[Source, Source | None]:
    """The set without a share drawn by the seed, and this share; the whole set and None where the share is 0.

    Raises:
        ValueError: the set is streamed, or one of the two would be empty.
    """
    if share == 0:
        return source, None
    if not source.in_memory:
        raise ValueError(f"RunConfig.validation is {share}, but the set does not fit in memory: raise its memory_limit")
    order = np.random.default_rng(derive(seed, "validation")).permutation(len(source))
    number = round(share * len(source))
    if not 0 < number < len(source):
        raise ValueError(f"RunConfig.validation is {share}, which holds out {number} of {len(source)} samples")
    kept, held = np.sort(order[number:]), np.sort(order[:number])
    return SourceSubset(source, kept, training=True), SourceSubset(source, held, training=False)


class ValidationBatches:
    """Batches of the held-out part, one a step, round and round; the batch of a step depends on its number alone.

    Args:
        loader: of the part.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._next = -1

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, counted from 0."""
        if step != self._next:
            self._batches = iter(())
        self._next = step + 1
        found = next(self._batches, None)
        if found is None:
            epoch, start = divmod(step, self._loader.steps_per_epoch)
            self._batches = iter(self._loader.epoch(epoch, start))
            found = next(self._batches)
        return found
