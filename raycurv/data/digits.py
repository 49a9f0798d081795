"""Scikit-learn's handwritten digits as a Parquet image set: real images without a download."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from raycurv.data.order import hash64
from raycurv.data.prepare import png, write_split

_TEST = 360  # of 1797


def write_digits(folder: str | os.PathLike[str]) -> Path:
    """Write the 8×8 grey images to `folder`, 1437 to learn from and 360 to test on, unless they are there already.

    Returns the folder. It appears complete or not at all, also when several processes write it at once.

    Raises:
        OSError: the folder cannot be written, or holds something else.
    """
    target = Path(folder).absolute()
    if _complete(target):
        return target
    from sklearn.datasets import load_digits

    target.parent.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    order = np.argsort(hash64(0, np.arange(len(digits.target))), kind="stable")
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for split, rows in (("train", order[_TEST:]), ("test", order[:_TEST])):
            pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
            encoded = ((png(Image.fromarray(image)), f"{row}.png") for row, image in zip(rows, pixels, strict=True))
            samples = ((*image, int(digits.target[row])) for image, row in zip(encoded, rows, strict=True))
            write_split(str(aside), split, samples, [str(name) for name in digits.target_names])
        aside.chmod(0o755)
        os.replace(aside, target)
    except OSError:
        if not _complete(target):  # else another process was first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _complete(folder: Path) -> bool:
    return all((folder / f"{split}-00000-of-00001.parquet").exists() for split in ("train", "test"))
