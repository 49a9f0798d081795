"""What several families share: activations by name, checks of shapes, and the size of a flattened feature map."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
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
    """Check that a sample is an image (channels, height, width) that the network is able to take.

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


def flat_features(features: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Numbers per sample that `features` puts out, found without computing anything (torch's meta device)."""
    shapes_only = copy.deepcopy(features).to("meta").eval()
    with torch.no_grad():
        return math.prod(shapes_only(torch.empty(1, *input_shape, device="meta")).shape[1:])
