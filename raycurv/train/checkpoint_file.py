"""One file of a checkpoint: its entry in the manifest, its content, and the sums that tell whether it is whole.

No pickled object is loaded from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch

# Errors of a file that holds something else than it should.
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
NAME = re.compile(r"step-(\d{9,})\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used; the message has its address and the remedy."""


@dataclass(frozen=True)
class ManifestEntry:
    """One complete checkpoint in the manifest.

    Attributes:
        step: number of updates before it.
        file: name of its file.
        size: bytes of the file.
        sha256: hexadecimal SHA-256 sum of the file.
    """

    step: int
    file: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        named = isinstance(self.file, str) and NAME.fullmatch(self.file)
        if not named or not isinstance(self.sha256, str) or {type(self.step), type(self.size)} != {int}:
            raise ValueError(f"it lists {dataclasses.asdict(self)}, which is no checkpoint")

    def holds(self, content: bytes) -> bool:
        """Whether the file has this content."""
        return len(content) == self.size and hashlib.sha256(content).hexdigest() == self.sha256


def file_of(state: Mapping[str, Any]) -> str:
    """Name of the file of a state."""
    return f"step-{state['step']:09d}.pt"


def write_state(target: BinaryIO, file: str, state: Mapping[str, Any]) -> ManifestEntry:
    """Write a state, and return its entry.

    Raises:
        OSError: it cannot be written.
    """
    writer = _HashingWriter(target)
    torch.save(dict(state), cast("BinaryIO", writer))
    writer.raise_error()
    return ManifestEntry(int(state["step"]), file, writer.size, writer.sha256.hexdigest())


def whole_entry(name: str, content: bytes) -> ManifestEntry | None:
    """The entry of a file whose own sums are right; None if it is damaged."""
    try:
        if zipfile.ZipFile(io.BytesIO(content)).testzip() is not None:
            return None
        step = int(parse(content, name)["step"])
    except Exception:  # damaged archives raise many kinds
        return None
    return ManifestEntry(step, name, len(content), hashlib.sha256(content).hexdigest())


def parse(content: bytes, where: str) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        CheckpointError: it is none.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise many kinds
        raise CheckpointError(f"the checkpoint {where} cannot be loaded: {error}") from error
    if not isinstance(state, Mapping) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"the checkpoint {where} cannot be loaded: it is no mapping with a step")
    return dict(state)


class _HashingWriter:
    """Writes to a file, counts the bytes and hashes them; keeps an error until `raise_error`.

    torch's archive writer would hide an exception behind one about positions in the archive.
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
        """Do nothing: the folder flushes the complete file."""

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error
