from __future__ import annotations

import os
import time

import pytest
from pyarrow import fs

from raycurv.data import storage


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("here", tmp_path / "here", f"file://{tmp_path}/here"):
        system, path = storage.resolve(uri)
        assert isinstance(system, fs.LocalFileSystem)
        assert path == str(tmp_path / "here")


def test_s3_round_trip(s3_server):
    system, path = storage.resolve(storage.join(s3_server(), "a", "b.bin"))
    with system.open_output_stream(path) as stream:
        stream.write(b"bytes")
    with system.open_input_file(path) as file:
        assert file.read() == b"bytes"


def test_an_uri_can_name_its_server(s3_server, monkeypatch):
    uri = s3_server() + "?endpoint_override=" + os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    system, path = storage.resolve(storage.join(uri, "x"))
    system.open_output_stream(path).close()
    assert system.get_file_info(path).type == fs.FileType.File


def test_a_dead_server_is_a_clear_error_soon(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    system, path = storage.resolve("s3://bucket/x")
    start = time.monotonic()
    message = r"s3://bucket/x: .*Check that http://127\.0\.0\.1:9 can be reached"
    with pytest.raises(storage.StorageError, match=message), storage.explained("s3://bucket/x"):
        system.open_input_file(path)
    assert time.monotonic() - start < 30


def test_google_addresses_open_without_touching_the_network():
    system, path = storage.resolve("gs://bucket/folder/?anonymous=true")
    assert isinstance(system, fs.GcsFileSystem)
    assert path == "bucket/folder"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "empty"),
        ("http://host/x", "scheme 'http'"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/x?regoin=a", "unknown option regoin"),
        ("s3://aaa/../bbb/x", "could lead into another bucket"),
        ("s3://aaa/%2e%2e/bbb/x", "could lead into another bucket"),
        ("s3://aaa/x/..", "could lead into another bucket"),
        ("s3://../bbb/x", "could lead into another bucket"),
        ("gs://aaa/./x", "could lead into another bucket"),
    ],
)
def test_addresses_that_cannot_be_meant(uri, message):
    with pytest.raises(ValueError, match=message):
        storage.resolve(uri)


@pytest.mark.parametrize(
    ("reason", "calls"),
    [("AWS Error NETWORK_CONNECTION during PutObject operation", 3), ("AWS Error ACCESS_DENIED during PutObject", 1)],
)
def test_only_what_may_pass_is_tried_again(reason: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    found: list[int] = []

    def write() -> int:
        found.append(len(found))
        if len(found) < 3:
            raise storage.StorageError(reason)
        return 7

    if calls == 1:
        with pytest.raises(storage.StorageError, match="DENIED"):
            storage.retried(write, 60.0)
    else:
        assert storage.retried(write, 60.0) == 7
    assert len(found) == calls
