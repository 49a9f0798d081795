"""The order in which samples are visited: pure functions of (seed, epoch) and of the set's metadata.

Nothing here depends on the number of workers, and nothing is read: any step of any epoch can be computed at once, which
is how a run goes on in the middle of an epoch. The random numbers are a hash of what they belong to, so they stay the
same whatever the version of the libraries, the batch or the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.int64]
# One constant for each use of the hash keeps the uses independent of each other.
_ROWS, _GROUPS, _WINDOW, _CLASSES, AUGMENTATION = range(1, 6)


def hash64(*keys: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of whole numbers (the finaliser of SplitMix64 after each of `keys`), broadcast over arrays."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def uniform(*keys: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on `keys` alone, broadcast over arrays."""
    return (hash64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_classes(available: int, count: int, seed: int) -> list[int]:
    """`count` of `available` classes, drawn by `seed`, in ascending order."""
    order = np.argsort(hash64(_CLASSES, seed, np.arange(available)), kind="stable")
    return sorted(order[:count].tolist())


class Order(Protocol):
    """The rows that one worker takes at every step of one epoch."""

    def rows(self, step: int) -> Rows:
        """The worker's share of the global batch of `step`; may be empty."""

    def open_groups(self, step: int) -> list[int]:
        """The row groups to hold while `step` is drawn."""


@dataclass(frozen=True)
class Share:
    """One worker's part of the work.

    Attributes:
        batch_size: rows of a global batch.
        rank: rank of this worker.
        size: number of workers.
    """

    batch_size: int
    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class Key:
    """What the order of an epoch follows from.

    Attributes:
        seed: seed of the run.
        epoch: counted from 0.
        shuffle: False keeps the stored order.
    """

    seed: int
    epoch: int
    shuffle: bool = True


class Permutation:
    """The order of a set in memory: one permutation by (seed, epoch), a contiguous slice of each batch for each worker.

    Args:
        total: rows of the set.
        share: batch size, rank and number of workers.
        key: seed and epoch.
    """

    def __init__(self, total: int, share: Share, key: Key) -> None:
        self._share = share
        self._order = np.arange(total, dtype=np.int64)
        if key.shuffle:
            self._order = np.argsort(hash64(_ROWS, key.seed, key.epoch, self._order), kind="stable").astype(np.int64)

    def rows(self, step: int) -> Rows:
        """The worker's share of the global batch of `step`; may be empty."""
        share = self._share
        batch = self._order[step * share.batch_size : (step + 1) * share.batch_size]
        return batch[share.rank * len(batch) // share.size : (share.rank + 1) * len(batch) // share.size]

    def open_groups(self, step: int) -> list[int]:
        """None: everything stays in memory."""
        return []


class Streams:
    """The order of a set beyond memory: a fixed number of streams, drawn from in turn.

    The row groups are permuted by (seed, epoch) and dealt to the streams. A stream runs through windows of `window` row
    groups, and the rows of a window are shuffled. Sample k of the epoch comes from the next stream in turn that is not
    exhausted. Worker r owns the streams r, r + size, r + 2·size, …, and so reads only their row groups.

    So that the streams do not all reach new row groups at the same moment, stream s starts s/S of a window into its
    first window and ends the epoch with the part that it left out.

    Args:
        lengths: rows of every row group, in stored order.
        share: batch size, rank and number of workers.
        key: seed and epoch.
        streams: number of streams; with fewer than workers, some workers stay idle.
        window: row groups whose rows are shuffled together.
    """

    def __init__(self, lengths: Sequence[int], share: Share, key: Key, *, streams: int, window: int) -> None:
        self._lengths = np.asarray(lengths, np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._lengths)])  # id of the first row of each row group
        self._share, self._key = share, key
        groups = np.flatnonzero(self._lengths)
        if key.shuffle:
            groups = groups[np.argsort(hash64(_GROUPS, key.seed, key.epoch, groups), kind="stable")]
        self._count = int(streams)
        dealt = [groups[stream::streams] for stream in range(streams)]
        self._windows = [[own[i : i + window] for i in range(0, len(own), window)] for own in dealt]
        self._bounds = [np.cumsum([0, *(self._lengths[w].sum() for w in own)]) for own in self._windows]
        self._sizes = np.array([bounds[-1] for bounds in self._bounds])
        self._window_rows = lru_cache(maxsize=4 * self._count)(self._shuffled)

    def rows(self, step: int) -> Rows:
        """The worker's share of the global batch of `step`; may be empty."""
        parts, turns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for stream, start, stop in self._draws(step):
            parts.append(self._stream_rows(stream, start, stop))
            turns.append(np.arange(start, stop) * self._count + stream)
        return np.concatenate(parts)[np.argsort(np.concatenate(turns), kind="stable")]

    def open_groups(self, step: int) -> list[int]:
        """The row groups of the windows that the worker's streams are in while `step` is drawn."""
        windows = [
            self._windows[stream][window]
            for stream, start, stop in self._draws(step)
            for window, _, _ in self._pieces(stream, start, max(stop, start + 1))
        ]
        return np.unique(np.concatenate(windows)).tolist() if windows else []

    def _draws(self, step: int) -> list[tuple[int, int, int]]:
        """(stream, start, stop): what the worker's streams give to the global batch of `step`."""
        share = self._share
        start, stop = self._drawn(step * share.batch_size), self._drawn((step + 1) * share.batch_size)
        return [
            (stream, int(start[stream]), int(stop[stream]))
            for stream in range(share.rank, self._count, share.size)
            if start[stream] < self._sizes[stream]
        ]

    def _drawn(self, samples: int) -> NDArray[np.int64]:
        """How many rows every stream has given after `samples` of the epoch."""
        if samples >= self._sizes.sum():
            return self._sizes
        low, high = 0, int(self._sizes.max())  # complete turns: the largest t with Σ min(sizes, t) ≤ samples
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(self._sizes, middle).sum() <= samples else (low, middle - 1)
        drawn = np.minimum(self._sizes, low)
        drawn[np.flatnonzero(self._sizes > low)[: samples - drawn.sum()]] += 1
        return drawn

    def _pieces(self, stream: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(window, from, to): where the rows `start` to `stop` of a stream lie."""
        bounds, total = self._bounds[stream], int(self._sizes[stream])
        shift = stream * int(bounds[1]) // self._count
        ranges = [(start + shift, min(stop + shift, total)), (max(start + shift - total, 0), stop + shift - total)]
        spans = []
        for low, high in ranges:
            while low < high:
                window = int(np.searchsorted(bounds, low, side="right")) - 1
                end = min(high, int(bounds[window + 1]))
                spans.append((window, low - int(bounds[window]), end - int(bounds[window])))
                low = end
        return spans

    def _stream_rows(self, stream: int, start: int, stop: int) -> Rows:
        parts = [self._window_rows(stream, window)[low:high] for window, low, high in self._pieces(stream, start, stop)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _shuffled(self, stream: int, window: int) -> Rows:
        groups = self._windows[stream][window]
        rows = np.concatenate([np.arange(self._first[g], self._first[g + 1]) for g in groups])
        if not self._key.shuffle:
            return rows
        return rows[np.argsort(hash64(_WINDOW, self._key.seed, self._key.epoch, rows), kind="stable")]
