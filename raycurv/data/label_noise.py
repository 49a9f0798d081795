"""Image sets with wrong labels in a share of the training set."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycurv.data.errors import DataError
from raycurv.data.order import Rows, hash64, uniform
from raycurv.data.parquet import parquet_images
from raycurv.data.source import Data, Source


class NoisyLabels:
    """A set in memory whose labels are drawn anew, evenly over all classes, in a share of its rows.

    A row keeps its drawn label in every epoch. The drawn label may be the right one.

    Args:
        source: set with classes.
        share: share of the rows whose label is drawn.
        seed: seed of the draw.

    Raises:
        DataError: the targets are not classes, or the set is streamed.
    """

    in_memory = True

    def __init__(self, source: Source, share: float, seed: int) -> None:
        classes = source.classes
        if classes is None:
            raise DataError("label noise needs a set whose targets are classes")
        if not source.in_memory:
            raise DataError("label noise needs a set that fits in memory: raise its memory_limit")
        self.classes: tuple[str, ...] | None = classes
        self._source, self.input_shape = source, source.input_shape
        self.row_groups = source.row_groups
        draws = uniform(hash64(seed, np.arange(len(source)))[:, None], np.arange(2))
        self._noisy = torch.from_numpy(draws[:, 0] < share)
        self._drawn = torch.from_numpy((draws[:, 1] * len(classes)).astype(np.int64))

    def __len__(self) -> int:
        return len(self._source)

    @property
    def skipped(self) -> int:
        """Corrupt samples left out so far."""
        return self._source.skipped

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """Read the samples `rows`.

        Raises:
            DataError: a sample is corrupt, so that labels and rows no longer correspond.
        """
        inputs, labels = self._source.read(rows, seed=seed, epoch=epoch, training=training)
        if len(labels) != len(rows):
            raise DataError(f"{len(rows) - len(labels)} of {len(rows)} samples are corrupt: label noise needs all rows")
        index = torch.from_numpy(np.ascontiguousarray(rows))
        return inputs, torch.where(self._noisy[index], self._drawn[index], labels)

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert inputs to what the network takes."""
        return self._source.convert(inputs, dtype)


def noisy_images(path: str | os.PathLike[str], *, share: float, noise_seed: int = 0, **settings: Any) -> Data:
    """As :func:`raycurv.data.parquet_images`, with wrong labels in the training set alone.

    Args:
        path: a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``, or a name in the folder RAYCURV_DATA.
        share: share of the training labels that are drawn anew, from 0 to 1.
        noise_seed: seed of the draw; the same for every seed of a run.
        **settings: of :func:`~raycurv.data.parquet_images`.

    Raises:
        DataError: an argument out of bounds, or data that cannot be used.
    """
    if not 0 <= share <= 1:
        raise DataError(f"share is {share}; it must be from 0 to 1")
    data = parquet_images(path, **settings)
    return Data(NoisyLabels(data.train, share, noise_seed), data.evaluation)
