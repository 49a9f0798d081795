"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from raycurv.arguments import unknown
from raycurv.models.layers import activation_layer, check_classes

Initialisation = Literal["torch", "sparse"]
_CONNECTIONS = 15  # non-zero incoming weights of a unit in the sparse initialisation


def mlp(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (1, 28, 28),
    widths: tuple[int, ...] = (128, 64, 32),
    activation: str = "tanh",
    batch_norm: bool = False,
    initialisation: Initialisation = "torch",
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
        initialisation: ``"torch"``, or ``"sparse"`` for :func:`initialise_sparsely`.

    Raises:
        ValueError: a width is not positive, or the initialisation is unknown.
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
    network = nn.Sequential(*layers, nn.Linear(size, num_classes))
    if initialisation == "sparse":
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        initialise_sparsely(linear, [activation == "tanh"] * len(widths) + [False])
    elif initialisation != "torch":
        raise ValueError(unknown("initialisation", initialisation, get_args(Initialisation)))
    return network


@torch.no_grad()
def initialise_sparsely(layers: Sequence[nn.Linear], tanh: Sequence[bool]) -> None:
    """Draw the weights of a network anew, so that each unit has 15 incoming connections.

    *Deep learning via Hessian-free optimization* (Martens 2010), which Martens and Grosse (2015) use for K-FAC: the
    weights of these connections are from N(0, 1), all others 0, and biases are 0. As in the authors' public code, the
    deviation is halved for tanh units and halved again above tanh units, and biases of tanh units are ½: tanh units
    then begin as the logistic units of the paper do. The 15 inputs of a unit are distinct; the code draws them with
    repetition.

    Args:
        layers: linear layers in the order of the forward pass.
        tanh: whether the units of each layer are tanh units.
    """
    for index, (layer, is_tanh) in enumerate(zip(layers, tanh, strict=True)):
        deviation = 0.5 ** (is_tanh + (index > 0 and tanh[index - 1]))
        count = min(_CONNECTIONS, layer.in_features)
        layer.weight.zero_()
        for row in layer.weight:
            row[torch.randperm(layer.in_features)[:count]] = deviation * torch.randn(count)
        if layer.bias is not None:
            layer.bias.fill_(0.5 if is_tanh else 0.0)
