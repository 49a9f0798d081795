"""Speed of several workers: what is counted, and cores of their own."""

import os

import pytest

from raycurv.benchmarks import worker_speed
from raycurv.train.cpu_affinity import own_cores, pin


@pytest.mark.slow
def test_rounds_and_bytes_of_a_step_are_those_of_the_network():
    found = worker_speed.measure("local", 2, "sgd", steps=2, batch_size=4)
    parameters = sum(p.numel() for p in worker_speed.basic_cnn(batch_norm=True).parameters())
    assert (found.rounds, found.bytes) == (1, 4 * (parameters + 2))
    assert found.waiting > 0
    assert found.row(found.images_per_second).startswith("| local | 2 | ")


def test_one_worker_waits_for_nobody():
    found = worker_speed.WorkerSpeed("none", 1, 80.0, 0.0, 0.0, 0.0)
    assert found.row(40.0) == "| none | 1 | 80 | 2.00× | 0.0 | 0.0 | 0.0 |"


def test_workers_get_cores_of_their_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 4, 7, 9}, raising=False)
    assert [own_cores(index, 2, 2) for index in range(2)] == [[1, 3], [4, 7]]
    with pytest.raises(ValueError, match="3 workers with 2 cores each cannot be pinned to 5 cores"):
        own_cores(0, 3, 2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins on Linux alone")
def test_all_threads_of_a_process_are_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: pinned.append((thread, cores)))
    pin([2])
    assert (os.getpid(), [2]) in pinned
