"""Small Parquet image sets, written by the product's own writer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from raycurv.data import Loader
from raycurv.data.prepare import Sample, write_split


def image(seed: int, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A smooth random image, encoded."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def numbered(row: int) -> bytes:
    """An 8×8 image that says which row it is of: its bytes are the digits of `row` in base 256."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = row % 256, row // 256
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def samples(rows: int, classes: int = 10) -> list[Sample]:
    """`rows` numbered images with the labels 0, 1, …, in turn."""
    return [(numbered(row), f"{row}.png", row % classes) for row in range(rows)]


def write(folder: Path | str, rows: int = 60, split: str = "train", per_group: int = 10, per_shard: int = 2) -> str:
    """A set of numbered images in several shards."""
    names = [f"class {label}" for label in range(10)]
    write_split(str(folder), split, samples(rows), names, rows_per_group=per_group, groups_per_shard=per_shard)
    return str(folder)


def write_raw(path: Path, encoded: Sequence[bytes | None], labels: Sequence[int | None], **columns: str) -> None:
    """One shard as given: no metadata, the columns named `image` and `label` unless `columns` say otherwise."""
    images = pa.array(
        [{"bytes": e, "path": None} for e in encoded], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    names = [columns.get("image", "image"), columns.get("label", "label")]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([images, pa.array(labels, pa.int64())], names=names), path)


def everything(source, **settings):
    """All inputs and targets of a source."""
    batches = list(Loader(source, batch_size=16, seed=0, training=False, **settings).epoch(0))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
