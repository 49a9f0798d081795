"""Writing Parquet image sets in the Hugging Face layout, one row group in memory at a time."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from raycurv.data import storage
from raycurv.data.errors import DataError
from raycurv.data.order import hash64

Sample = tuple[bytes, str, int]  # encoded image, its name, its label
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_SPLITS = ("train", "validation", "val", "test")


def write_split(
    folder: str,
    split: str,
    samples: Iterable[Sample],
    classes: Sequence[str],
    *,
    rows_per_group: int = 100,
    groups_per_shard: int = 100,
    label: str = "label",
) -> int:
    """Write the shards ``split-00000-of-00003.parquet``, … and say how many rows they have.

    They are written under hidden names, which no reader takes for data, and renamed when the last one is complete.

    Args:
        folder: destination; a path, ``s3://`` or ``gs://``.
        split: ``train``, ``validation`` or ``test``.
        samples: samples to write; taken one row group at a time.
        classes: the names of the labels 0, 1, ….
        rows_per_group: a reader holds dozens of row groups at once, so that a hundred photographs are enough.
        groups_per_shard: row groups of a file.
        label: name of the column of labels.

    Raises:
        DataError: there are shards of this split already, there are no samples, or a label is not one of `classes`.
    """
    system, root = storage.resolve(folder)
    system.create_dir(root, recursive=True)
    if any(info.base_name.startswith(f"{split}-") for info in system.get_file_info(fs.FileSelector(root))):
        raise DataError(f"{folder} has shards of the split {split!r} already; choose another folder or remove them")
    schema, source, total = _schema(classes, label), iter(samples), 0
    partial: list[str] = []
    while first := list(islice(source, rows_per_group)):
        partial.append(f"{root}/.{split}-{len(partial):05d}.partial")
        with system.open_output_stream(partial[-1]) as stream, pq.ParquetWriter(stream, schema) as writer:
            rows: list[Sample] = first
            for group in range(groups_per_shard):
                rows = first if group == 0 else list(islice(source, rows_per_group))
                if not rows:
                    break
                writer.write_table(_table(rows, schema, len(classes)), row_group_size=len(rows))
                total += len(rows)
    if not total:
        raise DataError(f"there are no samples for the split {split!r}")
    for number, name in enumerate(partial):
        system.move(name, f"{root}/{split}-{number:05d}-of-{len(partial):05d}.parquet")
    return total


def image_folder(root: Path, output: str, *, seed: int = 0, rows_per_group: int = 100) -> dict[str, int]:
    """Convert ``root/train/<class>/*.jpg`` (and validation, val, test beside train), or ``root/<class>/*.jpg``.

    The files are taken as they are, in an order shuffled by `seed`. Returns the rows of each split.

    Raises:
        DataError: `root` is no such tree, or a split has classes that train has not.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    folders = {split: root / split for split in _SPLITS if (root / split).is_dir()} or {"train": root}
    if "train" not in folders:
        raise DataError(f"{root} has {', '.join(folders)}, but no train")
    classes = sorted(entry.name for entry in folders["train"].iterdir() if entry.is_dir())
    written = {}
    for split, folder in folders.items():
        if extra := sorted({e.name for e in folder.iterdir() if e.is_dir()} - set(classes)):
            raise DataError(f"{folder} has the class {extra[0]!r}, which {folders['train']} has not")
        files = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{folder} has no images in folders named after their classes")
        order = np.argsort(hash64(seed, np.arange(len(files))), kind="stable")
        samples = (_file_sample(files[i], folder, classes) for i in order)
        written[split] = write_split(output, split, samples, classes, rows_per_group=rows_per_group)
    return written


def torchvision_set(
    name: str, root: Path, output: str, *, rows_per_group: int = 100, download: bool = False
) -> dict[str, int]:
    """Convert a classification set of ``torchvision.datasets`` under `root`, images as PNG.

    Returns the rows of each split.

    Raises:
        DataError: there is no such set, it is not under `root`, or it is not divided into train and test.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "train" in parameters:
        arguments: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        arguments = {"train": {"split": "train"}, "test": {"split": "test"}}
    else:
        raise DataError(f"torchvision.datasets has no set {name!r} divided by train= or split= into train and test")
    fetched = {"download": True} if download and "download" in parameters else {}
    written = {}
    for split, argument in arguments.items():
        try:
            found = kind(str(root), **argument, **fetched)  # type: ignore[misc]
        except (RuntimeError, OSError) as error:
            hint = "" if download else "; --download brings it"
            raise DataError(f"{name} is not under {root}: {error}{hint}") from error
        classes = getattr(found, "classes", None) or [str(i) for i in range(1 + max(int(y) for _, y in found))]
        written[split] = write_split(
            output,
            split,
            _encoded(found),
            [str(c) for c in classes],
            rows_per_group=rows_per_group,
            label="fine_label" if name == "CIFAR100" else "label",  # as Hugging Face has it
        )
    return written


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _encoded(found: Any) -> Iterator[Sample]:
    for index in range(len(found)):
        image, label = found[index]
        yield png(image), f"{index}.png", int(label)


def _file_sample(path: Path, folder: Path, classes: list[str]) -> Sample:
    return path.read_bytes(), path.name, classes.index(path.relative_to(folder).parts[0])


def _schema(classes: Sequence[str], label: str) -> pa.Schema:
    features = {"image": {"_type": "Image"}, label: {"names": list(classes), "_type": "ClassLabel"}}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (label, pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _table(rows: Sequence[Sample], schema: pa.Schema, classes: int) -> pa.Table:
    for _, name, label in rows:
        if not 0 <= label < classes:
            raise DataError(f"{name} has the label {label}; {classes} classes allow 0 to {classes - 1}")
    images = [{"bytes": encoded, "path": name} for encoded, name, _ in rows]
    return pa.Table.from_arrays(
        [pa.array(images, schema.field("image").type), pa.array([r[2] for r in rows])], schema=schema
    )
