"""``raycurv ui``: MLflow at the runs of an experiment."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from raycurv.tracking.settings import default_runs, default_tracking_uri, resolve_uri

START_SECONDS = 120.0


@dataclass(frozen=True)
class Ui:
    """Open the runs in MLflow: start its server on loopback for a data base, or print the address of the server."""

    EXAMPLE: ClassVar = "raycurv ui --port 5001"
    LOADS: ClassVar = "MLflow"

    runs: str = field(default_factory=default_runs)
    """Folder of all runs, with MLflow's data base. RAYCURV_RUNS sets the default."""

    tracking_uri: str | None = field(default_factory=default_tracking_uri)
    """MLflow's server or data base. By default MLFLOW_TRACKING_URI, or the SQLite file in the folder of all runs."""

    experiment: str = "raycurv"
    """Experiment to show."""

    port: int = 5000
    """Port of the server that is started. The next free one is taken if it is in use."""

    browser: bool = False
    """Open the page in the browser of this machine."""

    def run(self) -> None:
        """Print the link, and serve until Ctrl-C.

        Raises:
            ValueError: there is no data base yet.
            RuntimeError: MLflow's server did not start.
        """
        uri = resolve_uri(self.tracking_uri, self.runs)
        if uri.startswith("http"):
            self._show(uri.rstrip("/") + self._view(uri))
            return
        path = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not path.exists():
            raise ValueError(f"there are no runs in {path}; `raycurv train` writes them, --runs names their folder")
        view, port = self._view(uri), free_port(self.port)
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
        try:
            _wait_until_served(server, port)
            self._show(f"http://127.0.0.1:{port}{view}")
            print("Ctrl-C ends the server", flush=True)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()
            server.wait()

    def _view(self, uri: str) -> str:
        from raycurv.tracking.stores import store_at
        from raycurv.tracking.views import runs_page

        number = store_at(uri).experiments().get(self.experiment)
        return "/#/experiments?workflowType=machine_learning" if number is None else runs_page(number)

    def _show(self, address: str) -> None:
        print(address, flush=True)
        if self.browser:
            webbrowser.open(address)


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens to on loopback.

    Raises:
        ValueError: there is none among a hundred.
    """
    for port in range(first, first + 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ValueError(f"no port from {first} to {first + 99} is free; choose another with --port")


def _wait_until_served(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"MLflow's server did not start within {START_SECONDS:.0f} s; its messages are above")
