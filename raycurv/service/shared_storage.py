"""Whether every node sees the folder of the checkpoints: an object store, or a mount that all share."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycurv.service.cluster import Cluster
from raycurv.service.connection import may_grow

ANSWER_SECONDS = 30.0  # for a node to start a process and look


class UnsharedStorage(RuntimeError):
    """A node does not see the folder of the checkpoints; the message says what to set.

    Args:
        nodes: their names.
        folder: folder of the checkpoints.
    """

    def __init__(self, nodes: str, folder: str) -> None:
        super().__init__(
            f"the checkpoints go to {folder}, which is another folder on {nodes} than where the driver runs. Set "
            "--storage or RAYCURV_STORAGE to what all nodes reach: s3://bucket/path, gs://bucket/path, or a folder on "
            "a file system that all of them mount"
        )


@contextlib.contextmanager
def probe_file(cluster: Cluster) -> Iterator[str]:
    """Write a file beside the checkpoints during a ``with`` block, and make sure that other nodes see it.

    Args:
        cluster: folder of the checkpoints, resources of a worker.

    Yields:
        The file, for workers on nodes that come later; empty if the checkpoints are in an object store, or if there is
        no other node and none can come.

    Raises:
        UnsharedStorage: a node that could hold a worker does not see the file.
    """
    others = _other_nodes(ray.nodes(), cluster.resources)
    if "://" in cluster.checkpoints or not (others or may_grow(cluster)):
        yield ""
        return
    folder = Path(cluster.checkpoints)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".seen-by-all-nodes-{secrets.token_hex(8)}"
    probe.touch()
    try:
        blind = _blind(str(probe), others)
        if blind:
            raise UnsharedStorage(", ".join(blind), str(folder))
        yield str(probe)
    finally:
        probe.unlink(missing_ok=True)


def _other_nodes(nodes: Sequence[Mapping[str, Any]], resources: Mapping[str, float]) -> list[Mapping[str, Any]]:
    """Nodes but this one that have the resources of a worker."""
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node["Alive"] and node["NodeID"] != here]
    return [node for node in others if all(node["Resources"].get(name, 0) >= x for name, x in resources.items())]


@ray.remote(num_cpus=0, max_retries=0)
def _sees(path: str) -> bool:
    import os

    return os.path.exists(path)


def _blind(probe: str, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names and addresses of the nodes that do not see a file; a node that does not answer is left out."""
    there = {
        _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(probe): (
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        )
        for node in nodes
    }
    ready, _ = ray.wait(list(there), num_returns=max(len(there), 1), timeout=ANSWER_SECONDS) if there else ([], [])
    blind = []
    for answer in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            if not ray.get(answer):
                blind.append(there[answer])
    return sorted(blind)
