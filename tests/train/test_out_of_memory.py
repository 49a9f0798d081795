"""Steps that do not fit in memory: micro-batches of half the size, once in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.train import CheckpointStore, Component, Record, RunConfig, StepOutOfMemory, train
from raycurv.train.out_of_memory import is_out_of_memory
from tests.objective import distributed
from tests.train import threads
from tests.train.problems import Kept, config, network


class Memory:
    """Samples that the simulated device has room for."""

    room = 10**9


class Crowded(nn.Module):
    """Has no memory for more than `Memory.room` samples."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > Memory.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.inner(inputs)


def crowded(input_shape: tuple[int, ...], num_classes: int, norm: bool = False) -> nn.Module:
    return Crowded(network(input_shape, num_classes, norm=norm))


def problem(**settings: object) -> RunConfig:
    model = Component.of(crowded, norm=bool(settings.pop("norm", False)))
    return dataclasses.replace(config(epochs=2, precision="fp64", log_every=1, checkpoint_every=3), model=model)


@pytest.fixture(autouse=True)
def enough_memory() -> Iterator[None]:
    Memory.room = 10**9
    yield
    Memory.room = 10**9


def messages(records: Kept) -> str:
    return "\n".join(record.message for record in records.of("event"))


def go(folder: Path, wanted: RunConfig, emit: Kept) -> list[Tensor]:
    store = CheckpointStore(str(folder))
    train(wanted, collectives=Local(), store=store, emit=emit)
    state = store.load()
    assert state is not None
    return [*state["model"].values()]


class Shrinking(Kept):
    """Takes memory away at a step."""

    def __init__(self, step: int, room: int) -> None:
        self.step, self.left = step, room

    def __call__(self, records: list[Record]) -> None:
        super().__call__(records)
        if any(record.kind == "step" and record.step == self.step for record in records):
            Memory.room = self.left


@pytest.mark.parametrize("step", [0, 4])
def test_a_run_whose_memory_ends_is_the_run_of_whole_batches_and_says_so(tmp_path: Path, step: int) -> None:
    wanted = problem()
    expected = go(tmp_path / "whole", wanted, Kept())
    shrinking = Shrinking(step, wanted.batch_size // 2)
    if step == 0:
        Memory.room = wanted.batch_size // 2
    found = go(tmp_path / "halved", wanted, shrinking)

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    said = messages(shrinking)
    assert f"the memory ran out before, so that a worker computes {wanted.batch_size // 2} samples at once" in said
    assert "goes on at step 3" in said if step else "starts: " in said
    assert "batch normalisation" not in said
    assert CheckpointStore(str(tmp_path / "halved")).config() == wanted


def test_a_message_says_that_batch_normalisation_sees_the_micro_batches(tmp_path: Path) -> None:
    wanted, said = problem(norm=True), Kept()
    Memory.room = wanted.batch_size // 2
    go(tmp_path, wanted, said)
    assert "whose statistics batch normalisation takes" in messages(said)


def test_a_run_halves_once_and_also_when_it_is_resumed(tmp_path: Path) -> None:
    wanted = problem()
    Memory.room = wanted.batch_size // 4
    half = wanted.batch_size // 2
    with pytest.raises(
        StepOutOfMemory, match=f"with {half} samples of a worker at once: take --micro-batch {half // 2}"
    ):
        go(tmp_path, wanted, Kept())
    assert CheckpointStore(str(tmp_path)).micro_batch() == half
    with pytest.raises(StepOutOfMemory) as failed:
        train(wanted, collectives=Local(), store=CheckpointStore(str(tmp_path)), emit=Kept(), resume="auto")
    assert not failed.value.halved

    Memory.room = half
    said = Kept()
    train(wanted, collectives=Local(), store=CheckpointStore(str(tmp_path)), emit=said, resume="auto")
    assert f"{half} samples at once" in messages(said)


def test_one_sample_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    Memory.room = 0
    with pytest.raises(StepOutOfMemory, match="with 1 samples of a worker at once: take more workers"):
        go(tmp_path, dataclasses.replace(problem(), micro_batch=1), Kept())


def test_other_errors_of_a_step_are_not_taken_for_it() -> None:
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def resumed(rank: int, folder: str) -> list[Tensor]:
    """Go on in the micro-batches that one of the workers stored before both were started again."""
    said, store = Kept(), CheckpointStore(folder)
    train(problem(), collectives=ProcessGroup(), store=store, emit=said, resume="auto")
    assert rank == 1 or "computes 2 samples at once" in messages(said)
    state = store.load()
    assert state is not None
    return [*state["model"].values()]


@pytest.mark.slow
def test_all_workers_take_the_size_that_one_of_them_stored(tmp_path: Path) -> None:
    expected = go(tmp_path / "whole", problem(), Kept())
    store = CheckpointStore(str(tmp_path / "halved"))
    store.store_micro_batch(2, rank=1)
    store.store_micro_batch(2, rank=0)  # memory may run out on several workers at a time
    for found in distributed.run(2, resumed, str(tmp_path / "halved")):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_workers_raise_an_error_that_asks_for_another_attempt(tmp_path: Path) -> None:
    wanted = problem()
    Memory.room = 1

    def worker(collectives: threads.Threads) -> bool:
        with pytest.raises(StepOutOfMemory, match="the next attempt computes") as failed:
            train(wanted, collectives=collectives, store=CheckpointStore(str(tmp_path)), emit=Kept(), resume="auto")
        return failed.value.halved

    assert threads.run(2, worker) == [True, True]
    assert CheckpointStore(str(tmp_path)).micro_batch() == wanted.batch_size // 4
