"""Names of the metrics that come along, and which values are better, without an import of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Name → import path and settings.
NAMED_METRICS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "top5": ("raycurv.train.evaluation_metrics:top_k_correct", {"k": 5}),
    "f1": ("raycurv.train.evaluation_metrics:f1_score", {}),
    "mse": ("raycurv.objective.losses:mean_squared_error", {}),
    "perplexity": ("raycurv.train.evaluation_metrics:perplexity", {}),
}
_LARGER, _SMALLER = ("accuracy", "top5", "f1"), ("loss", "mse", "perplexity")


def larger_is_better(metric: str) -> bool | None:
    """Whether larger values of a metric such as ``test/f1`` are better; None for metrics of one's own."""
    name = metric.rpartition("/")[2]
    if name in _LARGER:
        return True
    return False if name.endswith(_SMALLER) else None
