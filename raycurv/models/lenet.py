"""LeNet-5 and its variants: convolutions with pooling, then fully connected layers."""

from __future__ import annotations

from torch import nn

from raycurv.models.layers import activation_layer, check_classes, check_dropout, flat_features, image_shape


def lenet(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    channels: tuple[int, ...] = (6, 16),
    widths: tuple[int, ...] = (120, 84),
    activation: str = "relu",
    padding: int = 0,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """LeNet (LeCun et al., 1998): 5×5 convolutions with 2×2 max-pooling, then fully connected layers.

    The defaults are the network of "Learning the learning rate" (section 4): two convolutions and three fully
    connected layers; its section 4.2.3 adds dropout after the hidden ones. SALERA's M4b is in
    :mod:`raycurv.models.salera_networks`.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width).
        channels: output channels of the convolutions.
        widths: units of the fully connected hidden layers.
        activation: activation after every hidden layer: tanh, relu, sigmoid, softplus, softplus5, elu, gelu or silu.
        padding: padding of the convolutions; 2 keeps the size, as images under 16 pixels need.
        batch_norm: normalise before every activation; the layer below then has no bias.
        dropout: probability of dropping a unit of the fully connected hidden layers; 0 for none.

    Raises:
        ValueError: the image is too small for the convolutions.
    """
    check_classes(num_classes)
    check_dropout(dropout)
    size, height, width = image_shape(input_shape, "lenet")
    for _ in channels:
        height, width = (height + 2 * padding - 4) // 2, (width + 2 * padding - 4) // 2
    if min(height, width) < 1:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}, too small for {len(channels)} convolutions of 5 × 5 with padding "
            f"{padding} and pooling: use padding=2 or fewer convolutions"
        )
    features: list[nn.Module] = []
    for channel in channels:
        features.append(nn.Conv2d(size, channel, kernel_size=5, padding=padding, bias=not batch_norm))
        if batch_norm:
            features.append(nn.BatchNorm2d(channel))
        features += [activation_layer(activation), nn.MaxPool2d(2)]
        size = channel
    features.append(nn.Flatten())
    size = flat_features(nn.Sequential(*features), input_shape)
    classifier: list[nn.Module] = []
    for units in widths:
        classifier.append(nn.Linear(size, units, bias=not batch_norm))
        if batch_norm:
            classifier.append(nn.BatchNorm1d(units))
        classifier.append(activation_layer(activation))
        if dropout:
            classifier.append(nn.Dropout(dropout))
        size = units
    return nn.Sequential(*features, *classifier, nn.Linear(size, num_classes))
