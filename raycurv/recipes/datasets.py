"""Sizes of the papers' data sets, and a data component at a scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raycurv.data import Data, locate, parquet_images
from raycurv.recipes.scale import Scale
from raycurv.train.configuration import Component, Setting

MNIST, CIFAR, IMAGENET, IMAGENET_100, MULTI30K, BOSTON = 60_000, 50_000, 1_281_167, 128_117, 29_000, 400
RANDOM_CLASSES = 100  # classes of ImageNet-100


def data_component(
    data: str,
    scale: Scale,
    samples: int,
    batch_size: int,
    *,
    reader: Callable[..., Data] = parquet_images,
    settings: Mapping[str, Setting] | None = None,
) -> Component:
    """A data set, cut to the scale's fraction of its `samples`.

    Args:
        data: folder, ``s3://`` or ``gs://`` address, or a name in RAYCURV_DATA.
        scale: scale of the run.
        samples: number of samples in the whole training set.
        batch_size: smallest number of samples to keep.
        reader: function that opens the data set.
        settings: further arguments of the reader.

    Raises:
        ValueError: less than a batch is left, or there is nothing at `data`.
    """
    kept = scale.rows(samples, batch_size)
    cut: dict[str, Setting] = {} if kept is None else {"max_rows": kept}
    return Component.of(reader, path=locate(data), **cut, **(settings or {}))


def photograph_settings(image_size: int, augmentation: str = "resize_crop_flip") -> dict[str, Setting]:
    """Settings of an image set whose pictures differ in size: colour, cut at random, `image_size` pixels a side."""
    return {"image_size": image_size, "augmentation": augmentation, "channels": 3}
