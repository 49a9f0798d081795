"""Checkpoints off the step's path: a snapshot is taken at once and written by a thread, one at a time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import torch

from raycurv.train.checkpoint import CheckpointStore


class CheckpointWriter:
    """Writes the checkpoints of a run while its steps go on.

    At most one is on its way: the next one waits for it. A checkpoint counts once it is complete, as before. If the
    device has no room for a snapshot, the state is written before the next step.

    Args:
        store: the checkpoints.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._written: str | None = None
        self._error: BaseException | None = None

    def save(self, state: Mapping[str, Any], *, best: bool) -> None:
        """Begin to write a checkpoint, once the one before is complete.

        Args:
            state: state of the run, which may change after this call.
            best: whether it is the best one so far.

        Raises:
            CheckpointError: this one or the one before cannot be written.
        """
        self.wait()
        prepared = self._store.prepare(state)
        try:
            snapshot = copy.deepcopy(prepared)  # with the tensors that share their memory
        except torch.OutOfMemoryError:
            self._written = self._store.write(prepared, best=best)
            return
        self._thread = threading.Thread(target=self._write, args=(snapshot, best), name="checkpoint-writer")
        self._thread.start()

    def take_written(self) -> str | None:
        """Address of a checkpoint that is complete since the last call; None if there is none.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        written, self._written = self._written, None
        return written

    def wait(self) -> None:
        """Wait for the checkpoint that is on its way.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, snapshot: Mapping[str, Any], best: bool) -> None:
        try:
            self._written = self._store.write(snapshot, best=best)
        except BaseException as error:  # raised in the thread of the run
            self._error = error
