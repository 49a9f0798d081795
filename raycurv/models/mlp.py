"""Fully connected networks."""

from __future__ import annotations

import math

from torch import nn

from raycurv.models.layers import activation_layer, check_classes


def mlp(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (1, 28, 28),
    widths: tuple[int, ...] = (128, 64, 32),
    activation: str = "tanh",
    batch_norm: bool = False,
) -> nn.Sequential:
    """A multi-layer perceptron; by default the tanh network 128-64-32-10 of CurveBall's MNIST experiment (section 4).

    Other papers' networks by their widths: linear and logistic regression are ``widths=()``, RED's dense LeNet is
    ``(300, 100)``, NTLR's MNIST network ``(1000,)``; SALERA's are in :mod:`raycurv.models.salera_networks`.

    Args:
        num_classes: outputs.
        input_shape: shape of one sample, which is flattened.
        widths: units of the hidden layers, from the input on; empty for a linear model.
        activation: activation after every hidden layer: tanh, relu, sigmoid, softplus, softplus5, elu, gelu or silu.
        batch_norm: normalise before every activation; the linear layer below then has no bias.

    Raises:
        ValueError: a width is not positive.
    """
    check_classes(num_classes)
    if any(width < 1 for width in widths):
        raise ValueError(f"widths is {tuple(widths)}; every hidden layer must have at least 1 unit")
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(input_shape)
    for width in widths:
        layers.append(nn.Linear(size, width, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(activation_layer(activation))
        size = width
    return nn.Sequential(*layers, nn.Linear(size, num_classes))
