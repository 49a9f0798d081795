"""Image sets as plain arrays, which several processes of a machine can map instead of decoding each for itself."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycurv.data import image_transforms
from raycurv.data.order import Rows
from raycurv.data.parquet import ImageSettings, ParquetImages
from raycurv.data.source import Data, Source


class DecodedImages:
    """A Parquet image set, decoded: gives the same batches.

    Args:
        pixels: (N, H, W, C); may be read-only memory that others map, too.
        labels: (N,).
        classes: their names.
        picture: form of every image as an input.
    """

    in_memory = True
    skipped = 0

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: tuple[str, ...] | None,
        picture: ImageSettings,
    ) -> None:
        self.pixels, self.labels, self.classes, self.picture = pixels, labels, classes, picture
        self.input_shape: tuple[int, ...] = (picture.channels, *picture.size)
        self.row_groups: tuple[int, ...] = (len(pixels),)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The images `rows` as (B, C, H, W) uint8 (in memory (B, H, W, C)), and their labels."""
        batch = torch.from_numpy(self.pixels[rows])
        if training:
            batch = self.picture.augmented(batch, image_transforms.sample_keys(seed, epoch, rows))
        return batch.permute(0, 3, 1, 2), torch.from_numpy(self.labels[rows])

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Scaled to [0, 1], less the mean, divided by the standard deviation; (B, C, H, W)."""
        return self.picture.converted(inputs, dtype)


def decoded(data: Data) -> Data | None:
    """The data with their images decoded, or None if they cannot be held so."""
    train = _decoded(data.train)
    held_out = None if data.evaluation is None else _decoded(data.evaluation)
    if train is None or (held_out is None and data.evaluation is not None):
        return None
    return Data(train, held_out)


def _decoded(source: Source) -> Source | None:
    if not isinstance(source, ParquetImages):
        return None
    found = source.decoded()
    return None if found is None else DecodedImages(*found, source.classes, source.picture)
