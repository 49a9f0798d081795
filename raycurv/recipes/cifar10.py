"""CurveBall's experiments on CIFAR-10 (section 4, figure 2, table 2)."""

from __future__ import annotations

from raycurv.data import locate, parquet_images
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.resnet import resnet18
from raycurv.train.config import Component, RunConfig


def cifar10_basic_cnn(data: str = "cifar10", batch_norm: bool = False, augment: bool = False) -> RunConfig:
    """The basic CNN of footnote 5, mini-batches of 128.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        batch_norm: normalise after every convolution but the last.
        augment: crop and flip training images, which the paper's training errors are measured without.
    """
    return RunConfig(
        name="cifar10-basic-cnn-bn" if batch_norm else "cifar10-basic-cnn",
        model=Component.of(basic_cnn, batch_norm=batch_norm),
        data=_images(data, augment),
        batch_size=128,
        epochs=20,
    )


def cifar10_resnet18(data: str = "cifar10", augment: bool = False) -> RunConfig:
    """ResNet-18, mini-batches of 128.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        augment: crop and flip training images.
    """
    return RunConfig(
        name="cifar10-resnet18",
        model=Component.of(resnet18),
        data=_images(data, augment),
        batch_size=128,
        epochs=20,
    )


def _images(data: str, augment: bool) -> Component:
    return Component.of(parquet_images, path=locate(data), augmentation="crop_flip" if augment else "none")
