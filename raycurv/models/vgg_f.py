"""VGG-f, the fast network of Chatfield et al. (2014), "Return of the devil in the details", Table 1 (CNN-F)."""

from __future__ import annotations

from torch import nn

from raycurv.models.layers import check_classes, check_dropout, flat_features, image_shape, scaled

SMALLEST = 39  # pixels: below, the third pooling has nothing left to pool


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _normalisation(on: bool) -> list[nn.Module]:
    # AlexNet's local response normalisation over 5 channels, with the constants of the authors' MatConvNet models.
    return [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)] if on else []


def vgg_f(
    num_classes: int = 1000,
    input_shape: tuple[int, ...] = (3, 224, 224),
    local_response_norm: bool = True,
    dropout: float = 0.5,
    width: float = 1.0,
) -> nn.Sequential:
    """VGG-f of CurveBall's ImageNet experiments: five convolutions, three fully connected layers.

    Poolings are 3×3 of stride 2 and round up, as in the authors' released models (the paper's table says "×2"), so that
    224 pixels give the fully connected layers 6 × 6 × 256 numbers. Other image sizes are possible: the first fully
    connected layer adapts. Weights start as torch draws them, not from the paper's fixed Gaussian.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width), at least 39 pixels on a side.
        local_response_norm: normalise across channels after the first two convolutions, as in the paper.
        dropout: probability of dropping a unit of the two hidden fully connected layers; 0 for none.
        width: factor of all hidden layers' sizes.

    Raises:
        ValueError: `dropout` is no probability, or the width leaves a layer empty.
    """
    check_classes(num_classes)
    channels, _, _ = image_shape(input_shape, "vgg_f", SMALLEST)
    check_dropout(dropout)
    first, others, full = scaled((64, 256, 4096), width)
    features = nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=11, stride=4),
        nn.ReLU(),
        *_normalisation(local_response_norm),
        _pool(),
        nn.Conv2d(first, others, kernel_size=5, padding=2),
        nn.ReLU(),
        *_normalisation(local_response_norm),
        _pool(),
        nn.Conv2d(others, others, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(others, others, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(others, others, kernel_size=3, padding=1),
        nn.ReLU(),
        _pool(),
        nn.Flatten(),
    )
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        *features,
        nn.Linear(flat_features(features, input_shape), full),
        nn.ReLU(),
        *drop,
        nn.Linear(full, full),
        nn.ReLU(),
        *[nn.Dropout(dropout) for _ in drop],
        nn.Linear(full, num_classes),
    )
