"""Address of the Ray cluster to connect to, checked in seconds: Ray itself tries a wrong one for nine minutes."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

REACH_SECONDS = 10.0  # for a head that starts
ANSWER_SECONDS = 5.0
LOOPBACK = ("127.0.0.1", "localhost")
# Beginning of an HTTP/2 connection and an empty frame of settings; every gRPC server answers with its own settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # type of the frame, after three bytes of its length


class ConnectionRefused(RuntimeError):
    """A Ray cluster cannot be reached or refuses the connection; the message says what to check."""


def named_cluster() -> tuple[str, str] | None:
    """Address of the cluster to connect to, and where it comes from; None where a private Ray is to start.

    ``RAY_ADDRESS`` comes first, then the cluster that was last started on this machine.
    """
    given = os.environ.get("RAY_ADDRESS")
    if given not in (None, "", "local", "auto"):
        return given, "RAY_ADDRESS"
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if given not in (None, "auto") or not note.exists():
        return ("auto", "RAY_ADDRESS") if given == "auto" else None
    return note.read_text().strip(), str(note)


def require_reachable(address: str, source: str) -> None:
    """Refuse an address where no Ray answers.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT`` or ``auto``, which Ray resolves itself.
        source: where the address comes from, for messages.

    Raises:
        ConnectionRefused: it is malformed, nobody listens there, or something else than Ray does.
    """
    if address == "auto":
        return
    if address.startswith(("http://", "https://")):
        raise ConnectionRefused(
            f"{source} is {address}, the address that `ray job submit` takes. A command that connects itself needs the "
            f"one of the cluster, such as HOST:6379: set that, unset {source} to train on this machine, or submit the "
            f"job: ray job submit --address {address} --working-dir . -- python jobs/train.py …"
        )
    found = re.fullmatch(r"(ray://)?(?:\[([^\]]+)\]|([^:/\s]+)):(\d{1,5})", address)
    if found is None:
        raise ConnectionRefused(f"{source} is {address!r}; it must be HOST:PORT, ray://HOST:PORT, auto or local")
    problem = _problem(found[2] or found[3], int(found[4]))
    if problem:
        raise ConnectionRefused(
            f"no Ray answers at {address} ({source}): {problem}. Start the cluster there, correct the address, or set "
            "RAY_ADDRESS=local for a Ray of this command's own"
        )


def _problem(host: str, port: int) -> str:
    """Why no Ray can be reached; empty if one answers."""
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        problem = _problem_at(host, port)
        if not problem or (host in LOOPBACK and not _problem_at(_own_address(), port)):
            return ""
        if time.monotonic() > deadline:
            return problem
        time.sleep(0.5)


def _own_address() -> str:
    """Address of this machine, by which Ray replaces loopback."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _problem_at(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):
                return ""
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        return error.strerror or str(error)
    is_ray = len(answer) > 3 and answer[3] == _SETTINGS
    return "" if is_ray else "what listens there is no Ray (is it the port of another service?)"
