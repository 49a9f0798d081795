"""Parquet image sets: encoded images by row groups, decoded and augmented when a batch is made."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycurv.data import image_transforms
from raycurv.data.errors import CorruptRowGroupError, DataError
from raycurv.data.order import Rows
from raycurv.data.row_groups import RowGroups
from raycurv.data.shards import (
    ShardFolder,
    Split,
    check_labels,
    choose_labels,
    concurrently,
    locate,
    read_images,
    read_labels,
)
from raycurv.data.source import Data

_LOG = logging.getLogger(__name__)
Augmentation = Literal["none", "crop_flip", "crop_flip_rotate", "resize_crop_flip", "short_side_crop_flip"]
_Crop = Callable[[image_transforms.Pixels, Sequence[float], tuple[int, int]], image_transforms.Pixels]
_CropBox = Callable[[int, int, Sequence[float], tuple[int, int]], image_transforms.Box]
_Finish = Callable[[image_transforms.Pixels, int], image_transforms.Pixels]
# Augmentations that cut a part out of the whole photograph, and the part.
_CROPS: Mapping[str, tuple[_Crop, _CropBox]] = {
    "resize_crop_flip": (image_transforms.random_resized_crop, image_transforms.resized_crop_box),
    "short_side_crop_flip": (image_transforms.random_crop, image_transforms.crop_box),
}
_LARGE = 2**23  # bytes of a batch of floats from which its memory is worth a thought
_CACHED = 2**21  # bytes that stay in the cache of a core between two operations
_DEGREES = 15.0  # of crop_flip_rotate
_STREAMS = 64
_WINDOW_ROWS = 100  # a window has about so many rows, in as many row groups as that takes
_STATISTICS = {1: ((0.5,), (0.5,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@dataclass(frozen=True)
class ImageSettings:
    """What every image becomes.

    Attributes:
        channels: 1 or 3.
        size: height and width in pixels.
        augmentation: augmentation of training samples.
        mean: subtracted from each channel of images in [0, 1].
        std: divisor of each channel.
        reduced_decoding: whether large JPEG images are decoded at a part of their size.
    """

    channels: int
    size: tuple[int, int]
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reduced_decoding: bool = False

    @property
    def _centre(self) -> float:
        return image_transforms.CENTRE if self.augmentation in _CROPS else 1.0

    def fitted(self, image: image_transforms.Pixels) -> image_transforms.Pixels:
        """The image without augmentation."""
        return image_transforms.fit(image, self.size, self._centre)

    def decoded(self, encoded: NDArray[np.uint8], draws: Sequence[float] | None) -> image_transforms.Pixels:
        """The image of encoded bytes, for a random crop or to be fitted.

        Args:
            encoded: the bytes.
            draws: random numbers of the crop; None for no crop.

        Raises:
            ValueError: the bytes are no image.
        """

        def least(height: int, width: int) -> tuple[int, int]:
            if draws is None:
                box = image_transforms.fitted_box(height, width, self.size, self._centre)
            else:
                box = _CROPS[self.augmentation][1](height, width, draws, self.size)
            return image_transforms.least_size(height, width, box, self.size)

        fast, wanted = draws is not None, least if self.reduced_decoding else None
        return image_transforms.decode(encoded, self.channels, fast, wanted)

    def augmented(self, batch: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Fitted training images (B, H, W, C), each shifted, flipped and turned as its key says."""
        if self.augmentation in ("crop_flip", "crop_flip_rotate"):
            batch = image_transforms.crop_and_flip(batch, keys, max(1, self.size[0] // 8))
        return image_transforms.rotate(batch, keys, _DEGREES) if self.augmentation == "crop_flip_rotate" else batch

    def converted(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Scaled to [0, 1], less the mean, divided by the standard deviation; (B, C, H, W)."""
        work = torch.promote_types(dtype, torch.float32)
        mean, std = (
            torch.tensor(values, dtype=work, device=inputs.device).mul_(255).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        if inputs.device.type != "cpu" or inputs.numel() * work.itemsize < _LARGE:
            return inputs.to(work, memory_format=torch.contiguous_format).sub_(mean).div_(std).to(dtype)
        # numpy asks the kernel for huge pages, and torch does not: page faults took more time than the arithmetic.
        found = torch.from_numpy(np.empty(inputs.shape, np.float64 if work == torch.float64 else np.float32))
        rows = max(1, _CACHED // (inputs[0].numel() * work.itemsize))
        for part, given in zip(found.split(rows), inputs.split(rows), strict=True):
            part.copy_(given).sub_(mean).div_(std)
        return found.to(dtype)


class ParquetImages:
    """One split of a Parquet image set; :func:`parquet_images` makes it.

    A set whose encoded images take at most `memory_limit` is held in memory; if there is room for the decoded ones
    beside them, these are kept once they have been decoded, and the encoded ones dropped in the end (not for
    ``resize_crop_flip`` and ``short_side_crop_flip``, which need the whole photograph). A larger set is streamed, and
    holds about half of `memory_limit` at a time.

    Args:
        split: its shards.
        chosen: the labels that are kept, in ascending order; None keeps all.
        picture: form of every image as an input.
        memory_limit: bytes.
        max_rows: keep the first rows only.
        skip_corrupt: leave out and count what cannot be read, instead of raising.

    Raises:
        DataError: nothing is left of the set.
    """

    def __init__(
        self,
        split: Split,
        chosen: Sequence[int] | None,
        picture: ImageSettings,
        *,
        memory_limit: int,
        max_rows: int | None,
        skip_corrupt: bool,
    ) -> None:
        self._split, self.picture, self._skip_corrupt = split, picture, skip_corrupt
        labels = np.arange(len(split.names)) if chosen is None else np.asarray(chosen)
        self.classes: tuple[str, ...] | None = tuple(split.names[label] for label in labels)
        self.input_shape: tuple[int, ...] = (picture.channels, *picture.size)
        self._renumbered = np.full(len(split.names), -1)
        self._renumbered[labels] = np.arange(len(labels))
        kept = None if chosen is None else concurrently(self._kept_rows, range(len(split.groups)))
        lengths = [group.rows for group in split.groups] if kept is None else [len(rows) for rows in kept]
        if max_rows is not None:
            before = np.cumsum([0, *lengths])[:-1]
            lengths = [int(np.clip(max_rows - start, 0, rows)) for start, rows in zip(before, lengths, strict=True)]
        self.row_groups: tuple[int, ...] = tuple(lengths)
        self._first = np.cumsum([0, *lengths])
        if len(self) == 0:
            raise DataError(f"{split.uri}: no rows of the {len(labels)} classes are left (max_rows is {max_rows})")
        self._groups = RowGroups(split, kept, skip_corrupt)
        self._lay_out(memory_limit)
        self._labels = np.full(len(self), -1)
        self._lock, self._loaded, self._corrupt = threading.Lock(), False, set[int]()

    def _kept_rows(self, number: int) -> NDArray[np.int64]:
        group = self._split.groups[number]
        try:
            labels = read_labels(self._split, group)
        except CorruptRowGroupError:
            if not self._skip_corrupt:
                raise
            return np.arange(group.rows)  # counted as left out when they are read
        check_labels(self._split, group, labels)
        return np.flatnonzero(self._renumbered[labels] >= 0)

    def _lay_out(self, memory_limit: int) -> None:
        """Decide between memory and streams, from the metadata alone."""
        sizes = [g.bytes * rows // g.rows for g, rows in zip(self._split.groups, self.row_groups, strict=True)]
        self.in_memory = sum(sizes) <= memory_limit
        used = int(np.count_nonzero(self.row_groups))
        most = max(1, memory_limit // 2 // max(1, *sizes))  # row groups at a time
        self.streams = min(_STREAMS, 2 ** (most.bit_length() - 1), used)
        self.window = max(1, min(most // self.streams, _WINDOW_ROWS * used // len(self)))
        self._decoded: Tensor | None = None
        room = sum(sizes) + len(self) * int(np.prod(self.input_shape)) <= memory_limit
        if room and self.picture.augmentation not in _CROPS:
            self._decoded = torch.empty((len(self), *self.picture.size, self.picture.channels), dtype=torch.uint8)
            self._is_decoded = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def skipped(self) -> int:
        """Corrupt images and shards left out so far."""
        return len(self._corrupt) + self._split.skipped_shards

    def fetch(self, group: int) -> None:
        """Read a row group and hold it."""
        self._groups.get(group)

    def release(self, group: int) -> None:
        """Release the memory of a row group."""
        self._groups.release(group)

    def encoded(self, row: int) -> NDArray[np.uint8]:
        """The bytes of one image as stored.

        Raises:
            DataError: its row group is corrupt.
        """
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        group = self._groups.get(number)
        if group is None:
            raise DataError(f"{self._split.groups[number].shard.info.path}: corrupt row group")
        return group.image(row - int(self._first[number]))

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The images `rows` as (B, C, H, W) uint8 (in memory (B, H, W, C)), and their labels.

        Raises:
            DataError: an image or its row group is corrupt (without `skip_corrupt`).
        """
        self._load()
        augmentation = self.picture.augmentation if training else "none"
        keys = image_transforms.sample_keys(seed, epoch, rows)
        if self._decoded is not None:
            batch, labels, good = self._cached(rows)
        elif augmentation in _CROPS:
            size, draws, (cropped, _) = self.picture.size, image_transforms.crop_draws(keys), _CROPS[augmentation]
            batch, labels, good = self._decode(rows, lambda image, i: cropped(image, draws[i], size), draws)
        else:
            batch, labels, good = self._decode(rows, lambda image, _: self.picture.fitted(image))
        if training:
            batch = self.picture.augmented(batch, keys[good])
        return batch.permute(0, 3, 1, 2), torch.from_numpy(labels)

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Scaled to [0, 1], less the mean, divided by the standard deviation; (B, C, H, W)."""
        return self.picture.converted(inputs, dtype)

    def decoded(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """Every image, (N, H, W, C), and its label; None for a set that is not kept decoded or has corrupt images."""
        if self._decoded is None:
            return None
        pixels, labels, good = self._cached(np.arange(len(self)))
        return (pixels.numpy(), labels) if len(good) == len(self) else None

    def _load(self) -> None:
        """Read a set that is held in memory, once."""
        if self.in_memory and not self._loaded:
            with self._lock:
                if not self._loaded:
                    concurrently(self._groups.get, np.flatnonzero(self.row_groups).tolist())
                    self._loaded = True

    def _cached(self, rows: Rows) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """As :meth:`_decode`, from the decoded images; those that are missing are decoded first."""
        assert self._decoded is not None
        missing = rows[~self._is_decoded[rows]]
        if len(missing):
            batch, labels, good = self._decode(missing, lambda image, _: self.picture.fitted(image))
            self._decoded[torch.from_numpy(missing[good])] = batch
            self._labels[missing[good]] = labels
            self._is_decoded[missing[good]] = True
            if self._is_decoded.all():
                self._groups.clear()
        good = np.flatnonzero(self._is_decoded[rows])
        return self._decoded[torch.from_numpy(rows[good])], self._labels[rows[good]], good

    def _decode(
        self, rows: Rows, finish: _Finish, draws: Sequence[Sequence[float]] | None = None
    ) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """The finished images of `rows`, their labels, and which of `rows` they are: all but the corrupt ones.

        Raises:
            DataError: one is corrupt (without `skip_corrupt`).
        """
        numbers = np.searchsorted(self._first, rows, side="right") - 1
        held = {number: self._groups.get(number) for number in np.unique(numbers).tolist()}
        batch = np.empty((len(rows), *self.picture.size, self.picture.channels), np.uint8)
        labels: list[int] = []
        good: list[int] = []
        for i, (row, number, index) in enumerate(
            zip(rows.tolist(), numbers.tolist(), (rows - self._first[numbers]).tolist(), strict=True)
        ):
            group = held[number]
            if group is None:  # a corrupt row group, already in the log
                self._corrupt.add(row)
                continue
            try:
                image = self.picture.decoded(group.image(index), None if draws is None else draws[i])
            except ValueError as error:
                shard = self._split.groups[number].shard.info.path
                self._leave_out(row, f"{shard}, row {group.rows[index]} (from 0): corrupt image: {error}", error)
                continue
            batch[len(good)] = finish(image, i)
            labels.append(group.labels[index])
            good.append(i)
        return (
            torch.from_numpy(batch[: len(good)]),
            self._renumbered[np.asarray(labels, np.int64)],
            np.asarray(good, np.int64),
        )

    def _leave_out(self, row: int, message: str, error: ValueError) -> None:
        if not self._skip_corrupt:
            raise DataError(f"{message}; --skip-corrupt leaves it out") from error
        if row not in self._corrupt:
            _LOG.warning("left out %s", message)
            self._corrupt.add(row)


def parquet_images(
    path: str | os.PathLike[str],
    *,
    train: str = "train",
    evaluation: str | None = "auto",
    image_size: int | None = None,
    augmentation: Augmentation = "none",
    channels: int | None = None,
    classes: int | Sequence[str] | None = None,
    class_seed: int = 0,
    image_column: str | None = None,
    label_column: str = "label",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    max_rows: int | None = None,
    memory_limit: int = 3 * 2**28,
    skip_corrupt: bool = False,
    reduced_decoding: bool = False,
) -> Data:
    """Open a folder of Parquet shards in the Hugging Face image layout; nothing but metadata and one row group is read.

    Args:
        path: a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``, or a name in the folder RAYCURV_DATA.
        train: the split to learn from: ``train-*.parquet``, at any depth.
        evaluation: the split to evaluate on; ``"auto"`` is the first of validation, val, valid and test that there is,
            None is none.
        image_size: pixels of the square that every image becomes; None keeps the size, which must then be one for all.
        augmentation: training only. ``"crop_flip"`` pads by an eighth of the size, crops at random and flips left
            to right half of the time; ``"crop_flip_rotate"`` then turns by up to 15° both ways. ``"resize_crop_flip"``
            is the usual one for photographs: a random part of 8 % to 100 % of the area, resized, flipped half of the
            time. ``"short_side_crop_flip"`` takes a random part of 7/8 of the shorter side, 224 of 256 pixels, flipped
            half of the time. With both, evaluation takes the middle 7/8.
        channels: 1 or 3; None takes what the first image has.
        classes: names of the classes to keep, or a number of classes to draw by `class_seed`. Kept images are numbered
            anew, by the order of their classes in the set; every label is read to find them.
        class_seed: seed of the draw.
        image_column: None is ``image`` or ``img``.
        label_column: ``fine_label`` for CIFAR-100.
        mean: mean of each channel in [0, 1]; None is ImageNet's for 3 channels and 0.5 for 1.
        std: deviation of each channel; None is ImageNet's for 3 channels and 0.5 for 1.
        max_rows: keep the first so many rows of each split.
        memory_limit: bytes of each split in each worker (768 MiB); one whose encoded images take more is streamed.
        skip_corrupt: leave out and count images, row groups and shards that cannot be read, instead of raising.
        reduced_decoding: decode a JPEG image at 1/2, 1/4 or 1/8 of its size where what is cut out of it still has
            `image_size` pixels. This is faster for large photographs. Pixels differ by a few levels of 255, because the
            decoder averages in place of the resize.

    Raises:
        DataError: an argument out of bounds, or data that cannot be used.
    """
    _check_arguments(image_size, augmentation, channels, classes, max_rows, memory_limit)
    folder = ShardFolder(locate(path))
    columns = (image_column, label_column)
    learned = folder.open(train, columns, skip_corrupt=skip_corrupt)
    chosen = None if classes is None else choose_labels(learned, classes, class_seed)
    picture = _picture(learned, image_size, channels, augmentation, mean, std, skip_corrupt)
    picture = dataclasses.replace(picture, reduced_decoding=reduced_decoding)

    def source(split: Split) -> ParquetImages:
        return ParquetImages(
            split, chosen, picture, memory_limit=memory_limit, max_rows=max_rows, skip_corrupt=skip_corrupt
        )

    held_out = folder.evaluation() if evaluation == "auto" else evaluation
    if held_out is None:
        return Data(source(learned))
    return Data(source(learned), source(folder.open(held_out, columns, skip_corrupt=skip_corrupt, names=learned.names)))


def _check_arguments(
    image_size: int | None,
    augmentation: str,
    channels: int | None,
    classes: int | Sequence[str] | None,
    max_rows: int | None,
    memory_limit: int,
) -> None:
    if augmentation not in get_args(Augmentation):
        raise DataError(f"augmentation is {augmentation!r}; it must be one of {', '.join(get_args(Augmentation))}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels is {channels!r}; it must be 1, 3 or None")
    for name, value in {
        "image_size": image_size,
        "classes": classes if classes is None or isinstance(classes, int) else len(classes),
        "max_rows": max_rows,
        "memory_limit": memory_limit,
    }.items():
        if value is not None and value < 1:
            raise DataError(f"{name} is {value!r}; it must be at least 1")


def _picture(
    split: Split,
    image_size: int | None,
    channels: int | None,
    augmentation: Augmentation,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    skip_corrupt: bool,
) -> ImageSettings:
    """What every image becomes, by the arguments and the first images of the set.

    Raises:
        DataError: the first images cannot be decoded, or differ in size without `image_size`; or wrong statistics.
    """
    first = _first_images(split, skip_corrupt)
    channels = channels or first[0][2]
    sizes = {(height, width) for height, width, _ in first}
    if image_size is None and len(sizes) > 1:
        some = ", ".join(f"{h}×{w}" for h, w in sorted(sizes)[:3])
        raise DataError(f"{split.uri}: the images differ in size ({some} …); set image_size, for example to 224")
    height, width = (image_size, image_size) if image_size else next(iter(sizes))
    usual = _STATISTICS[channels]
    statistics = tuple(mean or usual[0]), tuple(std or usual[1])
    if any(len(values) != channels for values in statistics) or min(statistics[1]) <= 0:
        raise DataError(f"mean {mean} and std {std} must have {channels} values each, and std only positive ones")
    return ImageSettings(channels, (height, width), augmentation, *statistics)


def _first_images(split: Split, skip_corrupt: bool) -> list[tuple[int, int, int]]:
    """Height, width and channels of up to 16 images that can be decoded.

    Raises:
        DataError: there are none.
        CorruptRowGroupError: the first row group cannot be read (without `skip_corrupt`).
    """
    reason = ""
    for group in split.groups:
        try:
            encoded, _ = read_images(split, group)
        except CorruptRowGroupError as error:
            if not skip_corrupt:
                raise
            reason = str(error)
            continue
        found = []
        for value in encoded[:16]:
            try:
                found.append(image_transforms.describe(value.as_py() or b""))
            except ValueError as error:
                reason = str(error)  # named when its batch is made
        if found:
            return found
        reason = f"{group.name}: none of the first {len(encoded[:16])} images can be decoded: {reason}"
        if not skip_corrupt:
            break
    raise DataError(reason)
