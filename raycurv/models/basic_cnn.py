"""The five-layer convolutional network of CurveBall's CIFAR-10 experiments."""

from __future__ import annotations

from torch import nn

from raycurv.models.layers import check_classes, image_shape, scaled

CHANNELS = (32, 32, 64, 64)  # the fifth convolution has one channel per class
POOLED = 3  # the first three convolutions are followed by pooling


def basic_cnn(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    batch_norm: bool = False,
    width: float = 1.0,
) -> nn.Sequential:
    """CurveBall's "basic CNN" (footnote 5): 5×5 filters and ReLU, 3×3 max-pooling of stride 2 after the first three.

    The paper leaves the padding open. Here convolutions keep the size (padding 2), pooling halves it rounded up
    (padding 1), and the scores of the last convolution, which has no activation, are averaged over the image, so any
    image size works.

    Args:
        num_classes: channels of the last convolution.
        input_shape: shape of one image (channels, height, width).
        batch_norm: whether to normalise between convolution and ReLU in all layers but the last; these
            convolutions then have no bias.
        width: factor of the channels of the four hidden layers.

    Raises:
        ValueError: the width leaves a layer without channels.
    """
    check_classes(num_classes)
    channels, _, _ = image_shape(input_shape, "basic_cnn")
    hidden = scaled(CHANNELS, width)
    layers: list[nn.Module] = []
    for index, size in enumerate(hidden):
        layers.append(nn.Conv2d(channels, size, kernel_size=5, padding=2, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(size))
        layers.append(nn.ReLU())
        if index < POOLED:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        channels = size
    layers.append(nn.Conv2d(channels, num_classes, kernel_size=5, padding=2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
