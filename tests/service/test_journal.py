from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raycurv.service.journal import RECENT, JournaledCheckpoints
from raycurv.train import Record, Result


class Mail:
    def __init__(self) -> None:
        self.sent: list[Record] = []
        self.flushed = self.accepted = self.messages = 0

    def send(self, records: Sequence[Record]) -> int:
        self.sent += records
        self.messages += 1
        return self.messages

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


def test_a_checkpoint_holds_only_the_newest_of_the_records_that_the_driver_has_accepted(tmp_path: Path) -> None:
    first = Mail()
    store = JournaledCheckpoints(str(tmp_path), 2, first)
    for number in range(3 * RECENT):
        store.emit([record(number)])
        first.accepted = number
    store.save({"step": 1})

    mail = Mail()
    JournaledCheckpoints(str(tmp_path), 2, mail).load()
    assert [r.step for r in mail.sent] == list(range(2 * RECENT, 3 * RECENT))


def test_a_checkpoint_holds_every_record_that_the_driver_has_not_accepted(tmp_path: Path) -> None:
    first = Mail()
    store = JournaledCheckpoints(str(tmp_path), 2, first)
    for number in range(3 * RECENT):
        store.emit([record(number)])
        first.accepted = min(number, 100)
    store.save({"step": 1})

    mail = Mail()
    JournaledCheckpoints(str(tmp_path), 2, mail).load()
    assert [r.step for r in mail.sent] == list(range(100, 3 * RECENT))


def test_a_finished_run_sends_the_records_of_its_last_checkpoint_again(tmp_path: Path) -> None:
    store = JournaledCheckpoints(str(tmp_path), 2, Mail())
    store.emit([record(1), record(2)])
    store.save({"step": 2})
    result = Result("one", 2, 1.0, {}, (), 1.0, 1.0)
    store.finish(result)

    mail = Mail()
    assert JournaledCheckpoints(str(tmp_path), 2, mail).finished() == result
    assert [r.step for r in mail.sent] == [1, 2]


def test_a_result_is_whole_without_its_checkpoints(tmp_path: Path) -> None:
    store = JournaledCheckpoints(str(tmp_path), 2, Mail())
    store.save({"step": 2})
    result = Result("one", 2, 1.0, {}, (), 1.0, 1.0)
    store.finish(result)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"")

    assert JournaledCheckpoints(str(tmp_path), 2, Mail()).finished() == result
