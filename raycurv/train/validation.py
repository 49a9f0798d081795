"""Parts of the training set: one held out for optimizers that use a validation batch, and one that is measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raycurv.data import Loader, Source
from raycurv.data.order import Rows
from raycurv.train.random_state import derive_seed


class SourceSubset:
    """Some rows of a set in memory.

    Args:
        source: the whole set.
        rows: row numbers of the subset, (N,).
        training: whether the subset is augmented when it is read for training.
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
        """Number of corrupt samples of the whole set left out so far."""
        return self._source.skipped

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """Read the samples `rows` of the subset."""
        return self._source.read(self._rows[rows], seed=seed, epoch=epoch, training=training and self._training)

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert inputs to what the network takes."""
        return self._source.convert(inputs, dtype)


def split_validation(source: Source, fraction: float, seed: int) -> tuple[Source, Source | None]:
    """Split a random validation set off a training set.

    Args:
        source: the training set.
        fraction: fraction of its samples in the validation set.
        seed: seed of the draw.

    Returns:
        The remaining training set and the validation set; the whole set and None where `fraction` is 0.

    Raises:
        ValueError: the set is streamed, or one of the two would be empty.
    """
    if fraction == 0:
        return source, None
    if not source.in_memory:
        raise ValueError(
            f"RunConfig.validation is {fraction}, but the set does not fit in memory: raise its memory_limit"
        )
    order = np.random.default_rng(derive_seed(seed, "validation")).permutation(len(source))
    number = round(fraction * len(source))
    if not 0 < number < len(source):
        raise ValueError(f"RunConfig.validation is {fraction}, which holds out {number} of {len(source)} samples")
    remaining, validation = np.sort(order[number:]), np.sort(order[:number])
    return SourceSubset(source, remaining, training=True), SourceSubset(source, validation, training=False)


def first_samples(source: Source, number: int | None) -> Source:
    """The first `number` samples of a training set, without augmentation; the whole set where `number` is None.

    Raises:
        ValueError: the set is streamed.
    """
    if number is None:
        return source
    if not source.in_memory:
        raise ValueError(
            f"RunConfig.evaluate_training_samples is {number}, but the set does not fit in memory: raise its "
            "memory_limit"
        )
    return SourceSubset(source, np.arange(min(number, len(source))), training=False)


class ValidationBatches:
    """Batches of the validation set, one per step, epoch after epoch; the batch of a step depends on its number alone.

    Args:
        loader: loader of the validation set.
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
