"""From encoded bytes to a batch of uint8 images: decode, resize, crop, flip. One image is a (H, W, C) array."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width
# The usual evaluation of photographs: the middle 224 of a shorter side of 256.
CENTRE = 224 / 256
_TRIES = 10
_TURN = 2**32  # a draw of its own, beside those of the crop
_NO_RANGE = {"I": "32-bit integer", "F": "floating-point"}  # modes of Pillow whose white is not known


def describe(encoded: Any) -> tuple[int, int, int]:
    """(height, width, channels) of encoded bytes; channels are 1 for grey and 3 for colour.

    Raises:
        ValueError: the bytes are no image that :func:`decode` accepts.
    """
    with _opened(encoded) as image:
        return image.height, image.width, 1 if image.getbands()[0] in ("1", "L", "I") else 3


def decode(encoded: Any, channels: int, fast: bool = False, least: Callable[[int, int], Size] | None = None) -> Pixels:
    """The (H, W, C) image of JPEG, PNG or any other bytes that Pillow reads.

    JPEG goes through libjpeg-turbo directly, which takes a fifth of Pillow's time on small images; `fast` chooses its
    quicker transforms, which differ by a few levels of 255, good enough under a random crop. What it refuses is left
    to Pillow, which has the last word on what is corrupt. Of pixels with 16 bits the upper 8 are kept.

    Args:
        encoded: the bytes.
        channels: 1 or 3.
        fast: whether to take the quicker transforms.
        least: function of the image's height and width that returns the smallest height and width wanted. A JPEG image
            is then decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size that has these; None is the whole size.

    Raises:
        ValueError: the bytes are no image, or one with 32-bit integer or floating-point pixels, or one with more pixels
            than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
        _check_pixels(height, width)
        colours = "GRAY" if channels == 1 else "RGB"
        how: dict[str, Any] = {"fastdct": fast, "fastupsample": fast}
        reduction = 1 if least is None else _reduction((height, width), least(height, width))
        if reduction > 1:
            how |= {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
        return simplejpeg.decode_jpeg(encoded, colours, **how)
    except (ValueError, MemoryError):
        pass
    with _opened(encoded) as image:
        pixels = np.array(_with_bytes(image).convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)


def _reduction(size: Size, least: Size) -> int:
    """The largest of 1, 2, 4 and 8 by which a size may be divided and still have at least these sides."""
    factor = min(size[0] / least[0], size[1] / least[1])
    return max(reduction for reduction in (1, 2, 4, 8) if reduction == 1 or reduction <= factor)


def least_size(height: int, width: int, box: Box, size: Size) -> Size:
    """The smallest height and width of an image in which the part `box` still has the pixels of `size`."""
    factor = min(box[2] / size[0], box[3] / size[1])
    return math.ceil(height / factor), math.ceil(width / factor)


@contextmanager
def _opened(encoded: Any) -> Iterator[Image.Image]:
    """Open an image with Pillow.

    Yields:
        The image.

    Raises:
        ValueError: the bytes are no image, or one that is not accepted.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            _check_pixels(image.height, image.width)
            _check_format(image)
            yield image
    except Exception as error:  # Pillow raises errors of every kind on damaged bytes, such as TypeError on a TIFF
        raise ValueError(str(error) or type(error).__name__) from error


def _check_pixels(height: int, width: int) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"the image claims {height}×{width} pixels; at most {Image.MAX_IMAGE_PIXELS} are read")


def _check_format(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ValueError("the image is a PostScript program, which is not run; convert it to PNG")
    if image.mode in _NO_RANGE and image.format != "PNG":  # PNG has at most 16 bits
        raise ValueError(
            f"the image has {_NO_RANGE[image.mode]} pixels, whose range is not known; convert it to 8 or 16 bits"
        )


def _with_bytes(image: Image.Image) -> Image.Image:
    """The image, with 8 bits in place of 16: Pillow would cut what is above 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def fit(image: Pixels, size: Size, centre: float = 1.0) -> Pixels:
    """The middle of `image`, resized to `size`, so that the shorter side keeps the part `centre`."""
    if image.shape[:2] == size and centre == 1.0:
        return image
    return _cut(image, fitted_box(image.shape[0], image.shape[1], size, centre), size)[0].permute(1, 2, 0).numpy()


def fitted_box(height: int, width: int, size: Size, centre: float = 1.0) -> Box:
    """The part of an image that :func:`fit` keeps."""
    box_height, box_width = _scaled_sides(height, width, size, centre)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _scaled_sides(height: int, width: int, size: Size, part: float) -> Size:
    """Sides in the ratio of `size` that take this part of the shorter side."""
    scale = part * min(height / size[0], width / size[1])
    return min(height, round(size[0] * scale)), min(width, round(size[1] * scale))


def _cut(image: Pixels, box: Box, size: Size) -> Tensor:
    """A part of an image, resized, (1, C, H, W)."""
    top, left, height, width = box
    return _resize(image[top : top + height, left : left + width], size)


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


def random_resized_crop(image: Pixels, draws: Sequence[float], size: Size) -> Pixels:
    """A part of 8 % to 100 % of the area at a ratio of 3:4 to 4:3, resized to `size`, flipped half of the time."""
    box = resized_crop_box(image.shape[0], image.shape[1], draws, size)
    return _flipped(_cut(image, box, size), draws)


def resized_crop_box(height: int, width: int, draws: Sequence[float], size: Size) -> Box:
    """The part of an image that :func:`random_resized_crop` takes."""
    return _random_box(height, width, draws)


def random_crop(image: Pixels, draws: Sequence[float], size: Size) -> Pixels:
    """A part at a random place, flipped half of the time, in the scale at which the shorter side is 8/7 of `size`.

    For 224 pixels the shorter side is 256 (Chatfield et al. 2014). The part is cut out of the image before it is
    resized, which is the same up to rounding and takes fewer pixels.
    """
    box = crop_box(image.shape[0], image.shape[1], draws, size)
    return _flipped(_cut(image, box, size), draws)


def crop_box(height: int, width: int, draws: Sequence[float], size: Size) -> Box:
    """The part of an image that :func:`random_crop` takes."""
    box_height, box_width = _scaled_sides(height, width, size, CENTRE)
    top, left = int(draws[0] * (height - box_height + 1)), int(draws[1] * (width - box_width + 1))
    return top, left, box_height, box_width


def _flipped(crop: Tensor, draws: Sequence[float]) -> Pixels:
    """The (H, W, C) pixels of (1, C, H, W), flipped half of the time."""
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
