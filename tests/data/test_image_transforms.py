from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from raycurv.data import image_transforms
from tests.data.cases import image


def pillow(encoded: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_decoding_agrees_with_pillow(kind, mode):
    encoded = image(0, (9, 12), kind, mode)
    for channels, wanted in ((1, "L"), (3, "RGB")):
        decoded = image_transforms.decode(encoded, channels)
        assert decoded.shape == (9, 12, channels)
        np.testing.assert_array_equal(decoded.squeeze(), pillow(encoded, wanted))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_agrees_with_pillow_up_to_rounding(mode):
    encoded = image(0, (40, 56), "JPEG", mode)
    difference = image_transforms.decode(encoded, 3).astype(int) - pillow(encoded)
    assert np.abs(difference).mean() <= 1


def test_the_fast_transforms_differ_little():
    encoded = image(0, (64, 64), "JPEG")
    difference = image_transforms.decode(encoded, 3, fast=True).astype(int) - image_transforms.decode(encoded, 3)
    assert 0 < np.abs(difference).mean() < 3


def test_transparent_and_palette_images():
    for mode in ("RGBA", "P", "LA", "1"):
        encoded = image(0, (9, 12), "PNG", mode)
        assert image_transforms.decode(encoded, 3).shape == (9, 12, 3)
        assert image_transforms.describe(encoded)[:2] == (9, 12)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3)])
def test_describe(mode, channels):
    assert image_transforms.describe(image(0, (9, 12), "PNG", mode)) == (9, 12, channels)


@pytest.mark.parametrize("encoded", [b"", b"nothing", image(0)[:50], image(0, (64, 64), "JPEG")[:400]])
def test_corrupt_bytes(encoded):
    with pytest.raises(ValueError):
        image_transforms.decode(encoded, 3)


def test_fit_takes_the_middle_and_keeps_the_proportions():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    assert (image_transforms.fit(wide, (10, 10)) == 255).all()
    assert image_transforms.fit(wide, (20, 60)) is wide
    part = image_transforms.fit(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), (4, 4), centre=0.5)
    np.testing.assert_array_equal(part[..., 0], np.arange(64).reshape(8, 8)[2:6, 2:6])


def test_resizing_agrees_with_pillow():
    decoded = image_transforms.decode(image(3, (61, 61)), 3)
    expected = np.asarray(Image.fromarray(decoded).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(image_transforms.fit(decoded, (32, 32)).astype(int) - expected).max() <= 1


def test_crop_and_flip_shift_by_whole_pixels():
    batch = torch.randint(1, 255, (200, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifted = image_transforms.crop_and_flip(batch, image_transforms.sample_keys(0, 0, np.arange(200)), padding=1)
    padded = torch.nn.functional.pad(batch, (0, 0, 1, 1, 1, 1))
    seen = set()
    for before, after in zip(padded, shifted, strict=True):
        candidates = {
            (top, left, flip): before[top : top + 8, left : left + 8].flip(1)
            if flip
            else before[top : top + 8, left : left + 8]
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
        }
        (match,) = [key for key, candidate in candidates.items() if torch.equal(candidate, after)]
        seen.add(match)
    assert len(seen) == 18


def test_random_boxes_have_the_usual_areas_and_ratios():
    draws = image_transforms.crop_draws(image_transforms.sample_keys(0, 0, np.arange(2000)))
    boxes = np.array([image_transforms._random_box(300, 400, d) for d in draws])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, ratio = height * width / 120000, width / height
    assert 0.079 < area.min() < 0.1
    assert 0.4 < area.mean() < 0.5
    assert 0.74 < ratio.min() < ratio.max() < 1.35


def test_a_box_that_never_fits_is_the_middle():
    assert image_transforms._random_box(10, 1000, [0.9] * 23) == (0, 493, 10, 13)


def test_random_crops_are_flipped_half_of_the_time():
    picture = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    draws = image_transforms.crop_draws(image_transforms.sample_keys(1, 0, np.arange(300)))
    crops = [image_transforms.random_resized_crop(picture, d, (16, 16)) for d in draws]
    rising = np.mean([int(crop[8, -1, 0]) > int(crop[8, 0, 0]) for crop in crops])
    assert 0.4 < rising < 0.6
    assert all(crop.shape == (16, 16, 3) for crop in crops)


@pytest.mark.parametrize("shape", [(300, 400), (512, 320), (256, 256)])
def test_crops_of_the_short_side_are_those_of_the_resized_photograph(shape):
    """The whole image with a shorter side of 256 first, then 224 pixels of it, as Chatfield et al. do."""
    rows, columns = (np.linspace(0, 1, n) for n in shape)
    smooth = np.stack([np.add.outer(rows, columns) / 2, np.outer(rows, 1 - columns), np.outer(rows, columns)], 2)
    picture = (255 * smooth).astype(np.uint8)
    whole = transforms.resize(torch.from_numpy(picture).permute(2, 0, 1), [256], antialias=True)
    draws = image_transforms.crop_draws(image_transforms.sample_keys(1, 0, np.arange(20)))
    corners = []
    for draw in draws:
        crop = image_transforms.random_crop(picture, draw, (224, 224))
        top, left = (round(draw[i] * (side - 224)) for i, side in enumerate(whole.shape[1:]))
        expected = transforms.crop(whole, top, left, 224, 224)
        expected = expected.flip(-1) if draw[-1] < 0.5 else expected
        difference = torch.from_numpy(crop).permute(2, 0, 1).float() - expected.float()
        assert difference.abs().mean() < 2
        corners.append((top, left))
    assert len(set(corners)) > 10


def photograph(height: int, width: int) -> bytes:
    """A JPEG image with edges and shades, as bytes."""
    rows, columns = np.mgrid[:height, :width]
    shades = [128 + 100 * np.sin(rows / 90 + k) * np.cos(columns / (70 + 20 * k)) for k in range(3)]
    pixels = np.stack(shades, 2) + 25 * ((rows // 64 + columns // 48) % 2)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize(("side", "reduction"), [(300, 1), (450, 2), (1024, 4), (1800, 8)])
def test_a_large_photograph_is_decoded_at_a_part_of_its_size(side, reduction):
    decoded = image_transforms.decode(photograph(side, 2 * side), 3, least=lambda height, width: (220, 220))
    assert decoded.shape == (-(-side // reduction), -(-2 * side // reduction), 3)


def test_crops_of_a_photograph_at_a_part_of_its_size_differ_by_a_few_levels():
    """From the same draws: the same part, averaged by the decoder in place of the resize."""
    size, encoded = (224, 224), photograph(1024, 1400)
    whole = image_transforms.decode(encoded, 3, fast=True)
    sizes = set()
    for draws in image_transforms.crop_draws(image_transforms.sample_keys(1, 0, np.arange(12))):
        for crop, box_of in (
            (image_transforms.random_resized_crop, image_transforms.resized_crop_box),
            (image_transforms.random_crop, image_transforms.crop_box),
        ):

            def least(height: int, width: int, draws=draws, box_of=box_of) -> tuple[int, int]:
                return image_transforms.least_size(height, width, box_of(height, width, draws, size), size)

            reduced = image_transforms.decode(encoded, 3, fast=True, least=least)
            sizes.add(reduced.shape[0])
            difference = np.abs(crop(reduced, draws, size).astype(int) - crop(whole, draws, size))
            assert difference.mean() < 5  # of 255; most at edges, which move by less than a pixel
            assert np.median(difference) <= 2
    assert len(sizes) > 1


def test_a_reduced_image_still_has_the_pixels_of_the_part_that_is_cut_out():
    size = (224, 224)
    for draws in image_transforms.crop_draws(image_transforms.sample_keys(2, 0, np.arange(200))):
        box = image_transforms.resized_crop_box(1024, 1400, draws, size)
        least = image_transforms.least_size(1024, 1400, box, size)
        part = image_transforms.resized_crop_box(*least, draws, size)
        assert min(part[2:]) >= min(223, *box[2:])
