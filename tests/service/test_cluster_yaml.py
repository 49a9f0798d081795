"""The cluster's description, against Ray's own schema."""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raycurv.service import Cluster
from raycurv.tracking.client import Tracking, TrackingError
from tests.service.driving import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def described() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def commands(described: dict[str, Any]) -> str:
    parts = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return "\n".join(command for part in parts for command in described[part])


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_it(described: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(described)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == 32


@pytest.mark.filterwarnings("ignore")
def test_ray_refuses_a_field_that_it_does_not_know(described: dict[str, Any]) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    described["max_wrokers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(described))


def test_every_start_of_ray_asks_for_the_token(described: dict[str, Any]) -> None:
    assert "export RAY_AUTH_MODE=token" in commands(described)
    starts = [line for line in commands(described).splitlines() if "ray start" in line]
    assert len(starts) == 2
    assert all("source ~/.raycurv.env" in line for line in starts)
    assert described["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_and_mlflow_are_reached_through_ssh_alone(described: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in commands(described)
    assert "mlflow server --host 127.0.0.1" in commands(described)
    assert "0.0.0.0" not in commands(described)


def test_mlflow_wants_a_password_and_answers_to_its_own_name_alone(described: dict[str, Any]) -> None:
    assert "--app-name basic-auth --allowed-hosts 127.0.0.1:5000,localhost:5000" in commands(described)
    assert "mlflow[auth]" in commands(described)
    assert described["file_mounts"]["~/.raycurv.mlflow"] == "~/.raycurv.mlflow"


PASSWORD = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def mlflow_server(described: dict[str, Any], tmp_path: Path) -> Iterator[int]:
    """MLflow as the head starts it, in a home of its own; yields its port."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    login = f"export MLFLOW_TRACKING_USERNAME=raycurv MLFLOW_TRACKING_PASSWORD={PASSWORD}\n"
    (tmp_path / ".raycurv.mlflow").write_text(login)
    environment = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (setup,) = (line for line in described["setup_commands"] if line.startswith("printf"))
    (start,) = (line for line in described["head_start_ray_commands"] if "mlflow server" in line)
    start = start.replace("5000", str(port)).replace("pgrep -f 'mlflow server' > /dev/null", "false")
    start = start.replace("setsid mlflow server", "setsid mlflow server --workers 1")  # a test has one client
    for command in (setup, start):
        subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=60)
    yield port
    for process in psutil.process_iter(["cmdline"]):
        if {"--port", str(port)} <= set(process.info["cmdline"] or []):
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def answer(port: int, password: str = "", host: str = "") -> int:
    """HTTP status of MLflow's list of experiments; 0 without an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1")
    if password:
        request.add_header("Authorization", f"Basic {base64.b64encode(f'raycurv:{password}'.encode()).decode()}")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_head_starts_an_mlflow_that_lets_in_nobody_without_password_or_under_another_name(
    mlflow_server: int, tmp_path: Path
) -> None:
    wait_until(lambda: answer(mlflow_server))
    assert answer(mlflow_server) == 401
    assert answer(mlflow_server, password="password1234") == 401
    assert answer(mlflow_server, PASSWORD) == 200
    assert answer(mlflow_server, PASSWORD, host="evil.example") == 403
    with pytest.raises(TrackingError, match="wants a user and a password: set MLFLOW_TRACKING_USERNAME"):
        Tracking(Cluster(runs=str(tmp_path / "runs"), tracking_uri=f"http://127.0.0.1:{mlflow_server}"), print)


class SpotNotice(http.server.BaseHTTPRequestHandler):
    """The metadata of a spot instance that is about to end, for those who have a token."""

    def do_PUT(self) -> None:
        self._send(200, b"secret") if self.path == "/latest/api/token" else self._send(404, b"")

    def do_GET(self) -> None:
        known = self.headers.get("X-aws-ec2-metadata-token") == "secret"
        found = self.path == "/latest/meta-data/spot/instance-action"
        self._send(200 if known and found else 401, b'{"action": "terminate"}')

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing."""


def test_a_worker_node_announces_the_end_of_its_spot_instance(described: dict[str, Any], tmp_path: Path) -> None:
    (command,) = (line for line in described["worker_start_ray_commands"] if "drain-node" in line)
    ray, log = tmp_path / "ray", tmp_path / "arguments"
    ray.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {log}\n')
    ray.chmod(0o755)
    (tmp_path / ".raycurv.env").touch()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SpotNotice) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = command.replace("169.254.169.254", f"127.0.0.1:{server.server_port}")
        environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=60)
        wait_until(lambda: log.exists() and "110" in log.read_text(), seconds=60)
        server.shutdown()
    words = ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the spot instance ends"]
    assert log.read_text().splitlines() == [*words, "--deadline-remaining-seconds", "110"]


def test_a_job_has_a_minute_for_its_last_checkpoint(described: dict[str, Any]) -> None:
    assert "export RAY_JOB_STOP_WAIT_TIME_S=60" in commands(described)


@pytest.mark.filterwarnings("ignore")
def test_the_variant_for_google_cloud_is_one_that_ray_knows(described: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    (variant,) = [block for block in text.split("```yaml\n") if block.startswith("provider:")]
    described |= yaml.safe_load(variant.partition("```")[0])
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(described))
    assert described["provider"]["type"] == "gcp"


def test_the_package_is_installed_on_every_node(described: dict[str, Any]) -> None:
    assert described["file_mounts"]["~/raycurv"] == "."
    assert "raycurv[cluster]" in "\n".join(described["setup_commands"])
