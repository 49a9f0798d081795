"""Gauges of the running training for Ray's dashboard and for Prometheus.

They are set from records at the log interval; nothing more is fetched from a device.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Gauge

from raycurv.train.records import Record

TAGS = ("run", "optimizer")
LOSS, SPEED = "train/loss", "throughput/images_per_second"


class RayMetrics:
    """The gauges ``raycurv_train_loss``, ``raycurv_images_per_second`` and ``raycurv_step_seconds`` of one run.

    Args:
        run: name of the run. Trials use the recipe's name, since a process of hundreds of trials keeps every series.
        optimizer: name of the registered optimizer.
    """

    def __init__(self, run: str, optimizer: str) -> None:
        tags = {"run": run, "optimizer": optimizer}
        self.loss = _gauge("raycurv_train_loss", "Loss of the newest batch.", tags)
        self.speed = _gauge("raycurv_images_per_second", "Training samples per second of the last log interval.", tags)
        self.step = _gauge("raycurv_step_seconds", "Seconds a step of the last log interval.", tags)
        self._last: Record | None = None

    def show(self, records: Sequence[Record]) -> None:
        """Set the gauges from new records."""
        steps = [record for record in records if record.kind == "step"]
        for record in records:
            if SPEED in record.values:
                self.speed.set(record.values[SPEED])
            if record.kind == "evaluation":  # its seconds belong to no step
                self._last = None
        if not steps:
            return
        first, last = self._last or steps[0], steps[-1]
        if last.step > first.step:
            self.step.set((last.time - first.time) / (last.step - first.step))
        if LOSS in last.values:
            self.loss.set(last.values[LOSS])
        self._last = last


def _gauge(name: str, text: str, tags: dict[str, str]) -> Gauge:
    gauge = Gauge(name, text, tag_keys=TAGS)
    gauge.set_default_tags(tags)
    return gauge
