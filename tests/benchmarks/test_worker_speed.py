"""Speed of several workers: what is counted, and cores of their own."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from raycurv.benchmarks import worker_speed
from raycurv.cli.benchmark import BenchmarkWorkers
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


def test_the_command_measures_all_kinds_in_turn_and_leaves_the_users_runs_alone(monkeypatch, capsys, tmp_path):
    speeds, launched = iter(range(1, 100)), []

    def launch(configs, cluster):
        launched.append((configs[0].batch_norm, cluster.workers, cluster.pin_workers, cluster.runs))
        return [SimpleNamespace(step_seconds=configs[0].batch_size / (100 * next(speeds)), images_per_second=0.0)]

    def measure(kind, workers, optimizer, *, steps, pinned):
        return worker_speed.WorkerSpeed(kind, workers, 10.0 * next(speeds), 2.0, 1024.0, 0.003)

    monkeypatch.setattr(worker_speed, "measure", measure)
    monkeypatch.setattr("raycurv.service.launch", launch)
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "train-0.parquet").touch()
    kinds = ("none", "local")
    BenchmarkWorkers(data=str(tmp_path / "cifar10"), batch_norm=kinds, repeat=2, pin_workers=True).run()

    assert [row[:3] for row in launched] == [
        ("synchronised", 1, True),
        ("synchronised", 2, True),
        ("local", 1, True),
        ("local", 2, True),
    ] * 2
    assert not any(Path(runs).exists() for *_, runs in launched)
    printed = capsys.readouterr().out.splitlines()
    assert "Bare processes, curveball, pinned" in printed
    assert "| none | 2 | 60 | 1.20× | 2.0 | 1.0 | 3.0 |" in printed  # the better one of two
    assert "| local | 2 | 1600 | 1.07× | 0 |" in printed
