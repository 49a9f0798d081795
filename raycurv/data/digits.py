"""Scikit-learn's handwritten digits as a Parquet image set: real images without a download."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from raycurv.data.errors import DataError
from raycurv.data.order import hash64
from raycurv.data.prepare import png, write_split
from raycurv.data.shards import ShardFolder

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
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(str(aside), ("train", "test"))
        aside.chmod(0o755)
        os.replace(aside, target)
    except OSError:
        if not _complete(target):  # else another process was first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def prepare_digits(output: str) -> str:
    """Write the digits to a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``, unless they are there already.

    Returns where they are. Every split appears complete or not at all.

    Raises:
        OSError: the destination cannot be written, or holds something else.
    """
    if "://" not in output:
        return str(write_digits(output))
    _write(output, [split for split in ("train", "test") if not _has(output, split)])
    return output


def _has(uri: str, split: str) -> bool:
    try:
        return ShardFolder(uri).has(split)
    except DataError:  # there is nothing yet
        return False


def _write(folder: str, splits: Sequence[str]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.argsort(hash64(0, np.arange(len(digits.target))), kind="stable")
    for split in splits:
        rows = order[_TEST:] if split == "train" else order[:_TEST]
        pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
        encoded = ((png(Image.fromarray(image)), f"{row}.png") for row, image in zip(rows, pixels, strict=True))
        samples = ((*image, int(digits.target[row])) for image, row in zip(encoded, rows, strict=True))
        write_split(folder, split, samples, [str(name) for name in digits.target_names])


def _complete(folder: Path) -> bool:
    return all((folder / f"{split}-00000-of-00001.parquet").exists() for split in ("train", "test"))
