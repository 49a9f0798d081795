"""Which nodes can be reached, by a connection to each one's raylet every second: Ray itself needs 16 s to tell."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between two connections to a node
CONNECT_SECONDS = 1.5  # until a connection counts as failed; a packet that was lost is sent again after 1 s
FRESH_SECONDS = 3.0  # a node that answered this recently can be used


class NodeWatch:
    """Connects to the raylets of all nodes in a thread.

    A node that has never answered, as behind a firewall, counts as reachable as long as Ray says that it is alive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, dict[str, Any]] = {}
        self._answered: dict[str, float] = {}
        self._draining: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="node-watch")

    def start(self) -> None:
        """Look once, then go on in a thread."""
        self.look()
        threading.Thread(target=self._watch, name="node-watch", daemon=True).start()

    def usable(self) -> list[dict[str, Any]]:
        """Nodes, as ``ray.nodes()`` describes them, that are alive, can be reached and are not about to go."""
        with self._lock:
            return [
                node
                for name, node in self._nodes.items()
                if node["Alive"] and name not in self._draining and self._silence(name) < FRESH_SECONDS
            ]

    def silence(self, node: str) -> float:
        """Seconds since a node answered; infinite if Ray says that it is dead.

        Args:
            node: hexadecimal id of the node.
        """
        with self._lock:
            alive = node in self._nodes and self._nodes[node]["Alive"]
            return self._silence(node) if alive else float("inf")

    def draining(self, nodes: Sequence[str]) -> list[str]:
        """Those of some nodes that have been announced to go away, as spot instances are."""
        with self._lock:
            return [node for node in nodes if node in self._draining]

    def seconds_left(self, node: str) -> float:
        """Seconds until a node that has been announced to go away goes; 0 if that is not known."""
        with self._lock:
            return max(0.0, self._draining.get(node, 0) / 1000 - time.time())

    def address(self, node: str) -> str:
        """Host name and address of a node."""
        with self._lock:
            known = self._nodes.get(node, {})
        return f"{known.get('NodeManagerHostname', 'a node')} ({known.get('NodeManagerAddress', node[:8])})"

    def _silence(self, node: str) -> float:
        return time.monotonic() - self._answered[node] if node in self._answered else 0.0

    def _watch(self) -> None:
        while True:
            time.sleep(PERIOD)
            try:
                self.look()
            except Exception:  # whatever Ray raises while its control store is away; what was seen last stays
                logger.debug("the nodes cannot be listed", exc_info=True)

    def look(self) -> None:
        """Ask Ray for the nodes, and each of them for an answer."""
        import ray
        from ray._private.state import state  # no public call has the draining nodes

        nodes = {node["NodeID"]: node for node in ray.nodes()}
        draining = state.get_draining_nodes() or {}
        alive = [node for node in nodes.values() if node["Alive"]]
        answers = dict(zip((node["NodeID"] for node in alive), self._pool.map(_answer, alive), strict=True))
        now = time.monotonic()
        with self._lock:
            self._nodes, self._draining = nodes, draining
            for name, answer in answers.items():
                if answer:
                    self._answered[name] = now
                elif answer is False and name in self._answered:
                    self._answered[name] = float("-inf")


def _answer(node: Mapping[str, Any]) -> bool | None:
    """Whether a node accepts a connection; None if that takes too long, False if it is refused."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    return True
