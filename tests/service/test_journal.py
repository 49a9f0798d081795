from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raycurv.service.journal import RECENT, JournaledCheckpoints
from raycurv.train import Record


class Mail:
    def __init__(self) -> None:
        self.sent: list[Record] = []
        self.flushed = 0

    def send(self, records: Sequence[Record]) -> None:
        self.sent += records

    def flush(self) -> None:
        self.flushed = len(self.sent)


def record(step: int) -> Record:
    return Record("step", step, step / 10, 1.5, {"train/loss": 0.5, "optimizer/damping": float("nan")}, "said")


def test_records_before_a_checkpoint_have_arrived_before_it_is_written(tmp_path: Path) -> None:
    mail = Mail()
    store = JournaledCheckpoints(str(tmp_path), 2, mail)
    store.emit([record(1), record(2)])
    store.save({"step": 2})

    assert mail.flushed == 2


def test_going_on_from_a_checkpoint_sends_its_records_again(tmp_path: Path) -> None:
    store = JournaledCheckpoints(str(tmp_path), 2, Mail())
    store.emit([record(1), record(2)])
    store.save({"step": 2, "model": {}})
    store.emit([record(3)])  # after the checkpoint: will be made again

    mail = Mail()
    assert JournaledCheckpoints(str(tmp_path), 2, mail).load() == {"step": 2, "model": {}}
    assert [(r.step, r.message, r.kind) for r in mail.sent] == [(1, "said", "step"), (2, "said", "step")]


def test_a_checkpoint_holds_only_the_newest_records(tmp_path: Path) -> None:
    store = JournaledCheckpoints(str(tmp_path), 2, Mail())
    store.emit([record(step) for step in range(3 * RECENT)])
    store.save({"step": 1})

    mail = Mail()
    JournaledCheckpoints(str(tmp_path), 2, mail).load()
    assert [r.step for r in mail.sent] == list(range(2 * RECENT, 3 * RECENT))
