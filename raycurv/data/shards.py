"""Parquet shards in the Hugging Face image layout: finding, opening and checking them, and reading a row group."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from raycurv.arguments import unknown
from raycurv.data import storage
from raycurv.data.errors import CorruptRowGroupError, DataError
from raycurv.data.order import draw_classes
from raycurv.data.parquet_footer import ColumnFooter, RowGroupFooter, parse_row_groups, read_footer

_LOG = logging.getLogger(__name__)
_EVALUATION = ("validation", "val", "valid", "test")
_IMAGES = ("image", "img")
_THREADS = 16  # requests under way at once; most of the time is waiting for the server
# Errors of pyarrow on damaged files, names that are no UTF-8 among them.
_CORRUPT = (pa.ArrowException, OSError, ValueError, KeyError)
_BLOCK = 2**22  # bytes
_MOST_CLASSES = 10**6  # that have no names
A = TypeVar("A")
B = TypeVar("B")


def concurrently(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of every item, in their order; the first error is raised."""
    with ThreadPoolExecutor(_THREADS, "raycurv-open") as pool:
        return list(pool.map(function, items))


@dataclass(frozen=True)
class Shard:
    """A Parquet file: its footer is read, its rows are not.

    Attributes:
        info: its path, and what the file system says of it.
        version: changes when the file is replaced.
        metadata: its footer, for pyarrow.
        schema: its columns.
        leaves: paths of the columns that hold values.
        row_groups: its row groups.
    """

    info: fs.FileInfo
    version: tuple[object, ...]
    metadata: pq.FileMetaData
    schema: pa.Schema
    leaves: tuple[str, ...]
    row_groups: tuple[RowGroupFooter, ...]


@dataclass(frozen=True)
class RowGroup:
    """Where a row group lies.

    Attributes:
        shard: its file.
        index: its number in the file.
        first: number of its first row in the file.
        rows: number of rows.
        bytes: size of its encoded images in memory.
    """

    shard: Shard
    index: int
    first: int
    rows: int
    bytes: int

    @property
    def name(self) -> str:
        """File and rows, for messages."""
        return f"{self.shard.info.path}, rows {self.first} to {self.first + self.rows - 1} (from 0)"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold the encoded images and the labels."""

    image: str
    label: str


def data_folder() -> Path:
    """The folder of data sets: ``RAYCURV_DATA``, or ``~/raycurv-data``."""
    return Path(os.environ.get("RAYCURV_DATA") or Path.home() / "raycurv-data").expanduser().absolute()


# What brings the data that recipes read by default.
REMEDIES = {
    "digits": "bring it with `raycurv prepare digits`",
    "mnist": "bring it with `raycurv prepare torchvision MNIST --download`",
    "cifar10": "bring it with `raycurv prepare torchvision CIFAR10 --download`",
    "cifar100": "bring it with `raycurv prepare torchvision CIFAR100 --download`",
    "imagenet": "bring it with `raycurv prepare folder FOLDER_OF_IMAGENET --output {folder}/imagenet`",
    "multi30k": "put the files train and val, .de.gz and .en.gz, of https://github.com/multi30k/dataset there",
    "boston_housing.csv": "put the Boston housing data of OpenML there, as CSV with a column medv",
}


def locate(path: str | os.PathLike[str]) -> str:
    """The absolute address of a data set: a URI, a path, or a name in :func:`data_folder`.

    Raises:
        DataError: there is nothing at the path.
    """
    text = os.fspath(path)
    if not text:
        raise DataError("the data path is empty; name a folder with Parquet shards, or s3:// or gs://")
    if "://" in text:
        return text
    candidates = [Path(text).expanduser().absolute(), data_folder() / text]
    for candidate in candidates:
        if candidate.exists():
            return str(candidate)
    looked = " or ".join(dict.fromkeys(map(str, candidates)))
    remedy = REMEDIES.get(text, "`raycurv prepare --help` shows how to bring data there").format(folder=data_folder())
    hint = "" if os.environ.get("RAYCURV_DATA") else "; RAYCURV_DATA can name another folder of data sets"
    raise DataError(f"there is no data at {looked}; {remedy}{hint}")


@dataclass(frozen=True)
class Split:
    """The shards of one split.

    Attributes:
        uri: address of the data set.
        system: its file system.
        columns: columns of images and labels.
        groups: every row group that is not empty, in stored order.
        names: names of the classes.
        skipped_shards: corrupt shards left out.
    """

    uri: str
    system: fs.FileSystem
    columns: Columns
    groups: tuple[RowGroup, ...]
    names: tuple[str, ...]
    skipped_shards: int


class ShardFolder:
    """The Parquet files below an address, by split.

    Args:
        uri: an address out of :func:`locate`.

    Raises:
        DataError: there are no Parquet files, or those of several data sets.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with storage.explained(uri):
            self.system, root = storage.resolve(uri)
            found = self.system.get_file_info(root)
            if found.type == fs.FileType.NotFound:
                raise DataError(f"there is no data at {uri}")
            self._file = found if found.type == fs.FileType.File else None
            selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
            listed = [found] if self._file else self.system.get_file_info(selector)
        files = [info for info in listed if info.type == fs.FileType.File]
        self._shards = {info.path[len(root) :].strip("/"): info for info in files if info.extension == "parquet"}
        self._shards = {name: info for name, info in self._shards.items() if not re.search(r"(^|/)[._]", name)}
        if not self._shards:
            raise DataError(
                f"no Parquet shards below {uri} ({len(files)} other files); "
                "`raycurv prepare folder` makes them from a folder of images"
            )

    def has(self, split: str) -> bool:
        """Whether there are shards of `split`."""
        return any(_belongs(name, split) for name in self._shards)

    def evaluation(self) -> str | None:
        """The first of validation, val, valid and test that there is."""
        return next((split for split in _EVALUATION if self.has(split)), None)

    def open(
        self, split: str, columns: tuple[str | None, str], *, skip_corrupt: bool, names: tuple[str, ...] | None = None
    ) -> Split:
        """Read the footers of the shards of `split`, check their columns and, by the statistics, their labels.

        Args:
            split: its name, as the shards spell it.
            columns: columns of images (None: ``image`` or ``img``) and labels.
            skip_corrupt: leave out a shard that cannot be read.
            names: names of the classes; None takes them from the metadata, or else numbers the labels.

        Raises:
            DataError: there is no such split, it is incomplete or ambiguous, or a shard cannot be used.
        """
        chosen = self._chosen(split)
        shards = [s for s in concurrently(lambda info: self._opened(info, skip_corrupt), chosen) if s is not None]
        if not shards:
            raise DataError(f"{self.uri}: none of the {len(chosen)} shards of {split!r} can be read")
        where = _columns(shards[0], columns)
        for shard in shards:
            _check_columns(shard, where)
        groups = tuple(group for shard in shards for group in _row_groups(shard, where))
        if not groups:
            raise DataError(f"{self.uri}: the shards of {split!r} have no rows")
        found = next((found for shard in shards if (found := _class_names(shard.schema, where.label))), ())
        opened = Split(self.uri, self.system, where, groups, names or found, len(chosen) - len(shards))
        if not opened.names:
            opened = replace(opened, names=_numbered(opened, skip_corrupt))
        for group in groups:
            known = _label_range(opened, group)
            if known is not None and (known[0] < 0 or known[1] >= len(opened.names)):
                check_labels(opened, group, read_labels(opened, group))
        return opened

    def _chosen(self, split: str) -> list[fs.FileInfo]:
        if self._file:
            return [self._file]
        names = sorted(name for name in self._shards if _belongs(name, split))
        if not names:
            others = ", ".join(sorted(self._shards)[:5])
            raise DataError(f"{self.uri} has no shards of the split {split!r} ({split}-*.parquet); it has {others} …")
        roots = sorted({_root(name, split) for name in names})
        if len(roots) > 1:
            raise DataError(f"{self.uri} holds several data sets ({', '.join(roots[:5])} …); name one of these folders")
        _check_complete(self.uri, names)
        return [self._shards[name] for name in names]

    def _opened(self, info: fs.FileInfo, skip_corrupt: bool) -> Shard | None:
        try:
            return _open_shard(self.system, info)
        except _CORRUPT as error:
            _check_reachable(self.uri, self.system, info)
            if not skip_corrupt:
                raise DataError(
                    f"{info.path} cannot be read as Parquet: {error}; --skip-corrupt leaves it out"
                ) from error
            _LOG.warning("left out %s, which cannot be read as Parquet: %s", info.path, error)
            return None


def _open_shard(system: fs.FileSystem, info: fs.FileInfo) -> Shard:
    with system.open_input_file(info.path) as file:
        version, footer = _version(system, info.path, file), read_footer(file)
    metadata = pq.read_metadata(pa.BufferReader(footer))
    schema = metadata.schema.to_arrow_schema()
    leaves = tuple(metadata.schema.column(i).path for i in range(len(metadata.schema)))
    str(schema)  # finds names that are no UTF-8
    return Shard(info, version, metadata, schema, leaves, parse_row_groups(footer, len(leaves)))


def _version(system: fs.FileSystem, path: str, file: pa.NativeFile) -> tuple[object, ...]:
    """Size and entity tag of an object that is open, size and time of a file."""
    if isinstance(system, fs.LocalFileSystem):
        info = system.get_file_info(path)
        return info.size, info.mtime_ns
    return file.size(), (file.metadata() or {}).get(b"ETag")


def _check_reachable(uri: str, system: fs.FileSystem, info: fs.FileInfo, start: int = 0, stop: int = 1) -> None:
    """Raise the error of the file system, should reading the bytes of a file fail too: then nothing is corrupt."""
    with storage.explained(uri), system.open_input_file(info.path) as file:
        stop = min(stop, file.size())
        for position in range(start, stop, _BLOCK):
            file.read_at(min(_BLOCK, stop - position), position)


def choose_labels(split: Split, classes: int | Sequence[str], class_seed: int) -> list[int]:
    """The labels to keep, in ascending order.

    Raises:
        DataError: there are not so many classes, or none of that name.
    """
    if not isinstance(classes, int):
        if lacking := [name for name in classes if name not in split.names]:
            raise DataError(f"{split.uri}: {unknown('class', lacking[0], split.names)}")
        return sorted({split.names.index(name) for name in classes})
    if classes > len(split.names):
        raise DataError(f"classes is {classes}, but {split.uri} has {len(split.names)} classes")
    return draw_classes(len(split.names), classes, class_seed)


def read_labels(split: Split, group: RowGroup) -> NDArray[np.int64]:
    """The labels of a row group; a missing one is -1.

    Raises:
        CorruptRowGroupError: it cannot be read.
    """
    columns = [split.columns.label]
    return _read(split, group, columns, lambda table: _label_array(table, split.columns))


def read_images(split: Split, group: RowGroup) -> tuple[pa.LargeBinaryArray, NDArray[np.int64]]:
    """The encoded images and the labels of a row group.

    Raises:
        CorruptRowGroupError: it cannot be read.
    """

    def parts(table: pa.Table) -> tuple[pa.LargeBinaryArray, NDArray[np.int64]]:
        encoded = pc.struct_field(table.column(split.columns.image), "bytes").combine_chunks()
        return pc.cast(encoded, pa.large_binary()), _label_array(table, split.columns)

    return _read(split, group, [f"{split.columns.image}.bytes", split.columns.label], parts)


def check_labels(split: Split, group: RowGroup, labels: NDArray[np.int64]) -> None:
    """Refuse labels that are not one of the classes.

    Raises:
        DataError: names the file and the row.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= len(split.names)))
    if len(outside):
        raise DataError(
            f"{group.shard.info.path}, row {group.first + outside[0]} (from 0): the label is {labels[outside[0]]}; "
            f"{len(split.names)} classes allow 0 to {len(split.names) - 1}"
        )


def _label_range(split: Split, group: RowGroup) -> tuple[int, int] | None:
    """The smallest and largest label of a row group by the statistics of its file; None where there are none."""
    label = split.columns.label
    signed = not pa.types.is_unsigned_integer(group.shard.schema.field(label).type)
    return _column(group.shard, group.shard.row_groups[group.index], label).bounds(signed)


def _label_array(table: pa.Table, columns: Columns) -> NDArray[np.int64]:
    labels = pc.fill_null(table.column(columns.label).combine_chunks().cast(pa.int64()), -1)
    return np.asarray(labels.to_numpy(zero_copy_only=False), np.int64)


def _read(split: Split, group: RowGroup, columns: list[str], parts: Callable[[pa.Table], A]) -> A:
    """`parts` of the columns of a row group. Tried twice: what failed on its way from a server may be well.

    Raises:
        DataError: the file has been replaced.
        CorruptRowGroupError: the row group cannot be read, though the bytes of the file can.
    """
    try:
        return parts(_table(split, group, columns))
    except DataError:
        raise
    except _CORRUPT:
        footer = group.shard.row_groups[group.index]
        _check_reachable(split.uri, split.system, group.shard.info, max(0, footer.first_byte), footer.last_byte)
    try:
        return parts(_table(split, group, columns))
    except DataError:
        raise
    except _CORRUPT as error:
        raise CorruptRowGroupError(f"{group.name}: corrupt row group: {error}; --skip-corrupt leaves it out") from error


def _table(split: Split, group: RowGroup, columns: list[str]) -> pa.Table:
    shard = group.shard
    with split.system.open_input_file(shard.info.path) as file:
        if _version(split.system, shard.info.path, file) != shard.version:
            raise DataError(
                f"{shard.info.path} has been replaced since it was opened: keep data sets unchanged while a run reads "
                "them; --resume goes on at the last checkpoint"
            )
        parquet = pq.ParquetFile(file, metadata=shard.metadata, pre_buffer=True)
        table = parquet.read_row_group(group.index, columns=columns, use_threads=False)
    if len(table) != group.rows:
        raise ValueError(f"it has {len(table)} rows, not {group.rows}")
    return table


def _belongs(name: str, split: str) -> bool:
    folder, _, base = name.rpartition("/")
    return re.match(rf"{re.escape(split)}[-_.]", base) is not None or folder.rpartition("/")[2] == split


def _root(name: str, split: str) -> str:
    folder = name.rpartition("/")[0]
    parent, _, last = folder.rpartition("/")
    return (parent if last == split else folder) or "."


def _check_complete(uri: str, names: Sequence[str]) -> None:
    numbered = [match for name in names if (match := re.search(r"-(\d+)-of-(\d+)\.parquet$", name))]
    for count in {int(match[2]) for match in numbered}:
        present = {int(match[1]) for match in numbered if int(match[2]) == count}
        if missing := sorted(set(range(count)) - present):
            raise DataError(f"{uri}: {len(missing)} of {count} shards are missing, the first is {missing[0]:05d}")


def _columns(shard: Shard, wanted: tuple[str | None, str]) -> Columns:
    image, label = wanted
    if image is None:
        image = next((name for name in _IMAGES if name in shard.schema.names), _IMAGES[0])
    return Columns(image, label)


def _check_columns(shard: Shard, columns: Columns) -> None:
    has = ", ".join(f"{field.name}: {field.type}" for field in shard.schema)
    for name, wanted in ((columns.image, "image or img: struct<bytes, path>"), (columns.label, "label: int64")):
        if name not in shard.schema.names:
            raise DataError(f"{shard.info.path} has no column {name!r} (wanted {wanted}); it has {has}")
    image, label = (shard.schema.field(name).type for name in (columns.image, columns.label))
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise DataError(f"{shard.info.path}: column {columns.image!r} is {image}, not struct<bytes, path>")
    if not pa.types.is_integer(label):
        raise DataError(f"{shard.info.path}: column {columns.label!r} is {label}, not a whole number")


def _column(shard: Shard, group: RowGroupFooter, path: str) -> ColumnFooter:
    return group.columns[shard.leaves.index(path)]


def _row_groups(shard: Shard, columns: Columns) -> list[RowGroup]:
    first, groups = 0, []
    for index, stored in enumerate(shard.row_groups):
        if stored.rows:
            size = _column(shard, stored, f"{columns.image}.bytes").size
            groups.append(RowGroup(shard, index, first, stored.rows, size))
        first += stored.rows
    return groups


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    try:
        stored: Any = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in stored["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # another writer's metadata: the labels tell how many classes there are


def _numbered(split: Split, skip_corrupt: bool) -> tuple[str, ...]:
    """Names for classes that have none: the numbers from 0 to the largest label.

    Raises:
        DataError: a label is too large to be the number of a class.
        CorruptRowGroupError: a row group cannot be read (without `skip_corrupt`).
    """
    largest = -1
    for group in split.groups:
        known = _label_range(split, group)
        try:
            found = known[1] if known else int(read_labels(split, group).max())
        except CorruptRowGroupError:
            if not skip_corrupt:
                raise
            continue
        if found >= _MOST_CLASSES:
            raise DataError(
                f"{group.name}: the label {found} is too large for a class without a name; at most {_MOST_CLASSES - 1}"
            )
        largest = max(largest, found)
    return tuple(str(label) for label in range(largest + 1))
