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
from ray.train.backend import Backend, BackendConfig

LEAVE_SECONDS = 2.0
_store: Any = None  # kept alive by the worker that serves it


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

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Serve the store in the first worker, then connect all workers."""
        size = len(worker_group)
        if size == 1:
            return
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
