"""Batches of one worker, made in background threads while the step before runs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeGuard

import torch
from torch import Tensor

from raycurv.data.errors import DataError
from raycurv.data.order import Key, Order, Permutation, Rows, Share, Streams
from raycurv.data.source import Source, StreamedSource

_LOG = logging.getLogger(__name__)
LoadedBatch = tuple[Tensor, Tensor]
# Steps by which row groups are fetched before the batches that need them are made, and threads that fetch.
_FETCH_AHEAD, _FETCHERS = 4, 4


class Loader:
    """The share of one worker in every global batch of an epoch.

    Which samples make up a global batch follows from (seed, epoch, step) alone; the workers divide them. Batches are
    decoded ahead in `prefetch` threads; at most so many wait. An error in a thread is raised by the iterator, and an
    iterator that is closed, exhausted or dropped leaves no thread behind.

    Args:
        source: the set.
        batch_size: samples of a global batch, over all workers.
        seed: seed of the data order and of the augmentation.
        rank: rank of this worker.
        size: number of workers.
        training: False: stored order, no augmentation.
        device: device of the batches.
        dtype: dtype of the inputs.
        prefetch: batches made ahead.
        drop_last: leave out the short batch at the end of an epoch.

    Attributes:
        steps_per_epoch: the same on every worker.

    Raises:
        DataError: an argument out of bounds.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        training: bool = True,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        prefetch: int = 2,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1 or prefetch < 1 or not 0 <= rank < size:
            raise DataError(
                f"batch_size {batch_size}, prefetch {prefetch} and size {size} must be at least 1, "
                f"and rank {rank} must lie from 0 to size - 1"
            )
        self.source, self.batch_size, self.seed, self.training = source, batch_size, seed, training
        self.rank, self.size, self.dtype, self.prefetch = rank, size, dtype, prefetch
        self.device = torch.device(device)
        self.steps_per_epoch = len(source) // batch_size if drop_last else -(-len(source) // batch_size)
        if self.steps_per_epoch == 0:
            raise DataError(f"batch_size {batch_size} with drop_last leaves nothing of {len(source)} samples")
        if _streamed(source) and source.streams < size and rank == 0:
            _LOG.warning(
                "%d of %d workers have nothing to do: the set is read as %d streams; a larger memory_limit, or shards "
                "with smaller row groups (`raycurv prepare folder --rows-per-group`), make more",
                size - source.streams,
                size,
                source.streams,
            )

    @property
    def skipped(self) -> int:
        """Corrupt samples and shards left out so far by this worker."""
        return self.source.skipped

    def epoch(self, epoch: int, start: int = 0) -> Generator[LoadedBatch, None, None]:
        """The batches of `epoch` from step `start` on; nothing before it is read.

        Raises:
            DataError: `start` lies outside the epoch.
        """
        if not 0 <= start <= self.steps_per_epoch:
            raise DataError(f"step {start} lies outside the epoch of {self.steps_per_epoch} steps")
        return self._batches(epoch, start)

    def order(self, epoch: int) -> Order:
        """The rows of this worker at every step of `epoch`."""
        share = Share(self.batch_size, self.rank, self.size)
        key, source = Key(self.seed, epoch, shuffle=self.training), self.source
        if _streamed(source):
            return Streams(source.row_groups, share, key, streams=source.streams, window=source.window)
        return Permutation(len(source), share, key)

    def _batches(self, epoch: int, start: int) -> Generator[LoadedBatch, None, None]:
        order = self.order(epoch)
        steps = iter(range(start, self.steps_per_epoch))
        groups = _Groups(self.source, order, start, self.steps_per_epoch) if _streamed(self.source) else None
        makers = ThreadPoolExecutor(self.prefetch, "raycurv-decode")
        pending: deque[Future[LoadedBatch]] = deque()

        def submit(count: int) -> None:
            for step in islice(steps, count):
                if groups is not None:
                    groups.reach(step)
                pending.append(makers.submit(self._make, order.rows(step), epoch))

        try:
            submit(self.prefetch)
            while pending:
                batch = pending.popleft().result()
                if groups is not None:
                    groups.leave()
                submit(1)
                yield self._placed(batch)
        finally:
            makers.shutdown(cancel_futures=True)
            if groups is not None:
                groups.close()

    def _make(self, rows: Rows, epoch: int) -> LoadedBatch:
        inputs, targets = self.source.read(rows, seed=self.seed, epoch=epoch, training=self.training)
        if self.device.type == "cpu":
            return self.source.convert(inputs, self.dtype), targets
        return inputs.pin_memory(), targets.pin_memory()

    def _placed(self, batch: LoadedBatch) -> LoadedBatch:
        if self.device.type == "cpu":
            return batch
        inputs, targets = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return self.source.convert(inputs, self.dtype), targets


def _streamed(source: Source) -> TypeGuard[StreamedSource]:
    return not source.in_memory


class _Groups:
    """The row groups of a streamed set: fetched a few steps ahead, released behind the last step that needs them."""

    def __init__(self, source: StreamedSource, order: Order, start: int, steps: int) -> None:
        self._source, self._order, self._next, self._steps = source, order, start, steps
        self._fetchers = ThreadPoolExecutor(_FETCHERS, "raycurv-fetch")
        self._needed: deque[set[int]] = deque()  # of every step from the oldest unfinished one on
        self._held: set[int] = set()

    def reach(self, step: int) -> None:
        """Begin to fetch what the steps up to a few after `step` need."""
        for ahead in range(self._next, min(step + _FETCH_AHEAD, self._steps - 1) + 1):
            needed = set(self._order.open_groups(ahead))
            for group in sorted(needed - self._held):
                # An error shows when the batch is made: reading a row fetches its group if it is not there.
                self._fetchers.submit(self._source.fetch, group)
            self._held |= needed
            self._needed.append(needed)
            self._next = ahead + 1

    def leave(self) -> None:
        """Release what only the oldest unfinished step needed."""
        for group in self._needed.popleft().difference(*self._needed):
            self._held.discard(group)
            self._source.release(group)

    def close(self) -> None:
        """Stop fetching and release everything."""
        self._fetchers.shutdown(cancel_futures=True)
        for group in self._held:
            self._source.release(group)
