from __future__ import annotations

import torch

from raycurv.objective.collectives import Local
from raycurv.train.metrics import LoggedInterval, MetricBuffer
from tests.train import threads

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)


def test_scalars_are_kept_as_they_were_at_their_step() -> None:
    buffer, damping = MetricBuffer(Local(), CPU), torch.tensor(10.0)
    for step in (1, 2, 3):
        scalars = {"damping": damping} | ({"ratio": torch.tensor(0.5, dtype=torch.float64)} if step == 2 else {})
        buffer.add(step, step / 4, YES, scalars)
        damping.mul_(0.5)
    interval = buffer.fetch(stop=False)
    assert [record.values for record in interval.records] == [
        {"damping": 10.0},
        {"damping": 5.0, "ratio": 0.5},
        {"damping": 2.5},
    ]
    assert [(record.step, record.epoch) for record in interval.records] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert (interval.stop, interval.non_finite_step) == (False, None)
    assert buffer.fetch(stop=True) == LoggedInterval([], True, None)


def test_first_step_that_broke_on_any_worker_and_a_wish_to_stop_reach_all() -> None:
    def worker(collectives: threads.Threads) -> tuple[bool, int | None]:
        buffer = MetricBuffer(collectives, CPU)
        for step in range(1, 5):
            broken = (collectives.rank, step) in ((1, 2), (0, 3))
            buffer.add(step, 0.0, NO if broken else YES, {"loss": torch.ones(())})
        interval = buffer.fetch(stop=collectives.rank == 2)
        return interval.stop, interval.non_finite_step

    assert threads.run(3, worker) == [(True, 2)] * 3
