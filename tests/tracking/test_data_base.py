"""A new data base of MLflow in a SQLite file."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from raycurv.tracking import data_base
from raycurv.tracking.data_base import make_data_base


def test_a_new_data_base_is_complete_or_absent_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "mlflow.db"
    stale = path.with_name(f"mlflow.db.{2**22 + 1}.partial")  # of a process that was killed
    path.parent.mkdir()
    stale.write_text("")

    def make(content: bytes, uri: str) -> SimpleNamespace:
        Path(uri.removeprefix("sqlite:///")).write_bytes(content)
        assert not path.exists() or path.read_bytes() == b"first"
        if content == b"full":
            raise OSError("No space left on device")
        return SimpleNamespace(get_experiment_by_name=lambda name: None, _tracking_client=Mock())

    for content in (b"full", b"first"):
        monkeypatch.setattr(data_base, "MlflowClient", partial(make, content))
        with pytest.raises(OSError, match="No space") if content == b"full" else contextlib.nullcontext():
            make_data_base(f"sqlite:///{path}")
    assert path.read_bytes() == b"first"
    monkeypatch.setattr(Path, "exists", lambda self: False)  # another process makes it meanwhile
    monkeypatch.setattr(data_base, "MlflowClient", partial(make, b"second"))
    make_data_base(f"sqlite:///{path}")
    assert [p.name for p in path.parent.iterdir()] == ["mlflow.db"]
    assert path.read_bytes() == b"first"
