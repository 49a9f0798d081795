from __future__ import annotations

import stat
from pathlib import Path

import pytest

from raycurv.service import connection


def test_the_token_of_a_private_ray_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    connection._protect_token()
    token = tmp_path / ".ray" / "auth_token"
    first = token.read_text()

    assert len(first) == 64
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    token.chmod(0o644)  # as Ray makes it
    connection._protect_token()
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == (first, 0o600)
