"""Run a function in several gloo processes on loopback, and get back what each returns."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing


def run(workers: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(rank, *arguments)`` in each worker; what it returns must be loadable with ``weights_only``."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (workers, folder, function, arguments), nprocs=workers)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(workers)]


def _worker(rank: int, workers: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    # gloo's group is complete for the worker that opens a connection before it is for the one that takes it: a function
    # that sends nothing could leave the group meanwhile ("connectFullMesh failed … Connection closed by peer").
    torch.distributed.barrier()
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
    finally:
        gc.collect()
        torch.distributed.destroy_process_group()
