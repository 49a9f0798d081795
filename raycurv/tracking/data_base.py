"""A new data base of MLflow in a SQLite file."""

from __future__ import annotations

import contextlib
from pathlib import Path

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
    partial = path.with_name(path.name + ".partial")
    _remove(partial)
    try:
        client = MlflowClient(_SQLITE + str(partial))
        client.get_experiment_by_name("Default")  # makes the tables
        client._tracking_client.store.engine.dispose()
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(partial)
        raise


def _remove(path: Path) -> None:
    for suffix in ("", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
