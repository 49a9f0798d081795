"""A TCP proxy before an HTTP server that answers some requests badly."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

UNAVAILABLE, RESET, CUT, SLOW = "503", "reset", "cut", "slow"
_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")
_ANSWER = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_RST = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class FaultyProxy:
    """Forwards connections to a server on loopback.

    Args:
        port: port of the server.
        fault: what happens to the request with this number, which begins with these bytes: one of the constants of this
            module, or None.
    """

    def __init__(self, port: int, fault: Callable[[int, bytes], str | None]) -> None:
        self._port, self._fault = port, fault
        self._lock = threading.Lock()
        self.requests = self.faults = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _next_fault(self, head: bytes) -> str | None:
        with self._lock:
            self.requests += 1
            found = self._fault(self.requests, head)
            self.faults += found is not None
        return found

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server, contextlib.suppress(OSError):
            state: dict[str, str | None] = {"fault": None}
            threading.Thread(target=self._answer, args=(server, client, state), daemon=True).start()
            while content := client.recv(2**16):
                if content.startswith(_METHODS):
                    state["fault"] = self._next_fault(content)
                if state["fault"] == UNAVAILABLE:
                    client.sendall(_ANSWER)
                    return
                if state["fault"] == RESET:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                    return
                server.sendall(content)

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket, state: dict[str, str | None]) -> None:
        with contextlib.suppress(OSError):
            while content := server.recv(2**16):
                body = content.partition(b"\r\n\r\n")[2] if content.startswith(b"HTTP/") else content
                if state["fault"] == CUT and body:
                    client.sendall(content[: len(content) - (len(body) + 1) // 2])
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                for start in range(0, len(content), 256 if state["fault"] == SLOW else len(content)):
                    client.sendall(content[start : start + 256] if state["fault"] == SLOW else content)
                    if state["fault"] == SLOW:
                        time.sleep(0.02)
