"""Fine-tuning in seconds: a network that has learned six handwritten digits learns the other four.

Train :func:`digits_first_six`, then :func:`digits_last_four` with ``--start-from`` its checkpoints. The last layer has
another size there and is drawn anew.
"""

from __future__ import annotations

from raycurv.models.resnet import resnet18
from raycurv.recipes.datasets import data_component
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig

FIRST, LAST = ("0", "1", "2", "3", "4", "5"), ("6", "7", "8", "9")
FIRST_SAMPLES, LAST_SAMPLES = 880, 557  # of scikit-learn's digits
_NETWORK = "ResNet-18, quarter width"


@experiment("raycurv", "fine-tuning", "digits", _NETWORK, epochs=8, samples=FIRST_SAMPLES, gflop=0.00435)
def digits_first_six(data: str = "digits", width: float = 0.25, scale: Scaling = 1.0) -> RunConfig:
    """The digits 0 to 5: weights to start from.

    Args:
        data: digits as the recipe `digits` takes them, or MNIST.
        width: factor of the network's channels, beside that of `scale`.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    return _digits("digits-first-six", FIRST, FIRST_SAMPLES, 8, data, width, Scale.of(scale))


@experiment("raycurv", "fine-tuning", "digits", _NETWORK, epochs=2, samples=LAST_SAMPLES, gflop=0.00435)
def digits_last_four(data: str = "digits", width: float = 0.25, scale: Scaling = 1.0) -> RunConfig:
    """The digits 6 to 9 in two epochs: with ``--start-from``, a run that is fine-tuned.

    Args:
        data: digits as the recipe `digits` takes them, or MNIST.
        width: factor of the network's channels, beside that of `scale`.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    return _digits("digits-last-four", LAST, LAST_SAMPLES, 2, data, width, Scale.of(scale))


def _digits(
    name: str, classes: tuple[str, ...], samples: int, epochs: int, data: str, width: float, size: Scale
) -> RunConfig:
    return RunConfig(
        name=size.named(name),
        model=Component.of(resnet18, width=width * size.width),
        data=data_component(data, size, samples, 64, settings={"channels": 1, "classes": classes}),
        batch_size=64,
        epochs=size.passes(epochs),
        log_every=5,
        checkpoint_every=50,
    )
