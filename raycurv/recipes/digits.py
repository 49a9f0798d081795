"""A run that takes seconds: scikit-learn's handwritten digits, and a small convolutional network."""

from __future__ import annotations

from raycurv.models.basic_cnn import basic_cnn
from raycurv.recipes.datasets import data_component
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig

SAMPLES = 1437


@experiment("raycurv", "make demo", "digits", "basic CNN + BN, half width", epochs=8, samples=SAMPLES, gflop=0.000426)
def digits(data: str = "digits", width: float = 0.5, batch_norm: bool = True, scale: Scaling = 1.0) -> RunConfig:
    """1,797 images of 8 × 8 pixels, for trying things out.

    Args:
        data: folder of the set as :mod:`raycurv.data.digits` writes it, or a name in RAYCURV_DATA.
        width: factor of the network's channels, beside that of `scale`.
        batch_norm: normalise after every convolution but the last.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("digits"),
        model=Component.of(basic_cnn, width=width * size.width, batch_norm=batch_norm),
        data=data_component(data, size, SAMPLES, 64, settings={"channels": 1}),
        optimizer="curveball",
        batch_size=64,
        epochs=size.passes(8),
        log_every=5,
        checkpoint_every=50,
    )
