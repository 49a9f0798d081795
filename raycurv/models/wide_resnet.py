"""Wide residual networks (Zagoruyko and Komodakis, 2016), as NTLR trains them on CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from raycurv.models.layers import check_classes, check_dropout, image_shape, scaled


class WideBlock(nn.Module):
    """Normalise, ReLU, 3×3 convolution, twice, added to the input; a 1×1 convolution where the shape changes.

    Args:
        channels: channels of the input.
        out: channels of the output.
        stride: stride of the first convolution.
        dropout: probability of dropping a number between the convolutions; 0 for none.
    """

    def __init__(self, channels: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        same = stride == 1 and channels == out
        self.shortcut = None if same else nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H/stride, W/stride)."""
        y = self.norm1(x).relu()
        kept = x if self.shortcut is None else self.shortcut(y)
        y = self.norm2(self.conv1(y)).relu()
        return kept + self.conv2(self.dropout(y))


def wide_resnet(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    depth: int = 16,
    widen: int = 4,
    dropout: float = 0.0,
    width: float = 1.0,
) -> nn.Sequential:
    """WRN-depth-widen; by default the WRN-16-4 of NTLR's CIFAR experiments (section 3).

    A convolution of 16 channels, three groups of blocks of 16, 32 and 64 times `widen` channels, the second and third
    group at half the resolution of the one before, then the mean over the image and a linear layer.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width).
        depth: 4 more than a multiple of 6: 10, 16, 22, 28, 40 …
        widen: k, the factor of the original's name.
        dropout: probability of dropping a number inside the blocks; 0 for none.
        width: further factor of all channels, for runs smaller than the paper's.

    Raises:
        ValueError: no number of blocks gives the depth, `widen` or `dropout` is out of bounds, or the width leaves a
            layer empty.
    """
    check_classes(num_classes)
    check_dropout(dropout)
    channels, _, _ = image_shape(input_shape, "wide_resnet")
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth is {depth}; it must be 10, 16, 22, 28 or 4 more than another multiple of 6")
    if widen < 1:
        raise ValueError(f"widen is {widen}; it must be at least 1")
    size, *groups = scaled((16, 16 * widen, 32 * widen, 64 * widen), width)
    layers: list[nn.Module] = [nn.Conv2d(channels, size, kernel_size=3, padding=1, bias=False)]
    for group, out in enumerate(groups):
        for block in range((depth - 4) // 6):
            layers.append(WideBlock(size, out, 2 if group and not block else 1, dropout))
            size = out
    network = nn.Sequential(
        *layers, nn.BatchNorm2d(size), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, num_classes)
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return network
