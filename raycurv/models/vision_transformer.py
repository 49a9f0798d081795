"""The vision transformer (Dosovitskiy et al., 2021), small enough for images of 32 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycurv.models.layers import check_classes, image_shape
from raycurv.models.pre_norm import PreNormLayer, check_sizes


class VisionTransformer(nn.Module):
    """Scores of the classes from the mean over the patches of an image.

    Args:
        classes: number of outputs.
        channels: channels of the image.
        patches: number of patches of an image.
        patch: pixels of a patch's side.
        size: D, the length of a patch's vector; a multiple of `heads`.
        heads: number of heads of every attention.
        layers: number of layers.
        hidden: hidden units of the feed-forward networks.
        dropout: dropout probability.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        patches: int,
        patch: int,
        size: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, size, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(patches, size))
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(PreNormLayer(size, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, classes)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, height, width) to scores (B, classes)."""
        x = self.drop(self.embed(images).flatten(2).transpose(1, 2) + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x).mean(1))


def vision_transformer(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    patch: int = 4,
    size: int = 64,
    heads: int = 4,
    layers: int = 4,
    hidden: int = 128,
    dropout: float = 0.0,
) -> VisionTransformer:
    """A vision transformer with learned positions; the mean over the patches takes the place of a class token.

    Args:
        num_classes: outputs.
        input_shape: shape of one image (channels, height, width).
        patch: pixels of a patch's side, which divides height and width.
        size: length of a patch's vector; a multiple of `heads`.
        heads: number of heads of every attention.
        layers: number of layers.
        hidden: hidden units of the feed-forward networks.
        dropout: probability of dropping a number.

    Raises:
        ValueError: the patches do not fill the image, `size` is no multiple of `heads`, or a number is out of bounds.
    """
    check_classes(num_classes)
    check_sizes(size, heads, layers, hidden, dropout)
    channels, height, width = image_shape(input_shape, "vision_transformer")
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch is {patch}; it must divide the image of {height} × {width} pixels")
    patches = (height // patch) * (width // patch)
    return VisionTransformer(num_classes, channels, patches, patch, size, heads, layers, hidden, dropout)
