"""Queue on disk: entries survive the death of the process that added them, and the next process finds them.

An entry is added in memory, and :meth:`Spool.save` writes all that are new in one flushed transaction of SQLite. The
memory in use does not grow with the queue, unless the disk is full. The process that has a file open holds its lock,
so that nobody takes the entries of a living process.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Collection
from pathlib import Path

SUFFIX = ".spool"


class SpoolInUse(Exception):
    """Another process has the file open."""


class SpoolDamaged(Exception):
    """The file is not a spool, or SQLite finds it damaged."""


class Spool:
    """Entries in the order in which they came, each in a named line.

    Threads may share a spool.

    Args:
        path: the file; made when the first entries are saved, removed when it is closed without entries.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._newest = 0
        self._unsaved: dict[int, tuple[str, bytes]] = {}
        self._removed: set[int] = set()  # still in the file, because it could not be written
        self.error = ""

    @classmethod
    def open(cls, path: Path) -> Spool:
        """Open the file of a process that has died.

        Raises:
            SpoolInUse: the process still runs, or the file is gone.
            SpoolDamaged: the file is not a spool.
            OSError: the file cannot be read or written.
        """
        spool = cls(path)
        try:
            spool._connect("rw")
            (spool._newest,) = spool._execute("SELECT coalesce(max(id), 0) FROM entries").fetchone()
        except sqlite3.OperationalError as error:
            spool._disconnect()
            if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN):
                raise SpoolInUse(str(error)) from error
            raise OSError(str(error)) from error
        except sqlite3.DatabaseError as error:
            spool._disconnect()
            raise SpoolDamaged(str(error)) from error
        return spool

    def add(self, line: str, entry: bytes) -> None:
        """Add an entry in memory."""
        with self._lock:
            self._newest += 1
            self._unsaved[self._newest] = (line, entry)

    def save(self) -> bool:
        """Write what is new to the disk.

        Returns:
            Whether everything is on the disk; if not, it is kept in memory and `error` has the reason.
        """
        with self._lock:
            if self._closed or not (self._unsaved or self._removed):
                return not self._unsaved
            try:
                self._connect("rwc")
                self._write()
            except (sqlite3.Error, OSError) as error:
                self.error = str(error)
                return not self._unsaved
            self._unsaved, self._removed, self.error = {}, set(), ""
            return True

    def waiting(self, line: str, after: int = 0, most: int = 500) -> list[tuple[int, bytes]]:
        """The oldest entries of a line, by number.

        Args:
            line: name of the line.
            after: number of the newest entry to leave out.
            most: number of entries, at most.
        """
        with self._lock:
            if self._closed:
                return []
            found = []
            if self._connection is not None:
                query = "SELECT id, entry FROM entries WHERE line = ? AND id > ? ORDER BY id LIMIT ?"
                rows = self._execute(query, (line, after, most + len(self._removed)))
                found = [(number, entry) for number, entry in rows if number not in self._removed]
            found += [(n, entry) for n, (of, entry) in self._unsaved.items() if of == line and n > after]
            return found[:most]

    def remove(self, numbers: Collection[int]) -> None:
        """Remove entries for good."""
        with self._lock:
            if self._closed:
                return
            saved = [number for number in numbers if self._unsaved.pop(number, None) is None]
            self._removed.update(saved)
            if saved:
                self.save()

    def __len__(self) -> int:
        """Number of entries."""
        with self._lock:
            saved = 0
            if self._connection is not None:
                (saved,) = self._execute("SELECT count(*) FROM entries").fetchone()
            return int(saved) - len(self._removed) + len(self._unsaved)

    def close(self) -> int:
        """Save, and give the file up; without entries, remove it.

        Returns:
            Number of entries that are lost, because they cannot be written.
        """
        with self._lock:
            if self._closed:
                return 0
            self.save()
            empty = len(self) == 0
            there = self._connection is not None
            self._disconnect()
            self._closed = True
            if empty and there:
                # On a disk that is read-only now, the file stays: the next start sends again what it holds.
                with contextlib.suppress(OSError):
                    for suffix in ("", "-wal", "-shm"):
                        Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return len(self._unsaved)

    def _connect(self, mode: str) -> None:
        if self._connection is not None:
            return
        if mode == "rwc":
            self.path.parent.mkdir(parents=True, exist_ok=True)
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        self._connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            # Exclusive locking needs no shared memory, which network file systems lack; the lock ends with the process.
            for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
                self._execute(f"PRAGMA {pragma}")
            self._execute("CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, line TEXT, entry BLOB)")
        except sqlite3.Error:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self) -> None:
        self._execute("BEGIN IMMEDIATE")
        try:
            new = [(number, line, entry) for number, (line, entry) in self._unsaved.items()]
            assert self._connection is not None
            self._connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", new)
            self._connection.executemany("DELETE FROM entries WHERE id = ?", [(number,) for number in self._removed])
            self._execute("COMMIT")
        except sqlite3.Error:
            if self._connection is not None and self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    def _execute(self, query: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        assert self._connection is not None
        return self._connection.execute(query, values)
