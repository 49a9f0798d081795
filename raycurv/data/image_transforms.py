"""From encoded bytes to a batch of uint8 images: decode, resize, crop, flip. One image is a (H, W, C) array."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from raycurv.data.order import AUGMENTATION, Rows, hash64, uniform

Pixels = NDArray[np.uint8]
# The usual evaluation of photographs: the middle 224 of a shorter side of 256.
CENTRE = 224 / 256
_TRIES = 10
_TURN = 2**32  # a draw of its own, beside those of the crop
# What Pillow raises on bytes that are no image, or only a part of one.
_CORRUPT = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def describe(encoded: Any) -> tuple[int, int, int]:
    """(height, width, channels) of encoded bytes; channels are 1 for grey and 3 for colour.

    Raises:
        ValueError: the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width, 1 if image.getbands()[0] in ("1", "L", "I", "F") else 3
    except _CORRUPT as error:
        raise ValueError(str(error)) from error


def decode(encoded: Any, channels: int, fast: bool = False) -> Pixels:
    """The (H, W, C) image of JPEG, PNG or any other bytes that Pillow reads.

    JPEG goes through libjpeg-turbo directly, which takes a fifth of Pillow's time on small images; `fast` chooses its
    quicker transforms, which differ by a few levels of 255, good enough under a random crop. What it refuses is left
    to Pillow, which has the last word on what is corrupt.

    Raises:
        ValueError: the bytes are no image.
    """
    try:
        colours = "GRAY" if channels == 1 else "RGB"
        return simplejpeg.decode_jpeg(encoded, colours, fastdct=fast, fastupsample=fast)
    except ValueError:
        pass
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
            return pixels.reshape(*pixels.shape[:2], channels)
    except _CORRUPT as error:
        raise ValueError(str(error)) from error


def fit(image: Pixels, size: tuple[int, int], centre: float = 1.0) -> Pixels:
    """The middle of `image`, resized to `size`, so that the shorter side keeps the part `centre`."""
    height, width = image.shape[:2]
    if (height, width) == size and centre == 1.0:
        return image
    scale = centre * min(height / size[0], width / size[1])
    box_height, box_width = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return _resize(image[top : top + box_height, left : left + box_width], size)[0].permute(1, 2, 0).numpy()


def _resize(image: Pixels, size: tuple[int, int]) -> Tensor:
    """A (1, C, H, W) tensor of `image` at `size`, bilinear and antialiased; in memory (1, H, W, C)."""
    # Whole strides of (1, H, W, C) lead torch to its fast kernel for bytes.
    whole = torch.from_numpy(np.ascontiguousarray(image)).view(1, *image.shape).permute(0, 3, 1, 2)
    return functional.interpolate(whole, size=size, mode="bilinear", antialias=True)


def crop_and_flip(images: Tensor, keys: NDArray[np.uint64], padding: int) -> Tensor:
    """Each of (B, H, W, C) shifted by up to `padding` pixels both ways (black comes in), half of them flipped."""
    _, height, width, channels = images.shape
    draws = uniform(keys[:, None], np.arange(3))
    down, right = (torch.from_numpy((draws[:, i] * (2 * padding + 1)).astype(np.int64)) for i in (0, 1))
    flip = torch.from_numpy(draws[:, 2] < 0.5)
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    wide = padded.shape[2]
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width))
    index = (rows[:, :, None] * wide + columns[:, None, :]) * channels
    index = index[..., None] + torch.arange(channels)
    return padded.flatten(1).gather(1, index.flatten(1)).view(images.shape)


def rotate(images: Tensor, keys: NDArray[np.uint64], degrees: float) -> Tensor:
    """Each of (B, H, W, C) turned about its middle by up to `degrees` both ways; black comes in."""
    turns = uniform(keys, _TURN) * 2 - 1
    angle = torch.from_numpy(turns * math.radians(degrees)).float()
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    height, width = images.shape[1:3]
    # Positions run from −1 to 1 on either axis, whatever the sides are.
    maps = torch.stack([cosine, sine * height / width, zero, -sine * width / height, cosine, zero], 1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, [len(images), 1, height, width], align_corners=False)
    turned = functional.grid_sample(images.permute(0, 3, 1, 2).float(), grid, align_corners=False)
    return turned.round_().to(torch.uint8).permute(0, 2, 3, 1)


def crop_draws(keys: NDArray[np.uint64]) -> list[list[float]]:
    """For each sample, the numbers in [0, 1) that :func:`random_resized_crop` needs."""
    return uniform(keys[:, None], np.arange(2 * _TRIES + 3)).tolist()


def random_resized_crop(image: Pixels, draws: Sequence[float], size: tuple[int, int]) -> Pixels:
    """A part of 8 % to 100 % of the area at a ratio of 3:4 to 4:3, resized to `size`, flipped half of the time."""
    top, left, height, width = _random_box(image.shape[0], image.shape[1], draws)
    crop = _resize(image[top : top + height, left : left + width], size)
    return (crop.flip(-1) if draws[-1] < 0.5 else crop)[0].permute(1, 2, 0).numpy()


def random_crop(image: Pixels, draws: Sequence[float], size: tuple[int, int]) -> Pixels:
    """A part at a random place, flipped half of the time, in the scale at which the shorter side is 8/7 of `size`.

    For 224 pixels the shorter side is 256 (Chatfield et al. 2014). The part is cut out of the image before it is
    resized, which is the same up to rounding and takes fewer pixels.
    """
    height, width = image.shape[:2]
    scale = CENTRE * min(height / size[0], width / size[1])
    box_height, box_width = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    top, left = int(draws[0] * (height - box_height + 1)), int(draws[1] * (width - box_width + 1))
    crop = _resize(image[top : top + box_height, left : left + box_width], size)
    return (crop.flip(-1) if draws[-1] < 0.5 else crop)[0].permute(1, 2, 0).numpy()


def _random_box(height: int, width: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width), drawn up to ten times until it lies inside; else the largest middle part."""
    for area, ratio in zip(draws[:_TRIES], draws[_TRIES : 2 * _TRIES], strict=True):
        target = height * width * (0.08 + 0.92 * area)
        aspect = math.exp(math.log(3 / 4) + 2 * math.log(4 / 3) * ratio)
        box_width, box_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = draws[2 * _TRIES], draws[2 * _TRIES + 1]
            return int(top * (height - box_height + 1)), int(left * (width - box_width + 1)), box_height, box_width
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def sample_keys(seed: int, epoch: int, rows: Rows) -> NDArray[np.uint64]:
    """One key for the random numbers of each sample."""
    return hash64(AUGMENTATION, seed, epoch, rows)
