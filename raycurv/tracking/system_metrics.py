"""Metrics of a machine: processors, memory and GPUs, under MLflow's names."""

from __future__ import annotations

import math

import psutil


def system_metrics() -> dict[str, float]:
    """Share of the processors in use since the last call of this thread, and memory in use in megabytes and as a share.

    The first call of a thread gives 0 for the processors.
    """
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    return {f"system/{name}": value for name, value in values.items() if math.isfinite(value)}


def gpu_metrics() -> dict[str, float]:
    """Memory in use of every GPU that this process sees, in megabytes and as a share; empty without a GPU."""
    import torch

    found: dict[str, float] = {}
    for gpu in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(gpu)
        found[f"system/gpu_{gpu}_memory_usage_megabytes"] = (total - free) / 1e6
        found[f"system/gpu_{gpu}_memory_usage_percentage"] = 100 * (total - free) / total
        try:
            found[f"system/gpu_{gpu}_utilization_percentage"] = float(torch.cuda.utilization(gpu))
        except (ModuleNotFoundError, RuntimeError):  # without NVIDIA's management library
            continue
    return found
