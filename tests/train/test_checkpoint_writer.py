"""Checkpoints that are written while the steps go on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from raycurv import Objective, optim
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointError, CheckpointStore, Record, train
from raycurv.train.checkpoint_writer import CheckpointWriter
from tests.train.problems import Kept, config
from tests.train.test_resume import after, assert_same, final, go

WANTED = config(epochs=2, checkpoint_every=2, log_every=1, dropout=0.2, norm=True, average_weights=0.8)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    store, steps, seen = CheckpointStore(str(tmp_path)), Kept(), list[int]()
    third = threading.Event()

    def emit(records: list[Record]) -> None:
        steps(records)
        if any(record.kind == "step" and record.step == 3 for record in records):
            third.set()

    def slow() -> None:
        if threading.current_thread().name == "checkpoint-writer" and not seen:
            assert third.wait(30)
            seen.append(3)

    store.before_write = slow
    train(WANTED, collectives=Local(), store=store, emit=emit)

    assert seen == [3]
    state = store.load()
    assert state is not None
    assert state["step"] == 10


def test_a_run_beside_slow_writes_equals_one_beside_fast_ones(tmp_path: Path) -> None:
    go(tmp_path / "a", WANTED)
    slow = CheckpointStore(str(tmp_path / "b"))
    slow.before_write = lambda: time.sleep(0.05)
    train(WANTED, collectives=Local(), store=slow, emit=Kept(), stop=after(4))
    stopped = slow.load()
    assert stopped is not None
    assert stopped["step"] == 4  # the run waited for its last checkpoint
    go(tmp_path / "b", WANTED, resume="must")
    assert_same(final(tmp_path / "b"), final(tmp_path / "a"))


def test_a_snapshot_does_not_change_with_the_run_and_one_is_written_at_a_time(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=3)
    writing: list[int] = []

    def slow() -> None:
        writing.append(1)
        assert len(writing) == 1
        time.sleep(0.05)
        writing.pop()

    store.before_write = slow
    writer, weight = CheckpointWriter(store), torch.zeros(3)
    state: dict[str, Any] = {"model": {"one": weight, "tied": weight}, "progress": {"losses": []}}
    for step in range(1, 4):
        writer.save(state | {"step": step}, best=False)
        weight.fill_(step)
        state["progress"]["losses"].append(step)
    writer.wait()

    loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 3
    assert loaded["model"]["one"].tolist() == [2, 2, 2]
    assert loaded["model"]["tied"].data_ptr() == loaded["model"]["one"].data_ptr()
    assert loaded["progress"]["losses"] == [1, 2]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run"))

    def fail() -> None:
        if threading.current_thread().name == "checkpoint-writer":
            raise CheckpointError("cannot write step-000000002.pt: no room")

    store.before_write = fail
    with pytest.raises(CheckpointError, match="no room"):
        train(WANTED, collectives=Local(), store=store, emit=Kept())
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint-writer"]


def test_a_snapshot_takes_the_bytes_of_parameters_and_optimizer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(CheckpointStore, "write", lambda self, state, best: taken.append(state) or "")
    model = torch.nn.Linear(64, 64)
    optimizer = optim.create("adam", model)
    objective = Objective(model, "squared_error")
    optimizer.step(objective.batch(torch.randn(4, 64), torch.randn(4, 64)))
    views = [*torch.zeros(1000).split(100)]  # of one storage
    writer = CheckpointWriter(CheckpointStore("unused"))
    writer.save({"step": 1, "model": model.state_dict(), "o": optimizer.state_dict(), "views": views}, best=False)
    writer.wait()

    tensors = [leaf for leaf in pytree.tree_leaves(taken) if isinstance(leaf, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert 3 * parameters + 4000 <= sum(storages.values()) <= 3 * parameters + 4000 + 64  # steps of Adam


def test_a_write_leaves_the_interpreter_to_the_steps(tmp_path: Path) -> None:
    """Hashing, checksums and the disk need none of it: the steps get as much of a processor as the writer at least."""
    seconds: list[float] = []
    store, state = CheckpointStore(str(tmp_path)), {"step": 1, "model": torch.ones(25_000_000)}

    def write() -> None:
        began = time.thread_time()
        store.write(state)
        seconds.append(time.thread_time() - began)

    thread = threading.Thread(target=write)
    began = time.thread_time()
    thread.start()
    while thread.is_alive():
        pass
    assert time.thread_time() - began > 0.5 * seconds[0]
