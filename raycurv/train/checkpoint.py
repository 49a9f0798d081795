"""The checkpoints of one run on a disk or in an object store.

A folder holds ``config.json``, the checkpoints ``step-000000017.pt``, ``manifest.json`` with the size and the SHA-256
sum of every complete checkpoint (written after them), and at the end ``result.json``. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

import torch

from raycurv.train.checkpoint_folder import PARTIAL, open_folder
from raycurv.train.configuration import RunConfig
from raycurv.train.records import Result

CONFIG, MANIFEST, RESULT = "config.json", "manifest.json", "result.json"
# What may change when a run is resumed, because no update depends on it. Methods whose step sizes follow the length of
# the run refuse other epochs and max_steps themselves, unless change_horizon asks for them.
FREE_TO_CHANGE = frozenset(
    (
        "name",
        "epochs",
        "max_steps",
        "stop_after",
        "change_horizon",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "evaluate_every",
        "gradient_norm",
        "batch_error",
    )
)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read, or must not be used; the message says which and what to do."""


@dataclass(frozen=True)
class ManifestEntry:
    """One complete checkpoint in the manifest."""

    step: int
    file: str
    size: int
    sha256: str


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        uri: a local folder, ``s3://bucket/path`` or ``gs://bucket/path``; made when something is written.
        keep: how many checkpoints stay.

    Raises:
        ValueError: `keep` is below 1, or the address cannot be understood.
    """

    def __init__(self, uri: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"CheckpointStore.keep is {keep}; it must be at least 1")
        self.uri = os.fspath(uri)
        self.keep = keep
        self._folder = open_folder(uri)
        self._damaged: set[str] = set()

    def exists(self) -> bool:
        """Whether a run lies here, even one that was interrupted before its first checkpoint."""
        return self._read(CONFIG) is not None or self._read(MANIFEST) is not None

    def newest(self) -> str | None:
        """Where the newest checkpoint lies, None if there is none."""
        entries = self._entries()
        return self._folder.uri(entries[-1].file) if entries else None

    def save(self, state: Mapping[str, Any]) -> str:
        """Write a checkpoint, list it in the manifest, remove those that are too old, and say where it lies.

        Args:
            state: tensors, numbers and strings in mappings and lists; ``state["step"]`` names the checkpoint.

        Raises:
            CheckpointError: it could not be written; the earlier checkpoints are still there.
        """
        file = f"step-{state['step']:09d}.pt"
        entry = self._write_checkpoint(file, state)
        self._damaged.discard(file)
        entries = [e for e in self._entries() if e.step < entry.step and e.file not in self._damaged]
        entries = [*entries, entry][-self.keep :]
        manifest = {"version": 1, "checkpoints": [asdict(e) for e in entries]}
        try:
            self._write(MANIFEST, json.dumps(manifest, indent=2))
        except CheckpointError:
            self._folder.remove(file)
            raise
        self._prune({e.file for e in entries})
        return self._folder.uri(file)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is complete and undamaged, on the CPU; None if none was ever written.

        Falls back to the one before, with a RuntimeWarning, when the newest is missing or damaged.

        Raises:
            CheckpointError: there are checkpoints, and none of them can be read.
        """
        entries = self._entries()
        troubles: list[str] = []
        for entry in reversed(entries):
            try:
                state = self._load(entry)
            except CheckpointError as error:
                self._damaged.add(entry.file)
                troubles.append(str(error))
                continue
            if troubles:
                found = self._folder.uri(entry.file)
                said = "; ".join(troubles)
                warnings.warn(f"{said}. Falling back to {found} (step {entry.step})", RuntimeWarning, stacklevel=2)
            return state
        if entries:
            raise CheckpointError(
                f"no checkpoint in {self.uri} can be read: {'; '.join(troubles)}. "
                "Start again under another --run-name, or put back the files from a copy"
            )
        return None

    def config(self) -> RunConfig | None:
        """The configuration of the run that lies here, None if there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        content = self._read(CONFIG)
        if content is None:
            return None
        try:
            return RunConfig.from_json(content.decode())
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self._folder.uri(CONFIG)} holds no configuration of this version: {error}"
            ) from error

    def begin(self, config: RunConfig) -> None:
        """Write down the configuration and take back that the run has finished.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            self._folder.remove(RESULT)  # first: an old result must never stand beside a longer run
        except OSError as error:
            raise CheckpointError(f"cannot remove {self._folder.uri(RESULT)}: {error}") from error
        self._write(CONFIG, config.to_json())

    def finish(self, result: Result) -> None:
        """Mark the run as finished.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self._write(RESULT, result.to_json())

    def finished(self) -> Result | None:
        """The result of the run, None if it has not finished."""
        content = self._read(RESULT)
        return None if content is None else Result.from_json(content.decode())

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
                f"cannot write {self._folder.uri(name)}: {error}. Earlier checkpoints are untouched: "
                "make room or mend the access, and go on with --resume"
            ) from error

    def _write_checkpoint(self, file: str, state: Mapping[str, Any]) -> ManifestEntry:
        summed: list[_Summing] = []

        def fill(target: BinaryIO) -> None:
            summed.append(_Summing(target))
            torch.save(dict(state), cast("BinaryIO", summed[0]))
            summed[0].check()

        self._write_file(file, fill)
        return ManifestEntry(int(state["step"]), file, summed[0].size, summed[0].sha256.hexdigest())

    def _entries(self) -> list[ManifestEntry]:
        content = self._read(MANIFEST)
        if content is None:
            return []
        try:
            entries = [ManifestEntry(**entry) for entry in json.loads(content)["checkpoints"]]
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self._folder.uri(MANIFEST)} is no manifest of checkpoints: {error}") from error
        return sorted(entries, key=lambda entry: entry.step)

    def _load(self, entry: ManifestEntry) -> dict[str, Any]:
        where = self._folder.uri(entry.file)
        content = self._read(entry.file)
        if content is None:
            raise CheckpointError(f"the checkpoint {where} is gone")
        if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise CheckpointError(
                f"the checkpoint {where} is damaged ({len(content)} bytes, {entry.size} were written)"
            )
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"the checkpoint {where} cannot be loaded: {error}") from error
        return dict(state)

    def _prune(self, keep: set[str]) -> None:
        """Remove old checkpoints, and what interrupted writes have left."""
        try:
            for name in self._folder.names():
                ours = name.startswith("step-") and name.endswith((".pt", ".pt" + PARTIAL))
                if ours and name not in keep:
                    self._folder.remove(name)
        except OSError as error:
            warnings.warn(f"old checkpoints in {self.uri} stay: {error}", RuntimeWarning, stacklevel=3)


def differences(stored: RunConfig, asked: RunConfig) -> list[str]:
    """The fields in which two configurations of one run contradict each other, as ``field: stored → asked``."""
    old, new = (_flat(json.loads(config.to_json())) for config in (stored, asked))
    missing = object()
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, missing), new.get(name, missing)
        if before != after and name not in FREE_TO_CHANGE:
            said = ["unset" if value is missing else repr(value) for value in (before, after)]
            found.append(f"{name}: {said[0]} → {said[1]}")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.write(content)


class _Summing:
    """Writes through to a file while it counts and sums; keeps an error back until `check`.

    An exception inside torch's archive writer would reach the user as a complaint about positions in the archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        count = memoryview(content).nbytes
        if self._error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self._error = error
        self.size += count
        self.sha256.update(content)
        return count

    def flush(self) -> None:
        """Nothing: the folder flushes when the file is complete."""

    def check(self) -> None:
        if self._error is not None:
            raise self._error
