"""A folder on a disk or in an object store whose files are written atomically: as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

PARTIAL = ".partial"


class Folder(Protocol):
    """Files by name, without subfolders."""

    def uri(self, name: str) -> str:
        """Address of a file, for messages."""

    def names(self) -> list[str]:
        """Names of the files; none if the folder does not exist."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file."""

    def write(self, name: str, fill: Callable[[BinaryIO], None]) -> None:
        """Create or replace a file with what `fill` writes; after an error the former file is unchanged."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def remove_if_empty(self) -> None:
        """Remove the folder if it holds nothing."""


def open_folder(uri: str | os.PathLike[str], patience: float = 0.0) -> Folder:
    """The folder at a local path or at an ``s3://`` or ``gs://`` address (which needs pyarrow).

    Args:
        uri: path or address.
        patience: seconds to try again while a server is away.
    """
    text = os.fspath(uri)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return ObjectFolder(text, patience) if "://" in text else LocalFolder(text)


class LocalFolder:
    """A folder of a file system: files are written under a temporary name, flushed to the disk, and renamed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser().absolute()

    def uri(self, name: str) -> str:
        """The absolute path of the file."""
        return str(self._path / name)

    def names(self) -> list[str]:
        """Names of the files."""
        return sorted(entry.name for entry in self._path.iterdir()) if self._path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file.

        Raises:
            OSError: it cannot be read, or is no regular file, such as a named pipe, which could be waited for for ever.
        """
        path = self._path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            _require_regular(descriptor, path)
            return file.read()

    def write(self, name: str, fill: Callable[[BinaryIO], None]) -> None:
        """Create or replace a file with what `fill` writes."""
        self._path.mkdir(parents=True, exist_ok=True)
        temporary = self._path / (name + PARTIAL)
        temporary.unlink(missing_ok=True)  # of a killed writer; never written through, since it may be a symbolic link
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._flush_names()

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self._path / name).unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Remove the folder if it holds nothing."""
        with contextlib.suppress(OSError):
            self._path.rmdir()

    def _flush_names(self) -> None:
        # The rename itself outlives a power cut only once the directory is on the disk.
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _require_regular(descriptor: int, path: Path) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


class ObjectFolder:
    """A prefix of an object store, where an upload becomes visible as a whole when it is complete."""

    def __init__(self, uri: str, patience: float = 0.0) -> None:
        from raycurv.data import storage  # pyarrow is only needed for addresses that are not local

        self._storage: Any = storage
        self._uri, self._patience = uri, patience
        self._system, self._path = storage.resolve(uri)

    def uri(self, name: str) -> str:
        """The address of the file."""
        return str(self._storage.join(self._uri, name))

    def names(self) -> list[str]:
        """Names of the files."""
        return list(self._storage.retried(self._names, self._patience))

    def _names(self) -> list[str]:
        from pyarrow import fs

        with self._storage.explained(self._uri):
            found = self._system.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file.

        Raises:
            OSError: it cannot be read.
        """
        content: bytes | None = self._storage.retried(lambda: self._read(name), self._patience)
        return content

    def _read(self, name: str) -> bytes | None:
        with self._storage.explained(self.uri(name)):
            try:
                with self._system.open_input_stream(f"{self._path}/{name}") as stream:
                    return bytes(stream.readall())
            except FileNotFoundError:
                return None
            except OSError:
                if name in self._names():
                    raise
                return None  # removed between the requests for its size and for its content

    def write(self, name: str, fill: Callable[[BinaryIO], None]) -> None:
        """Create or replace a file with what `fill` writes."""
        # In memory first: closing a stream would complete the upload even of a file that lacks its end.
        content = io.BytesIO()
        fill(content)
        self._storage.retried(lambda: self._write(name, content), self._patience)

    def _write(self, name: str, content: io.BytesIO) -> None:
        with (
            self._storage.explained(self.uri(name)),
            self._system.open_output_stream(f"{self._path}/{name}") as stream,
        ):
            stream.write(content.getbuffer())

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        self._storage.retried(lambda: self._remove(name), self._patience)

    def _remove(self, name: str) -> None:
        with self._storage.explained(self.uri(name)):
            try:
                self._system.delete_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return

    def remove_if_empty(self) -> None:
        """Do nothing: an object store has no folders."""
