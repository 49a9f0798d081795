"""Torch process group of the workers: as Ray Train's own, with a store that listens on the node's address alone.

Ray Train's ``TorchConfig`` lets torch open the rendezvous store on every interface. Here the first worker binds the
socket itself, to the address under which Ray knows its node, so that a Ray on loopback opens nothing beyond loopback.
"""

from __future__ import annotations

import gc
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

LEAVE_SECONDS = 2.0
ATTEMPTS = 3  # groups in a row that cannot connect, until the launch ends
_store: Any = None  # kept alive by the worker that serves it


class WorkersNotConnected(RuntimeError):
    """The workers cannot connect to each other; the message says what to do."""


@dataclass
class NodeTorchConfig(BackendConfig):
    """A process group over gloo or NCCL whose store is bound to the node's address.

    Unlike Ray Train's ``TorchConfig``, it imports torch in the workers alone.

    Attributes:
        backend: ``"gloo"`` or ``"nccl"``.
        timeout_s: seconds that workers wait for each other.
    """

    backend: str = "gloo"
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        """Backend that sets the group up."""
        return NodeTorchBackend


class NodeTorchBackend(Backend):
    """Starts and ends the process group in every worker."""

    share_cuda_visible_devices = True

    def __init__(self) -> None:
        self._unconnected = 0  # groups in a row

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Serve the store in the first worker, then connect all workers.

        Raises:
            WorkerGroupStartupFailedError: a connection was lost; Ray Train starts the workers again.
            WorkersNotConnected: several groups in a row could not connect.
        """
        if len(worker_group) == 1:
            return
        try:
            self._connect(worker_group, backend_config)
        except Exception as error:  # raised again below, whatever it is
            worker_group.shutdown()  # Ray leaves a group whose start fails this late in its places
            if not isinstance(error, RayTaskError) or not _lost_connection(error):
                raise
            self._unconnected += 1
            if self._unconnected >= ATTEMPTS:
                raise WorkersNotConnected(_explain(error)) from error
            raise WorkerGroupStartupFailedError("the workers lost a connection while they were connected") from error
        self._unconnected = 0

    def _connect(self, worker_group: Any, backend_config: Any) -> None:
        size = len(worker_group)
        worker_group.execute_async(_import_torch)  # in all workers at once; what follows waits for it in each
        address, port = worker_group.execute_single(0, _serve)
        how = backend_config.backend, address, port
        joining = [
            worker_group.execute_single_async(rank, _join, *how, rank, size, backend_config.timeout_s)
            for rank in range(size)
        ]
        while joining:  # the first that fails ends the start: the others would wait for it
            done, joining = ray.wait(joining)
            ray.get(done)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Leave the group, without waiting for workers that died."""
        leaving = worker_group.execute_async(_leave)
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)  # the workers are ended next in any case


def _lost_connection(error: Exception) -> bool:
    """Whether a worker lost a connection or made none, by chance or since another one died: Ray notices that later."""
    return any(sign in str(error) for sign in ("connectFullMesh failed", "torch.distributed.Dist"))


def _explain(error: Exception) -> str:
    reason = str(error).strip().splitlines()[-1]
    return (
        f"the workers cannot connect to each other, after {ATTEMPTS} attempts ({reason}): let every node reach the "
        "others on all ports, or set GLOO_SOCKET_IFNAME on every node to the network between them"
    )


def _import_torch() -> None:
    """Import what training needs, and torch's collectives before there is a group (raycurv.objective.collectives)."""
    import raycurv.service.worker  # noqa: F401


def _serve() -> tuple[str, int]:
    global _store
    _import_torch()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    _store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return address, port


def _join(backend: str, address: str, port: int, rank: int, size: int, timeout_s: int) -> None:
    global _store
    _import_torch()
    import torch.distributed
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if ipv4_loopback(address):
        # Otherwise gloo and NCCL listen on the address of the host name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=timeout_s)
    if _store is None:
        _store = TCPStore(address, port, is_master=False, timeout=timeout)
    torch.distributed.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=timeout)


def _leave() -> None:
    global _store
    import torch.distributed

    gc.collect()  # what still refers to the group would keep its threads alive
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _store = None


def ipv4_loopback(address: str) -> bool:
    """Whether `address` is an IPv4 loopback address."""
    return address.startswith("127.")
