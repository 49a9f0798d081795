from __future__ import annotations

from ray.util.metrics import Gauge

from raycurv.service.ray_metrics import RayMetrics
from raycurv.train import Record

NAMES = ("raycurv_train_loss", "raycurv_images_per_second", "raycurv_step_seconds")


class Shown:
    """Stands where Ray's gauge is, and keeps what it is set to."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)


def step(number: int, time: float) -> Record:
    return Record("step", number, number / 10, time, {"train/loss": 1 / number})


def test_the_newest_loss_the_speed_and_the_pace_without_evaluations_are_shown() -> None:
    live = RayMetrics("run", "sgd")
    assert isinstance(live.loss, Gauge)
    live.loss, live.speed, live.step = loss, speed, pace = Shown(), Shown(), Shown()  # type: ignore[assignment]
    live.show([step(1, 10.0), step(2, 10.5), step(3, 11.0)])
    live.show([Record("progress", 3, 0.3, 11.0, {"throughput/images_per_second": 64.0})])
    live.show([step(4, 11.25)])
    live.show([Record("evaluation", 4, 0.4, 20.0, {"test/loss": 1.0})])
    live.show([step(5, 21.0), step(6, 22.0)])
    live.show([])

    assert loss.values == [1 / 3, 1 / 4, 1 / 6]
    assert speed.values == [64.0]
    assert pace.values == [0.5, 0.25, 1.0]
