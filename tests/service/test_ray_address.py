"""A wrong address of a Ray cluster ends in seconds, with one paragraph."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from raycurv.data.digits import write_digits
from raycurv.service import ray_address
from raycurv.service.connection import _why_refused
from raycurv.service.ray_address import ConnectionRefused, named_cluster, require_reachable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "REACH_SECONDS", 0.1)
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(ray_address, "_own_address", lambda: "127.0.0.1")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def refusal(address: str) -> str:
    with pytest.raises(ConnectionRefused) as caught:
        require_reachable(address, "RAY_ADDRESS")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_where_nobody_listens_the_address_its_source_and_what_to_do_are_named() -> None:
    address = f"127.0.0.1:{closed_port()}"
    assert refusal(address).startswith(f"no Ray answers at {address} (RAY_ADDRESS): Connection refused. Start the")


def test_another_service_and_one_that_never_answers_are_refused() -> None:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    assert "what listens there is no Ray" in refusal(f"127.0.0.1:{web.server_address[1]}")
    web.shutdown()
    web.server_close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in refusal(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_of_grpc_is_accepted() -> None:
    server = grpc.server(ThreadPoolExecutor(1))  # Ray's own servers are of the same library
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    require_reachable(f"127.0.0.1:{port}", "RAY_ADDRESS")
    require_reachable(f"ray://127.0.0.1:{port}", "RAY_ADDRESS")
    require_reachable("auto", "RAY_ADDRESS")
    server.stop(None).wait()


def test_loopback_may_be_the_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_own_address", lambda: "10.0.0.1")
    monkeypatch.setattr(ray_address, "_problem_at", lambda host, port: "" if host == "10.0.0.1" else "refused")
    require_reachable("127.0.0.1:6379", "RAY_ADDRESS")
    assert "no Ray answers at other:6379" in refusal("other:6379")


def test_the_address_of_the_dashboard_is_explained() -> None:
    message = refusal("http://127.0.0.1:8265")
    assert "the address that `ray job submit` takes" in message
    assert "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python" in message


@pytest.mark.parametrize("address", ["nonsense", "host", "host:port", "ray://host"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert f"RAY_ADDRESS is {address!r}; it must be HOST:PORT, ray://HOST:PORT, auto or local" in refusal(address)


def test_the_address_comes_from_the_environment_or_from_the_last_cluster_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert named_cluster() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert named_cluster() == ("auto", "RAY_ADDRESS")
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("10.0.0.1:6379")
    assert named_cluster() == ("10.0.0.1:6379", str(note))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert named_cluster() is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert named_cluster() == ("head:6379", "RAY_ADDRESS")


@pytest.mark.parametrize(
    "said",
    [
        "Authentication failed",
        "Failed to connect to GCS. Last connection error: Traceback …\nRpcError: Unauthenticated",
        "Failed to connect to GCS. Last connection error: Traceback …\nInvalidAuthToken",
    ],
)
def test_a_refused_token_is_explained_in_place_of_forty_lines(said: str) -> None:
    error = ConnectionError("Failed to connect to Ray cluster at head:6379")  # as Ray does
    error.__cause__ = RuntimeError(said + "\na line of help" * 40)
    message = _why_refused(error, ("head:6379", "RAY_ADDRESS"))
    assert message.startswith("the Ray at head:6379 wants a token: set RAY_AUTH_MODE=token")
    assert "\n" not in message


@pytest.mark.slow
def test_a_command_with_a_wrong_address_ends_with_one_paragraph(tmp_path: Path) -> None:
    address = f"127.0.0.1:{closed_port()}"
    write_digits(tmp_path / "data" / "digits")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    variables = {"RAY_ADDRESS": address, "RAYCURV_DATA": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "raycurv.cli", "train", "digits", "--runs", str(tmp_path / "runs")],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert error_in(done.stderr).startswith(f"no Ray answers at {address} (RAY_ADDRESS): Connection refused")
    assert "Failed to connect to GCS" not in done.stdout + done.stderr
    assert not (tmp_path / "runs" / "failures").exists()


def error_in(text: str) -> str:
    """The one paragraph that an error is."""
    (line,) = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return line
