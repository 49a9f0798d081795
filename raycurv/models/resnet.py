"""Residual networks (He et al., 2016), built on torchvision's."""

from __future__ import annotations

from typing import Literal

from torch import nn

from raycurv.models.layers import check_classes, image_shape


def resnet18(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    dropout: float = 0.0,
    stem: Literal["small", "large"] = "small",
) -> nn.Module:
    """ResNet-18 of CurveBall's CIFAR-10 experiments (Table 2, in brackets: with dropout of rate 0.3).

    torchvision's network with two changes: the small stem that is usual for 32-pixel images (one 3×3 convolution, no
    pooling), and activations that do not overwrite their input. The paper does not say where its dropout sits; here it
    is in front of the classifier.

    Args:
        num_classes: outputs.
        input_shape: of one image (channels, height, width).
        dropout: probability of dropping a feature in front of the classifier.
        stem: ``"small"`` for images up to about 64 pixels, ``"large"`` for ImageNet's (7×7 of stride 2, pooling).

    Raises:
        ValueError: `dropout` is no probability, or `stem` is unknown.
    """
    check_classes(num_classes)
    channels, _, _ = image_shape(input_shape, "resnet18")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
    if stem not in ("small", "large"):
        raise ValueError(f"stem is {stem!r}; it must be 'small' or 'large'")
    # Here, not above: torchvision is an extra, and slow to import for those who use another network.
    from torchvision.models import resnet18 as torchvision_resnet18

    network = torchvision_resnet18(num_classes=num_classes)
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    if stem == "small" or channels != 3:
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    if dropout:
        network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network
