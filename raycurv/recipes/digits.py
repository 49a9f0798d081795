"""A run that takes seconds: scikit-learn's handwritten digits, and a small convolutional network."""

from __future__ import annotations

from raycurv.data import locate, parquet_images
from raycurv.models.basic_cnn import basic_cnn
from raycurv.train.config import Component, RunConfig


def digits(data: str = "digits", width: float = 0.5, batch_norm: bool = True) -> RunConfig:
    """1,797 images of 8 × 8 pixels, for trying things out.

    Args:
        data: folder of the set as :mod:`raycurv.data.digits` writes it, or a name in RAYCURV_DATA.
        width: factor of the network's channels.
        batch_norm: normalise after every convolution but the last.
    """
    return RunConfig(
        name="digits",
        model=Component.of(basic_cnn, width=width, batch_norm=batch_norm),
        data=Component.of(parquet_images, path=locate(data), channels=1),
        batch_size=64,
        epochs=8,
        log_every=5,
        checkpoint_every=50,
    )
