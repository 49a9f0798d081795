"""The row groups of a split that are in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycurv.data.errors import CorruptRowGroupError
from raycurv.data.shards import Split, check_labels, read_images

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedRowGroup:
    """The rows of a row group that are used: encoded images one after the other, and labels.

    Attributes:
        encoded: the bytes of all images.
        bounds: first byte of each image, and the end of the last one.
        labels: labels as stored.
        rows: the number of each row in its file.
    """

    encoded: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def image(self, index: int) -> NDArray[np.uint8]:
        """The bytes of one image."""
        return self.encoded[self.bounds[index] : self.bounds[index + 1]]


class RowGroups:
    """Reads row groups once, however many threads ask, and holds them until they are released.

    Args:
        split: the shards.
        kept: rows that are used in each row group; None uses all.
        skip_corrupt: a row group that cannot be read is None, instead of an error.
    """

    def __init__(self, split: Split, kept: Sequence[NDArray[np.int64]] | None, skip_corrupt: bool) -> None:
        self._split, self._kept, self._skip_corrupt = split, kept, skip_corrupt
        self._lock = threading.Lock()
        self._held: dict[int, Future[CachedRowGroup | None]] = {}

    def get(self, number: int) -> CachedRowGroup | None:
        """A row group, read now unless it is held; None if it is corrupt and corrupt ones are skipped.

        Raises:
            DataError: it is corrupt, or a label lies outside the classes.
        """
        with self._lock:
            found = self._held.get(number)
            future = found or self._held.setdefault(number, Future())
        if found is None:
            try:
                future.set_result(self._read(number))
            except BaseException as error:
                self.release(number)
                future.set_exception(error)
        return future.result()

    def release(self, number: int) -> None:
        """Release the memory of a row group."""
        with self._lock:
            self._held.pop(number, None)

    def clear(self) -> None:
        """Release the memory of all row groups."""
        with self._lock:
            self._held.clear()

    def _read(self, number: int) -> CachedRowGroup | None:
        group = self._split.groups[number]
        try:
            encoded, labels = read_images(self._split, group)
        except CorruptRowGroupError as error:
            if not self._skip_corrupt:
                raise
            _LOG.warning("left out %s", error)
            return None
        check_labels(self._split, group, labels)
        rows = np.arange(len(labels))
        if self._kept is not None:
            rows = self._kept[number]
            encoded = encoded.take(pa.array(rows))
        return CachedRowGroup(*_contiguous(encoded), labels[rows], group.first + rows)


def _contiguous(encoded: pa.LargeBinaryArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all images, and where each begins. A missing image has none, and is found corrupt when decoded."""
    bounds = np.cumsum([0, *pc.fill_null(pc.binary_length(encoded), 0).to_numpy(zero_copy_only=False)])
    _, offsets, values = encoded.buffers()
    start = int(np.frombuffer(offsets, np.int64, 1, encoded.offset * 8)[0]) if len(encoded) else 0
    held = np.frombuffer(values, np.uint8, int(bounds[-1]), start).copy() if bounds[-1] else np.empty(0, np.uint8)
    return held, bounds
