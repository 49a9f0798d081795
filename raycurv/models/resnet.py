"""Residual networks (He et al., 2016), built on torchvision's."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from raycurv.arguments import require
from raycurv.models.layers import check_classes, check_dropout, image_shape, scaled

Stem = Literal["small", "large"]


def resnet18(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    dropout: float = 0.0,
    stem: Stem = "small",
    width: float = 1.0,
    dropout_layers: int = 1,
) -> nn.Module:
    """ResNet-18 of CurveBall's CIFAR-10 experiments (Table 2, in brackets: with dropout of rate 0.3), and of LLR's.

    torchvision's network with two changes: the small stem that is usual for 32-pixel images (one 3×3 convolution, no
    pooling), and activations that do not overwrite their input. CurveBall's paper does not say where its dropout is;
    here it is in front of the classifier. LLR's has two layers of dropout in places that it does not name; here the
    second one is in front of the last stage.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width).
        dropout: probability of dropping a feature.
        stem: ``"small"`` for images up to about 64 pixels, ``"large"`` for ImageNet's (7×7 of stride 2, pooling).
        width: factor of all channels.
        dropout_layers: 1 for dropout in front of the classifier, 2 for one in front of the last stage too.

    Raises:
        ValueError: `dropout` is no probability, `dropout_layers` is neither 1 nor 2, `stem` is unknown, or the width
            leaves a layer empty.
    """
    require("resnet18: dropout_layers", dropout_layers, dropout_layers in (1, 2), "1 or 2")
    network: Any = _resnet("BasicBlock", (2, 2, 2, 2), num_classes, input_shape, dropout, stem, width)
    if dropout and dropout_layers == 2:
        network.layer3.append(nn.Dropout(dropout))
    return network


def resnet50(
    num_classes: int = 1000,
    input_shape: tuple[int, ...] = (3, 224, 224),
    dropout: float = 0.0,
    stem: Stem = "large",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-50 of NTLR's ImageNet experiment (section 3, figure 4): torchvision's.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width).
        dropout: probability of dropping a feature in front of the classifier.
        stem: ``"large"`` for ImageNet's images (7×7 of stride 2, pooling), ``"small"`` for those up to about 64 pixels.
        width: factor of all channels.

    Raises:
        ValueError: `dropout` is no probability, `stem` is unknown, or the width leaves a layer empty.
    """
    return _resnet("Bottleneck", (3, 4, 6, 3), num_classes, input_shape, dropout, stem, width)


def _resnet(
    block: str,
    layers: tuple[int, ...],
    num_classes: int,
    input_shape: tuple[int, ...],
    dropout: float,
    stem: Stem,
    width: float,
) -> nn.Module:
    check_classes(num_classes)
    channels, _, _ = image_shape(input_shape, "resnet")
    check_dropout(dropout)
    if stem not in ("small", "large"):
        raise ValueError(f"stem is {stem!r}; it must be 'small' or 'large'")
    # Here, not above: torchvision is an extra, and slow to import for those who use another network.
    from torchvision.models import resnet

    planes = dict(zip((64, 128, 256, 512), scaled((64, 128, 256, 512), width), strict=True))

    class Scaled(resnet.ResNet):
        def _make_layer(self, block: Any, size: int, *args: Any, **options: Any) -> nn.Sequential:
            if size == 64:
                self.inplanes = planes[64]  # channels of the stem, which is replaced below
            return super()._make_layer(block, planes[size], *args, **options)

    network = Scaled(getattr(resnet, block), list(layers), num_classes=num_classes)
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, planes[64], kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3 or width != 1:
        network.conv1 = nn.Conv2d(channels, planes[64], kernel_size=7, stride=2, padding=3, bias=False)
    if stem == "small" or channels != 3 or width != 1:
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    if width != 1:
        network.bn1 = nn.BatchNorm2d(planes[64])
        network.fc = nn.Linear(network.inplanes, num_classes)
    if dropout:
        network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network
