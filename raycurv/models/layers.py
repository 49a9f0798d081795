"""Helpers of several families: activations by name, checks of shapes, and the size of a flattened feature map."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softplus5": functools.partial(nn.Softplus, beta=5.0),  # RED's smooth stand-in for ReLU
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation_layer(name: str) -> nn.Module:
    """A fresh activation module.

    Raises:
        ValueError: there is no activation of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; it must be one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]()


def image_shape(input_shape: tuple[int, ...], model: str, smallest: int = 1) -> tuple[int, int, int]:
    """Check that a sample is an image (channels, height, width) that the network accepts.

    Raises:
        ValueError: it is no image, or it is too small.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape is {tuple(input_shape)}; {model} takes images (channels, height, width)")
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}; {model} needs images of at least {smallest} × {smallest} pixels: "
            "enlarge them, or take a smaller network such as basic_cnn"
        )
    return channels, height, width


def check_classes(num_classes: int) -> None:
    """Refuse a network without outputs.

    Raises:
        ValueError: fewer than one class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1")


def check_dropout(dropout: float) -> None:
    """Refuse a value that is no probability of dropping a unit.

    Raises:
        ValueError: `dropout` is below 0, or at least 1.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")


def scaled(sizes: Sequence[int], width: float) -> list[int]:
    """Sizes of layers times `width`, rounded.

    Raises:
        ValueError: a layer would be left without units.
    """
    found = [round(width * size) for size in sizes]
    if min(found, default=1) < 1:
        raise ValueError(f"width is {width}; it must leave at least one of {min(sizes)} channels, such as 0.25")
    return found


def flat_features(features: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Number of output features per sample of `features`, found on torch's meta device without computation."""
    shapes_only = copy.deepcopy(features).to("meta").eval()
    with torch.no_grad():
        return math.prod(shapes_only(torch.empty(1, *input_shape, device="meta")).shape[1:])
