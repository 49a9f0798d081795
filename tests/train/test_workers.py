from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from raycurv.models import transformer
from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.train import (
    CheckpointError,
    CheckpointStore,
    Component,
    NonFiniteLoss,
    ResumeError,
    RunConfig,
    WorkersDisagree,
    load_trained_model,
    train,
)
from raycurv.train.resume import open_run
from raycurv.train.training_run import TrainingRun
from tests.objective import distributed
from tests.train import threads
from tests.train.problems import Kept, config, drifting, network, sentences

pytestmark = pytest.mark.slow

# 13 rows in batches of 8 and 5; with batches of 4, the last one has a single row, so a worker's share of it is empty.
SETTINGS = {"samples": 13, "epochs": 25, "l2": 1e-3, "log_every": 7, "average_weights": 0.9}
RUNS = (
    config(name="curveball", batch_size=8, norm=True, **SETTINGS),
    config(name="empty", batch_size=4, max_steps=50, **SETTINGS),
    # The last batch has one sentence; the weights are numbers of words.
    RunConfig(
        "sentences",
        Component.of(transformer, source_words=9, size=8, heads=2, layers=1, hidden=8, dropout=0.0),
        Component.of(sentences),
        loss="raycurv.objective.losses:word_cross_entropy",
        weights="raycurv.objective.losses:word_counts",
        l2=1e-3,
        batch_size=4,
        epochs=3,
        log_every=7,
        precision="fp64",
        average_weights=0.9,
    ),
    config(name="adam", batch_size=8, optimizer="adam", norm=True, gradient_norm=True, batch_error=True, **SETTINGS),
)


def started(folder: str) -> RunConfig:
    """A run from other weights, with a head of its own and a frozen layer."""
    run = {"start_from": f"{folder}/weights.pt", "freeze": ("0.*",), "samples": 13, "epochs": 5}
    return config(name="started", norm=True, optimizer="auto", **run)


def go(folder: str, wanted: RunConfig, collectives: Any, **options: Any) -> Any:
    store = CheckpointStore(f"{folder}/{wanted.name}")
    return train(wanted, collectives=collectives, store=store, **({"emit": Kept()} | options))


def everything(rank: int, folder: str) -> dict[str, Any]:
    """What a worker sees; one group of processes serves all tests, because it takes seconds to start."""
    collectives = ProcessGroup()
    found: dict[str, Any] = {}
    for wanted in RUNS:
        records = Kept()
        result = go(folder, wanted, collectives, emit=records)
        found[wanted.name] = dict(result.values)
        found[f"{wanted.name} operations"] = result.operations
        found[f"{wanted.name} records"] = len(records)
    # Two of one worker's steps are followed by the rest on two.
    taken_over = dataclasses.replace(RUNS[0], name="taken-over")
    records = Kept()
    found["taken-over"] = dict(go(folder, taken_over, collectives, resume="must", emit=records).values)
    found["said"] = [record.message for record in records.of("event")][:1]
    found["started"] = dict(go(folder, started(folder), collectives).values)
    # Only the second worker is asked to stop.
    dropped = config(name="dropped", samples=13, dropout=0.5, epochs=10, log_every=3)
    asked = go(folder, dropped, collectives, stop=lambda: rank == 1)
    found["stopped"] = [asked.stopped, asked.steps]
    go(folder, dropped, collectives, resume="must")
    go(folder, dataclasses.replace(dropped, name="dropped-at-once"), collectives)
    # Batch statistics of each worker's share: in two sittings, and in one.
    local = config(name="local", samples=13, norm=True, batch_norm="local", epochs=4, checkpoint_every=3)
    go(folder, local, collectives, stop=lambda: rank == 0)
    go(folder, local, collectives, resume="must")
    go(folder, dataclasses.replace(local, name="local-at-once"), collectives)
    with pytest.raises(WorkersDisagree) as caught:
        go(folder, RunConfig("astray", Component.of(drifting), dropped.data), collectives)
    found["astray"] = str(caught.value)
    broken = config(name="broken", broken_row=30, optimizer="salera", optimizer_settings={"learning_rate": 0.1})
    with pytest.raises(NonFiniteLoss) as raised:
        go(folder, broken, collectives)
    found["broken"] = str(raised.value)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("together")
    torch.manual_seed(5)
    torch.save(network((4,), 7, norm=True).state_dict(), folder / "weights.pt")
    taken_over = dataclasses.replace(RUNS[0], name="taken-over")
    calls = iter(range(1, 100))
    go(str(folder), taken_over, Local(), stop=lambda: next(calls) >= 33)
    return folder, distributed.run(2, everything, str(folder))


@pytest.mark.parametrize("wanted", RUNS, ids=lambda wanted: wanted.name)
def test_two_workers_equal_one(together: tuple[Path, list[dict[str, Any]]], wanted: RunConfig, tmp_path: Path) -> None:
    folder, found = together
    alone = go(str(tmp_path), wanted, Local())
    assert found[0][wanted.name] == found[1][wanted.name]
    assert found[0][wanted.name] == pytest.approx(dict(alone.values), rel=1e-8)
    for averaged in (False, True):
        one = load_trained_model(CheckpointStore(str(tmp_path / wanted.name)), averaged=averaged).model.state_dict()
        two = load_trained_model(CheckpointStore(str(folder / wanted.name)), averaged=averaged).model.state_dict()
        torch.testing.assert_close(dict(two), dict(one), rtol=1e-8, atol=1e-10)


def test_operations_are_those_of_all_workers(together: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    alone = go(str(tmp_path), RUNS[3], Local()).operations
    # DDP's first batch takes one more forward pass.
    assert alone < together[1][0]["adam operations"] < 1.02 * alone


def test_a_pretrained_start_with_frozen_parameters_is_the_same_on_two_workers(
    together: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, found = together
    alone = go(str(tmp_path), started(str(folder)), Local())
    assert found[0]["started"] == pytest.approx(dict(alone.values), rel=1e-8)
    one, two = (load_trained_model(CheckpointStore(str(f / "started"))).model.state_dict() for f in (tmp_path, folder))
    torch.testing.assert_close(dict(two), dict(one), rtol=1e-8, atol=1e-10)
    assert torch.equal(two["0.weight"], torch.load(folder / "weights.pt")["0.weight"].double())


def test_workers_that_read_other_weights_do_not_start(tmp_path: Path) -> None:
    for rank in range(2):
        torch.save(network((4,), 3).state_dict(), tmp_path / f"{rank}.pt")

    def worker(collectives: threads.Threads) -> None:
        wanted = config(start_from=str(tmp_path / f"{collectives.rank}.pt"))
        with pytest.raises(WorkersDisagree, match=r"do all nodes read the same file\?"):
            TrainingRun(wanted, collectives, torch.device("cpu"))

    threads.run(2, worker)


def test_only_the_first_worker_tells(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = together
    assert found[0]["curveball records"] > 50
    assert found[1]["curveball records"] == 0


def test_run_goes_on_mid_epoch_on_another_number_of_workers(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = together
    assert found[0]["said"] == [
        "goes on at step 33, epoch 16.500; the workers are 2 on cpu and were 1 on cpu, so dropout masks are drawn anew"
    ]
    assert found[0]["taken-over"] == pytest.approx(found[0]["curveball"], rel=1e-8)


def test_asking_one_worker_stops_all_and_they_go_on_bit_by_bit(together: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = together
    assert [one["stopped"] for one in found] == [[True, 2], [True, 2]]
    a, b = (CheckpointStore(str(folder / name)).load() for name in ("dropped", "dropped-at-once"))
    assert a is not None
    assert b is not None
    for part in ("model", "optimizer", "random"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    assert not torch.equal(a["random"]["cpu"][0], a["random"]["cpu"][1])


def test_worker_that_went_astray_stops_all(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = together
    assert all("the parameters of worker 1 differ" in one["astray"] for one in found)


def test_a_run_with_local_batch_statistics_resumes_bit_equal(together: tuple[Path, list[dict[str, Any]]]) -> None:
    states = [CheckpointStore(f"{together[0]}/{name}").load() for name in ("local", "local-at-once")]
    assert all(state is not None for state in states)
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name


def test_a_run_with_local_batch_statistics_needs_its_number_of_workers(
    together: tuple[Path, list[dict[str, Any]]],
) -> None:
    stored = CheckpointStore(f"{together[0]}/local").config()
    assert stored is not None
    longer = dataclasses.replace(stored, epochs=5)
    with pytest.raises(CheckpointError, match=r"batch_norm='local'.*had 2 and now has 1.*--workers 2"):
        go(str(together[0]), longer, Local(), resume="must")


def test_all_workers_stop_at_a_sample_of_one_that_is_nan(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = together
    assert all("since 1 of its samples have a NaN" in one["broken"] for one in found)


def test_workers_that_see_other_checkpoints_do_not_start(tmp_path: Path) -> None:
    wanted = config(max_steps=2)
    for rank in range(2):
        train(wanted, collectives=Local(), store=CheckpointStore(str(tmp_path / str(rank))), emit=Kept())
    longer = dataclasses.replace(wanted, max_steps=3 + 2)
    for path in [tmp_path / "1" / "manifest.json", *(tmp_path / "1").glob("step-*")]:
        path.unlink()

    def worker(collectives: threads.Threads) -> None:
        store = CheckpointStore(str(tmp_path / str(collectives.rank)))
        with pytest.raises(WorkersDisagree, match=r"do all nodes share this storage.*\[2, -1\]"):
            open_run(longer, store, "must", collectives, torch.device("cpu"))

    threads.run(2, worker)


def test_no_worker_starts_before_all_have_looked(tmp_path: Path) -> None:
    def worker(collectives: threads.Threads) -> bool:
        try:
            open_run(config(), CheckpointStore(str(tmp_path)), "never", collectives, torch.device("cpu"))
        except ResumeError:
            return False
        return True

    for _ in range(5):
        assert threads.run(3, worker) == [True, True, True]
        (tmp_path / "config.json").unlink()
