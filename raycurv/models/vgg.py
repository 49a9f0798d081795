"""VGG for images of 32 pixels (Simonyan and Zisserman, 2015), as RED trains it on CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from torch import nn

from raycurv.models.layers import activation_layer, check_classes, flat_features, image_shape, scaled

SMALLEST = 32  # pixels: five poolings halve the image
# Convolutions of each of the five stages, which end with pooling.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


def vgg(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    depth: int = 11,
    activation: str = "softplus5",
    batch_norm: bool = True,
    width: float = 1.0,
) -> nn.Sequential:
    """VGG11 or VGG19 of RED's CIFAR experiments (appendix B, Table 3), by default with Softplus of β = 5.

    3×3 convolutions, 2×2 max-pooling after each of the five stages, and one linear layer: the usual form for images of
    32 pixels, where the two hidden fully connected layers of the ImageNet network would see a single position. RED does
    not print its form; that it has batch normalisation follows from appendix C.3.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width), at least 32 pixels on a side.
        depth: 11, 13, 16 or 19, counting the layers of the ImageNet network.
        activation: activation after every convolution: tanh, relu, sigmoid, softplus, softplus5, elu, gelu or silu.
        batch_norm: normalise before every activation; the convolution below then has no bias.
        width: factor of all channels.

    Raises:
        ValueError: the depth is unknown, the image is too small, or the width leaves a layer empty.
    """
    check_classes(num_classes)
    size, _, _ = image_shape(input_shape, "vgg", SMALLEST)
    if depth not in STAGES:
        raise ValueError(f"depth is {depth}; it must be one of {', '.join(map(str, STAGES))}")
    layers: list[nn.Module] = []
    for convolutions, channels in zip(STAGES[depth], scaled(CHANNELS, width), strict=True):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(size, channels, kernel_size=3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(activation_layer(activation))
            size = channels
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(flat_features(nn.Sequential(*layers), input_shape), num_classes))
