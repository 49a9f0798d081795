"""From encoded bytes to a batch of uint8 images: decode, resize, crop, flip."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image

from raycurv.data.order import AUGMENTATION, Rows, hash64, uniform

_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
# The usual evaluation of photographs: the middle 224 of a shorter side of 256.
CENTRE = 224 / 256


def decode(encoded: Tensor, channels: int | None = None) -> Tensor:
    """The (C, H, W) uint8 image of JPEG, PNG, GIF or WebP bytes; grey or colour as stored without `channels`.

    Raises:
        ValueError: the bytes are no such image.
    """
    if len(encoded) == 0:
        raise ValueError("there are no bytes")
    try:
        image = decode_image(encoded, ImageReadMode.UNCHANGED if channels is None else _MODES[channels])
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return image if image.ndim == 3 else image[0]


def fit(image: Tensor, size: tuple[int, int], centre: float = 1.0) -> Tensor:
    """The middle of `image`, resized to `size`, so that the shorter side keeps the part `centre`."""
    height, width = image.shape[1:]
    if (height, width) == size and centre == 1.0:
        return image
    scale = centre * min(height / size[0], width / size[1])
    box_height, box_width = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return resize(image[:, top : top + box_height, left : left + box_width], size)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` at `size`, bilinear and antialiased."""
    if tuple(image.shape[1:]) == size:
        return image
    return functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def crop_and_flip(images: Tensor, keys: NDArray[np.uint64], padding: int) -> Tensor:
    """Each of (B, C, H, W) shifted by up to `padding` pixels both ways (black comes in), half of them flipped."""
    _, channels, height, width = images.shape
    span = 2 * padding + 1
    down, right = (torch.from_numpy((uniform(keys, draw) * span).astype(np.int64)) for draw in (0, 1))
    flip = torch.from_numpy(uniform(keys, 2) < 0.5)
    padded = functional.pad(images, (padding,) * 4)
    tall, wide = padded.shape[2:]
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width))
    index = rows[:, None, :, None] * wide + columns[:, None, None, :]
    index = index + torch.arange(channels)[:, None, None] * (tall * wide)
    return padded.flatten(1).gather(1, index.flatten(1)).view(images.shape)


def random_resized_crop(image: Tensor, key: np.uint64, size: tuple[int, int]) -> Tensor:
    """A part of 8 % to 100 % of the area at a ratio of 3:4 to 4:3, resized to `size`, flipped half of the time."""
    top, left, height, width = _random_box(image.shape[1], image.shape[2], key)
    crop = resize(image[:, top : top + height, left : left + width], size)
    return crop.flip(-1) if uniform(key, 4)[0] < 0.5 else crop


def _random_box(height: int, width: int, key: np.uint64) -> tuple[int, int, int, int]:
    """(top, left, height, width), drawn up to ten times until it lies inside; else the largest middle part."""
    tries = np.arange(10)
    area = height * width * (0.08 + 0.92 * uniform(key, 0, tries))
    ratio = np.exp(np.log(3 / 4) + 2 * np.log(4 / 3) * uniform(key, 1, tries))
    widths, heights = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    inside = np.flatnonzero((widths > 0) & (widths <= width) & (heights > 0) & (heights <= height))
    if len(inside) == 0:
        box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
    box_width, box_height = int(widths[inside[0]]), int(heights[inside[0]])
    top, left = (uniform(key, draw)[0] for draw in (2, 3))
    return int(top * (height - box_height + 1)), int(left * (width - box_width + 1)), box_height, box_width


def sample_keys(seed: int, epoch: int, rows: Rows) -> NDArray[np.uint64]:
    """One key for the random numbers of each sample."""
    return hash64(AUGMENTATION, seed, epoch, rows)
