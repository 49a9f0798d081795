"""SALERA's four networks (section 3.1); grey images get the sizes for MNIST, others those for CIFAR-10."""

from __future__ import annotations

from torch import nn

from raycurv.models.layers import image_shape, scaled
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp


def m0(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 28, 28)) -> nn.Sequential:
    """M0: softmax regression."""
    return mlp(num_classes, input_shape, widths=())


def m2(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 28, 28), width: float = 1.0) -> nn.Sequential:
    """M2: two hidden layers with ReLU, of 500 and 300 units on MNIST, 1500 and 900 on CIFAR-10, times `width`."""
    return _two_hidden(num_classes, input_shape, width, batch_norm=False)


def m2b(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 28, 28), width: float = 1.0) -> nn.Sequential:
    """M2b: M2 with batch normalisation in each hidden layer."""
    return _two_hidden(num_classes, input_shape, width, batch_norm=True)


def m4b(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 28, 28), width: float = 1.0) -> nn.Sequential:
    """M4b: convolutions of 32 and 64 channels with max-pooling, then two hidden layers of 128 (CIFAR-10: 384) units.

    ReLU and batch normalisation in each layer; filters of 5×5 without padding, as in LeNet5, since the paper leaves
    them open.
    """
    units = 128 if _grey(input_shape, "m4b") else 384
    first, second, hidden = scaled((32, 64, units), width)
    return lenet(num_classes, input_shape, channels=(first, second), widths=(hidden, hidden), batch_norm=True)


def _two_hidden(num_classes: int, input_shape: tuple[int, ...], width: float, *, batch_norm: bool) -> nn.Sequential:
    widths = scaled((500, 300) if _grey(input_shape, "m2") else (1500, 900), width)
    return mlp(num_classes, input_shape, widths=tuple(widths), activation="relu", batch_norm=batch_norm)


def _grey(input_shape: tuple[int, ...], model: str) -> bool:
    return image_shape(input_shape, model)[0] == 1
