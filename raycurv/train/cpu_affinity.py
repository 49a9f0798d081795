"""Cores that the workers of one machine keep to."""

from __future__ import annotations

import os
from collections.abc import Sequence


def own_cores(index: int, workers: int, threads: int) -> list[int]:
    """Cores of one of the workers of this machine.

    Args:
        index: number of the worker on this machine, from 0.
        workers: number of workers on this machine.
        threads: cores of each worker.

    Raises:
        ValueError: the machine has fewer cores than the workers need.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < workers * threads:
        raise ValueError(
            f"{workers} workers with {threads} cores each cannot be pinned to {len(cores)} cores: give fewer workers "
            "or threads, or leave out --pin-workers"
        )
    return cores[index * threads : (index + 1) * threads]


def pin(cores: Sequence[int]) -> None:
    """Keep all threads of this process, those of gloo included, to these cores."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)
