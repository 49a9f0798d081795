"""Image sets whose target is the image itself, for autoencoders."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from raycurv.data.order import Rows
from raycurv.data.parquet import ParquetImages, parquet_images
from raycurv.data.source import Data


class Reconstruction:
    """An image set with flattened images in [0, 1] as targets, and the same as inputs.

    Args:
        images: images to reconstruct.

    Attributes:
        classes: None, since the targets are no classes.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, images: ParquetImages) -> None:
        self.images = images
        self.input_shape, self.row_groups, self.in_memory = images.input_shape, images.row_groups, images.in_memory
        self.streams, self.window = images.streams, images.window

    @property
    def skipped(self) -> int:
        """Corrupt images and shards left out so far."""
        return self.images.skipped

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, group: int) -> None:
        """Read a row group and hold it."""
        self.images.fetch(group)

    def release(self, group: int) -> None:
        """Release the memory of a row group."""
        self.images.release(group)

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The images `rows` as (B, C, H, W) in float32, and flattened as (B, C·H·W)."""
        pixels, _ = self.images.read(rows, seed=seed, epoch=epoch, training=training)
        images = self.images.convert(pixels, torch.float32)
        return images, images.flatten(1)

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs in the dtype of the run."""
        return inputs.to(dtype)


def reconstructions(path: str | os.PathLike[str], **settings: Any) -> Data:
    """As :func:`raycurv.data.parquet_images`, with the images in [0, 1] as inputs and as targets.

    Args:
        path: a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``, or a name in the folder RAYCURV_DATA.
        **settings: of :func:`~raycurv.data.parquet_images`.

    Raises:
        DataError: an argument out of bounds, or data that cannot be used.
    """
    zeros, ones = ([value] * settings.get("channels", 1) for value in (0.0, 1.0))
    data = parquet_images(path, **{"channels": 1, "mean": zeros, "std": ones, **settings})
    assert isinstance(data.train, ParquetImages)
    held_out = data.evaluation
    return Data(Reconstruction(data.train), Reconstruction(held_out) if isinstance(held_out, ParquetImages) else None)
