"""The checkpoints of one run on a disk or in an object store.

A folder holds ``config.json``, the checkpoints such as ``step-000000017.pt``, ``manifest.json`` with size and SHA-256
sum of every complete checkpoint, and at the end ``result.json``. The manifest is written after the checkpoint. It also
names the best checkpoint, if the run chooses one. If it is lost or damaged, checkpoints are found by their names and
checked by the CRC-32 sums that torch stores in them. No pickled object is loaded from the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO

from raycurv.arguments import require_whole
from raycurv.train.checkpoint_file import (
    MALFORMED,
    NAME,
    CheckpointError,
    ManifestEntry,
    file_of,
    parse,
    whole_entry,
    write_state,
)
from raycurv.train.checkpoint_folder import PARTIAL, open_folder
from raycurv.train.configuration import RunConfig
from raycurv.train.records import Result

CONFIG, MANIFEST, RESULT = "config.json", "manifest.json", "result.json"
_MICRO_BATCH = re.compile(r"micro-batch-(\d+)-(\d+)\.json")  # samples at once, worker that stored it


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        uri: a local folder, ``s3://bucket/path`` or ``gs://bucket/path``; created at the first write.
        keep: number of checkpoints to keep.
        patience: seconds to try again while the server of an address is away.

    Attributes:
        before_write: called before anything is written or removed; its error keeps the folder as it is.

    Raises:
        ValueError: `keep` is below 1, or the address is malformed.
    """

    def __init__(self, uri: str | os.PathLike[str], keep: int = 2, patience: float = 0.0) -> None:
        require_whole("CheckpointStore.keep", keep, 1)
        self.uri = os.fspath(uri)
        self.keep = keep
        self.before_write: Callable[[], None] = lambda: None
        self._folder = open_folder(uri, patience)
        self._damaged: set[str] = set()
        self._rejected: dict[str, str] = {}  # reasons why checkpoints that could be loaded cannot be used
        self._unlisted: set[str] = set()  # files that are no whole checkpoints and never were listed
        self._recovered: tuple[list[ManifestEntry], None] | None = None

    def exists(self) -> bool:
        """Whether the folder holds a run, even one that was interrupted before its first checkpoint."""
        return any(self._read(name) is not None for name in (CONFIG, MANIFEST)) or bool(self._checkpoint_names())

    def begun(self) -> bool:
        """Whether the folder holds checkpoints, whole or not."""
        return bool(self._checkpoint_names())

    def newest(self) -> str | None:
        """Address of the newest checkpoint; None if there is none."""
        entries = self._entries()
        return self._folder.uri(entries[-1].file) if entries else None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        entries = self._entries()
        return entries[-1].step if entries else None

    def best(self) -> str | None:
        """Address of the best checkpoint; None if the run has not chosen one."""
        entry = self._best_entry()
        return None if entry is None else self._folder.uri(entry.file)

    def save(self, state: Mapping[str, Any], *, best: bool = False) -> str:
        """Write a checkpoint, list it in the manifest, and remove the oldest ones.

        Args:
            state: tensors, numbers and strings in mappings and lists; ``state["step"]`` names the checkpoint.
            best: whether it is the best one so far, which is kept until there is a better one.

        Returns:
            The address of the checkpoint.

        Raises:
            CheckpointError: it cannot be written; the earlier checkpoints are unchanged.
        """
        return self.write(self.prepare(state), best=best)

    def prepare(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the state of a run what else a checkpoint holds; in the thread of the run."""
        return dict(state)

    def write(self, state: Mapping[str, Any], *, best: bool = False) -> str:
        """Write a checkpoint that :meth:`prepare` has made, as :meth:`save` does; any thread may call it.

        Raises:
            CheckpointError: it cannot be written; the earlier checkpoints are unchanged.
        """
        self.before_write()
        file = file_of(state)
        listed, chosen = self._manifest()
        entry = self._write_checkpoint(file, state)
        self._damaged.discard(file)
        self._rejected.pop(file, None)
        entries = [e for e in listed if e.step < entry.step and e.file not in self._damaged]
        entries = [*entries, entry][-self.keep :]
        chosen = entry if best else chosen
        if chosen is not None and chosen.step > entry.step:
            chosen = None  # of steps that are done again
        manifest: dict[str, Any] = {"version": 1, "checkpoints": [asdict(e) for e in entries]}
        manifest |= {} if chosen is None else {"best": asdict(chosen)}
        try:
            self._write(MANIFEST, json.dumps(manifest, indent=2))
        except CheckpointError:
            with contextlib.suppress(OSError):  # such as those of a disk that is read-only now
                self._folder.remove(file)
            raise
        self._recovered = None
        self._prune({e.file for e in (*entries, chosen) if e is not None} | self._unlisted)
        return self._folder.uri(file)

    def load(self, lacking: Callable[[dict[str, Any]], str] = lambda state: "") -> dict[str, Any] | None:
        """The newest checkpoint that is complete and undamaged, on the CPU; None if none was written.

        If the newest is missing or damaged, falls back to the one before, with a RuntimeWarning. If all that are listed
        are, falls back to files that are whole by their own sums: the manifest may be what is damaged.

        Args:
            lacking: function that names what a checkpoint lacks; empty if it is complete.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        entries = self._entries()
        errors: list[str] = []
        for entry in self._newest_first(entries):
            try:
                if entry.file in self._rejected:
                    raise CheckpointError(self._rejected[entry.file])
                state = self._load(entry)
                if missing := lacking(state):
                    raise CheckpointError(f"the checkpoint {self._folder.uri(entry.file)} lacks {missing}")
            except CheckpointError as error:
                self._damaged.add(entry.file)
                errors.append(str(error))
                continue
            self._damaged.discard(entry.file)
            if errors:
                file = self._folder.uri(entry.file)
                message = f"{'; '.join(errors)}. Falling back to {file} (step {entry.step})"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
            return state
        if entries:
            raise CheckpointError(
                f"no checkpoint in {self.uri} can be read: {'; '.join(errors)}. "
                "Start again under another --run-name, or put back the files from a copy"
            )
        return None

    def reject(self, state: Mapping[str, Any], error: Exception) -> None:
        """Leave a checkpoint out of :meth:`load` from now on, since its content cannot be used.

        Args:
            state: what was loaded.
            error: what went wrong.
        """
        file = file_of(state)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self._rejected[file] = f"the checkpoint {self._folder.uri(file)} cannot be restored ({reason})"

    def _newest_first(self, listed: list[ManifestEntry]) -> Iterator[ManifestEntry]:
        """Order in which checkpoints are tried.

        Yields:
            The listed checkpoints, then files that are whole by their own sums, which are listed from then on.
        """
        yield from reversed(listed)
        found = [entry for entry in map(self._whole, self._checkpoint_names() if listed else []) if entry is not None]
        if found:
            self._recovered = found, None
        yield from reversed(found)

    def load_best(self) -> dict[str, Any]:
        """The best checkpoint, on the CPU.

        Raises:
            CheckpointError: the run has not chosen one, or it cannot be read.
        """
        entry = self._best_entry()
        if entry is None:
            raise CheckpointError(
                f"{self.uri} names no best checkpoint: train with best_metric (--best-metric test/accuracy), or load "
                "the newest one"
            )
        return self._load(entry)

    def config(self) -> RunConfig | None:
        """The configuration of the run; None if the folder holds no run.

        Raises:
            CheckpointError: it cannot be read.
        """
        content = self._read(CONFIG)
        if content is None:
            return None
        try:
            return RunConfig.from_json(content.decode())
        except MALFORMED as error:
            raise CheckpointError(
                f"{self._folder.uri(CONFIG)} holds no configuration of this version: {error}. Put it back from a copy, "
                "or start a new run under another --run-name"
            ) from error

    def begin(self, config: RunConfig) -> None:
        """Store the configuration, and remove the result of an earlier, shorter run.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self.before_write()
        try:
            self._folder.remove(RESULT)  # first: an old result must never stand beside a longer run
        except OSError as error:
            raise CheckpointError(f"cannot remove {self._folder.uri(RESULT)}: {error}") from error
        self._write(CONFIG, config.to_json())

    def finish(self, result: Result) -> None:
        """Store the result of the run, which marks it as finished.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self.before_write()
        self._write(RESULT, result.to_json())

    def finished(self) -> Result | None:
        """The result of the run; None if it has not finished, or with a RuntimeWarning if the result is damaged."""
        content = self._read(RESULT)
        try:
            return None if content is None else Result.from_json(content.decode())
        except MALFORMED as error:
            where = self._folder.uri(RESULT)
            message = (
                f"{where} is damaged ({error}), so the run is not known to be finished: it goes on at its checkpoint"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return None

    def store_micro_batch(self, size: int, rank: int) -> None:
        """Store how many samples a worker computes at once from the next attempt on, since the memory ran out.

        Args:
            size: number of samples.
            rank: the worker that stores it; several may do so at a time.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self.before_write()
        self._write(f"micro-batch-{size}-{rank}.json", json.dumps({"micro_batch": size}))

    def micro_batch(self) -> int | None:
        """How many samples a worker computes at once, if the memory ran out before; None if it did not.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        sizes = [int(found[1]) for found in map(_MICRO_BATCH.fullmatch, self._names()) if found and int(found[1]) > 0]
        return min(sizes, default=None)

    def _read(self, name: str) -> bytes | None:
        try:
            return self._folder.read(name)
        except OSError as error:
            raise CheckpointError(f"cannot read {self._folder.uri(name)}: {error}") from error

    def _write(self, name: str, text: str) -> None:
        self._write_file(name, lambda file: _write_all(file, text.encode()))

    def _write_file(self, name: str, fill: Callable[[BinaryIO], None]) -> None:
        try:
            self._folder.write(name, fill)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._folder.uri(name)}: {error}. Earlier checkpoints are unchanged: free disk space "
                "or correct the permissions, and go on with --resume"
            ) from error

    def _write_checkpoint(self, file: str, state: Mapping[str, Any]) -> ManifestEntry:
        entries: list[ManifestEntry] = []
        self._write_file(file, lambda target: entries.append(write_state(target, file, state)))
        return entries[0]

    def _entries(self) -> list[ManifestEntry]:
        return self._manifest()[0]

    def _best_entry(self) -> ManifestEntry | None:
        return self._manifest()[1]

    def _manifest(self) -> tuple[list[ManifestEntry], ManifestEntry | None]:
        """The checkpoints in the manifest, oldest first, and the best one if there is one.

        If the manifest is lost or damaged, these are the files that are whole checkpoints, with a RuntimeWarning.

        Raises:
            CheckpointError: it is lost or damaged, and no file is a whole checkpoint.
        """
        if self._recovered is not None:
            return self._recovered
        content = self._read(MANIFEST)
        reason = "is missing"
        try:
            values = {"checkpoints": []} if content is None else json.loads(content)
            entries = [ManifestEntry(**entry) for entry in values["checkpoints"]]
            best = ManifestEntry(**values["best"]) if "best" in values else None
        except MALFORMED as error:
            entries, best, reason = [], None, f"is not a manifest of checkpoints ({error})"
        if entries:
            return sorted(entries, key=lambda entry: entry.step), best
        if found := self._recover(reason):
            self._recovered = found, None
        return found, None

    def _recover(self, reason: str) -> list[ManifestEntry]:
        """The whole checkpoints of a folder without a manifest, oldest first; others are never removed.

        Raises:
            CheckpointError: there are files of checkpoints, and none is whole.
        """
        names, where = self._checkpoint_names(), self._folder.uri(MANIFEST)
        found = [entry for entry in map(self._whole, names) if entry is not None]
        self._unlisted = set(names) - {entry.file for entry in found}
        if names and not found:
            raise CheckpointError(
                f"{where} {reason}, and none of {', '.join(names)} is a whole checkpoint: put back the files from a "
                "copy, or start again under another --run-name"
            )
        if found:
            steps = ", ".join(str(entry.step) for entry in found)
            message = f"{where} {reason}; whole checkpoints are there of the steps {steps}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        return found

    def _checkpoint_names(self) -> list[str]:
        return [name for name in self._names() if NAME.fullmatch(name)]

    def _names(self) -> list[str]:
        try:
            return self._folder.names()
        except OSError as error:
            raise CheckpointError(f"cannot list {self.uri}: {error}") from error

    def _whole(self, name: str) -> ManifestEntry | None:
        """The entry of a file whose own sums are right; None if it is damaged."""
        content = self._read(name)
        return None if content is None else whole_entry(name, content)

    def _load(self, entry: ManifestEntry) -> dict[str, Any]:
        where = self._folder.uri(entry.file)
        content = self._read(entry.file)
        if content is None:
            raise CheckpointError(f"the checkpoint {where} is missing")
        if not entry.holds(content):
            raise CheckpointError(f"the checkpoint {where} is damaged ({len(content)} bytes of {entry.size})")
        return parse(content, where)

    def _prune(self, keep: set[str]) -> None:
        """Remove old checkpoints and the files of interrupted writes."""
        try:
            for name in self._folder.names():
                if NAME.fullmatch(name.removesuffix(PARTIAL)) and name not in keep:
                    self._folder.remove(name)
        except OSError as error:
            warnings.warn(f"cannot remove old checkpoints in {self.uri}: {error}", RuntimeWarning, stacklevel=3)


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.write(content)
