"""Random convolutional networks (CurveBall, section 4 and appendix B.3): seed → specification → module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from raycurv.models.layers import check_classes, image_shape, scaled


@dataclass(frozen=True)
class RandomCnn:
    """Architecture drawn from a seed.

    Attributes:
        channels: channels of all convolutions but the last, which has one channel per class.
        pooled: whether pooling follows, for each of these convolutions.
    """

    channels: tuple[int, ...]
    pooled: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.pooled):
            raise ValueError(
                f"RandomCnn.pooled has {len(self.pooled)} entries; it must have one for each of the "
                f"{len(self.channels)} channels"
            )
        if any(channel < 1 for channel in self.channels):
            raise ValueError(f"RandomCnn.channels is {self.channels}; every layer must have at least 1 channel")

    def build(self, num_classes: int, input_shape: tuple[int, ...]) -> nn.Sequential:
        """Build the module, with weights from torch's global generator."""
        check_classes(num_classes)
        size, _, _ = image_shape(input_shape, "random_cnn")
        layers: list[nn.Module] = []
        for channel, pool in zip(self.channels, self.pooled, strict=True):
            layers += [nn.Conv2d(size, channel, kernel_size=3, padding=1), nn.ReLU(), nn.BatchNorm2d(channel)]
            if pool:
                # Without padding the map of a 32-pixel image would be empty at the fifth pooling.
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
            size = channel
        layers.append(nn.Conv2d(size, num_classes, kernel_size=3, padding=1))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def draw_random_cnn(seed: int) -> RandomCnn:
    """3 to 10 convolutions of 32, 64, 128 or 256 channels, pooling after each but the last with probability ½.

    The draw has its own generator, so it neither depends on nor moves any other random state.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):  # also where the network itself is built elsewhere
        hidden = int(torch.randint(3, 11, (), generator=generator)) - 1
        powers = torch.randint(5, 9, (hidden,), generator=generator).tolist()
        pooled = torch.randint(0, 2, (hidden,), generator=generator).tolist()
    return RandomCnn(channels=tuple(2**power for power in powers), pooled=tuple(bool(flag) for flag in pooled))


def random_cnn(
    num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32), seed: int = 0, width: float = 1.0
) -> nn.Sequential:
    """Random network of a seed: 3×3 convolutions, all but the last with ReLU, batch norm and perhaps pooling.

    The scores of the last convolution are averaged over the image. The same seed is the same architecture for every
    optimizer; the paper's experiment takes seeds 0 to 49.

    Args:
        num_classes: channels of the last convolution.
        input_shape: shape of one image (channels, height, width).
        seed: seed of the architecture, not of its weights.
        width: factor of the drawn channels.
    """
    drawn = draw_random_cnn(seed)
    return RandomCnn(tuple(scaled(drawn.channels, width)), drawn.pooled).build(num_classes, input_shape)
