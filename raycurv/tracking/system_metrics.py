"""Metrics of the machine of the driver."""

from __future__ import annotations

import math

import psutil


def system_metrics() -> dict[str, float]:
    """Share of the processors in use, and memory in use in megabytes and as a share, under MLflow's names."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    return {f"system/{name}": value for name, value in values.items() if math.isfinite(value)}
