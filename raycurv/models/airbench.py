"""A network like airbench94's for CIFAR-10 (Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycurv.models.layers import check_classes, image_shape, scaled

CHANNELS = (64, 256, 256)
WHITENED = 24  # channels of the first layer: twice the 2·2·3 numbers of a patch
OUTPUT_SCALE = 1 / 9


class _Scaled(nn.Module):
    """The input times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def airbench(num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32), width: float = 1.0) -> nn.Sequential:
    """A 2×2 convolution, three blocks of two 3×3 convolutions, and a linear layer; 1.97 million parameters.

    As in airbench94: GELU, batch normalisation without a scale, pooling after the first convolution of a block,
    convolutions that begin as the identity of their first channels, outputs divided by 9. Otherwise here:

    - The first layer is trained like all others. There, it whitens patches of the training set and stays fixed.
    - Running statistics have torch's momentum of 0.1.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width), of at least 31 pixels a side.
        width: factor of the channels of the blocks.

    Raises:
        ValueError: the images are too small, or the width leaves a layer without channels.
    """
    check_classes(num_classes)
    channels, _, _ = image_shape(input_shape, "airbench", smallest=31)
    layers: list[nn.Module] = [nn.Conv2d(channels, WHITENED, kernel_size=2), nn.GELU()]
    channels = WHITENED
    for size in scaled(CHANNELS, width):
        layers += [_convolution(channels, size), nn.MaxPool2d(2), _norm(size), nn.GELU()]
        layers += [_convolution(size, size), _norm(size), nn.GELU()]
        channels = size
    head = nn.Linear(channels, num_classes, bias=False)
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), head, _Scaled(OUTPUT_SCALE))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[: min(inputs, outputs)])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    layer.weight.requires_grad_(False)
    return layer
