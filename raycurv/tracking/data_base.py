"""MLflow in a SQLite file: made as a whole, and written so that a power cut takes nothing back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

_SQLITE = "sqlite:///"


def make_data_base(uri: str) -> None:
    """Make MLflow's tables in a SQLite file that does not exist yet; for any other address, do nothing.

    The file has another name until it is complete: MLflow cannot use one whose tables were made in part, because the
    disk was full or the process was killed.

    Args:
        uri: tracking URI.

    Raises:
        OSError: the file cannot be written.
        SQLAlchemyError: the tables cannot be written.
    """
    path = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*.partial"):
        number = left.suffixes[-2][1:]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            _remove(left)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        client = MlflowClient(_SQLITE + str(partial))
        client.get_experiment_by_name("Default")  # makes the tables
        client._tracking_client.store.engine.dispose()
        _publish(partial, path)
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def _publish(partial: Path, path: Path) -> None:
    """Give a file its name, unless another process, with another folder of runs, was faster."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            partial.replace(path)


def flush_commits(client: MlflowClient) -> None:
    """Have SQLite flush the end of every transaction to the disk, in a data base that this process writes.

    By default, a power cut some seconds after a transaction may take it back: its journal is removed, but the folder is
    not flushed. By then, the queue no longer has what MLflow has taken.

    Args:
        client: client of MLflow; of a server, nothing changes.
    """
    engine: Any = getattr(client._tracking_client.store, "engine", None)
    if engine is None or engine.dialect.name != "sqlite":
        return
    from sqlalchemy import event

    if not event.contains(engine, "connect", _flush_folder):
        event.listen(engine, "connect", _flush_folder)
        engine.dispose()  # connections without it


def _flush_folder(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA synchronous = EXTRA")


def _remove(path: Path) -> None:
    for suffix in ("", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
