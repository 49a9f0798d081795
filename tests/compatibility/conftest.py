from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

FILES = Path(__file__).with_name("version_0_1.tar.gz")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the version before the restructuring wrote, unpacked; see README.md."""
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path / "data"))
    return tmp_path
