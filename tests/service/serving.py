"""`mlflow server`, as a process that tests can end and start again."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.service.driving import wait_until


class _Failing(http.server.BaseHTTPRequestHandler):
    def _fail(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(500)

    do_GET = do_POST = do_PATCH = do_PUT = _fail

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing."""


class Server:
    """`mlflow server` on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.data_base = folder / "mlflow.db"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.data_base}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            wait_until(self._port_is_free)  # the server's own processes may end a moment later

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        """The server is not there.

        Yields:
            Nothing.
        """
        self.stop()
        yield
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The server takes connections and answers nothing.

        Yields:
            Nothing.
        """
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        yield
        os.killpg(self._process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """The server answers 500 to everything.

        Yields:
            Nothing.
        """
        self.stop()
        broken = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), _Failing)
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        yield
        broken.shutdown()
        broken.server_close()
        self.start()

    def _port_is_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
                probe.listen()
            except OSError:
                return False
        return True

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
