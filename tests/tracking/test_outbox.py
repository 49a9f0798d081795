from __future__ import annotations

import errno
import itertools
import json
import math
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raycurv.tracking.messages import (
    LogModel,
    LogRecords,
    LogRun,
    LogText,
    SetStatus,
    SetTags,
    TrackingMessage,
    to_bytes,
)
from raycurv.tracking.outbox import MessageRefused, Outbox
from raycurv.tracking.spool import Spool, SpoolInUse
from raycurv.tracking.unsent_files import append_lines, read_message, read_unsent
from raycurv.train import Record


class Server:
    """Takes messages while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.artifacts = True
        self.answering = True
        self.bad: set[str] = set()  # names of metrics that it refuses
        self.got: list[TrackingMessage] = []

    def take(self, message: TrackingMessage) -> None:
        if not self.up:
            raise ConnectionError("nobody there")
        if isinstance(message, LogText):
            if not self.artifacts:
                raise PermissionError("cannot write artifacts")
            raise MessageRefused("no such run")
        if isinstance(message, LogRecords) and any(self.bad & r.values.keys() for r in message.records):
            raise MessageRefused("bad name", whole=False)
        self.got.append(message)

    def answers(self) -> bool:
        return self.answering


CLOSE, MODEL = SetStatus("run", "FINISHED", 1.0), LogModel("run", "checkpoints")
TEXT = LogText("run", "name", "text")


def metric(step: int, **more: float) -> LogRecords:
    return LogRecords("run", (Record("progress", step, 0.0, 0.001, {"loss": 0.5, **more}),))


def steps(messages: list[TrackingMessage]) -> list[int]:
    return [record.step for message in messages if isinstance(message, LogRecords) for record in message.records]


def outbox_of(server: Server, folder: Path, said: list[str] | None = None) -> Outbox:
    return Outbox(server.take, Spool(folder / "1.spool"), ([] if said is None else said).append, answers=server.answers)


def left_in(path: Path) -> list[TrackingMessage]:
    spool = Spool.open(path)
    rows = sorted(row for line in ("records", "tags", "artifacts") for row in spool.waiting(line))
    spool.close()
    return [read_message(entry) for _, entry in rows]


def test_metrics_that_wait_share_a_request_and_keep_their_order(tmp_path: Path) -> None:
    server = Server()
    outbox = outbox_of(server, tmp_path)
    for step in range(2500):
        outbox.put(metric(step))
    outbox.put(CLOSE)

    assert outbox.close(5.0) is None
    assert steps(server.got) == list(range(2500))
    assert server.got[-1] == CLOSE
    assert max(len(steps([message])) for message in server.got) <= 1000
    assert len(server.got) < 20
    assert not list(tmp_path.iterdir())


def test_what_is_dropped_never_arrives(tmp_path: Path) -> None:
    server = Server()
    outbox = outbox_of(server, tmp_path)
    outbox.put(metric(1))
    assert outbox.save()
    outbox.drop()
    outbox.put(metric(2))

    assert outbox.close(5.0) is None
    assert steps(server.got) in ([], [1])  # one that is on its way may arrive
    assert not list(tmp_path.iterdir())


def test_tags_between_metrics_do_not_divide_a_request(tmp_path: Path) -> None:
    server = Server()
    outbox = outbox_of(server, tmp_path)
    for step in range(300):
        outbox.put(metric(step))
        outbox.put(SetTags("run", {"event": str(step), str(step): "x"}))

    assert outbox.close(5.0) is None
    assert steps(server.got) == list(range(300))
    assert len(server.got) < 10
    tags = [message for message in server.got if isinstance(message, SetTags)]
    assert tags[-1].tags["event"] == "299"
    assert len({name for message in tags for name in message.tags}) == 301


def test_what_waits_is_delivered_without_a_pause_between_requests(tmp_path: Path) -> None:
    server = Server()
    outbox = outbox_of(server, tmp_path)
    for step in range(20_000):
        outbox.put(metric(step))
    began = time.monotonic()
    while len(steps(server.got)) < 20_000:
        assert time.monotonic() - began < 8.0
        time.sleep(0.05)
    outbox.close(5.0)


def test_a_server_that_comes_back_gets_everything(tmp_path: Path) -> None:
    server, said = Server(), []
    server.up = False
    outbox = outbox_of(server, tmp_path, said)
    for step in range(10):
        outbox.put(metric(step))
    while not said:
        time.sleep(0.05)
    server.up = True

    assert outbox.close(20.0) is None
    assert steps(server.got) == list(range(10))
    assert "does not answer (nobody there)" in said[0]
    assert "answers again" in said[1]


def test_what_a_dead_server_does_not_take_is_on_disk(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    outbox = outbox_of(server, tmp_path)
    outbox.put(metric(3))
    outbox.put(CLOSE)
    path = outbox.close(0.1)

    assert path is not None
    assert left_in(path) == [metric(3), CLOSE]


def test_a_refused_message_holds_nobody_up_and_is_set_aside(tmp_path: Path) -> None:
    server, said = Server(), []
    outbox = outbox_of(server, tmp_path, said)
    outbox.put(TEXT)
    outbox.put(TEXT)
    outbox.put(metric(1))

    assert outbox.close(5.0) is None
    assert steps(server.got) == [1]
    (message,) = said
    assert "refused LogText of run run: no such run. It is set aside in" in message
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".refused"
    assert read_unsent(path) == ([TEXT, TEXT], [])


def test_a_metric_that_is_refused_takes_no_other_with_it(tmp_path: Path) -> None:
    server = Server()
    server.bad = {"bad%"}
    outbox = outbox_of(server, tmp_path)
    for step in range(100):
        outbox.put(metric(step, **({"bad%": 1.0} if step == 37 else {})))

    assert outbox.close(5.0) is None
    assert steps(server.got) == list(range(100))
    (path,) = tmp_path.iterdir()
    ((refused,), _) = read_unsent(path)
    assert isinstance(refused, LogRecords)
    assert [dict(record.values) for record in refused.records] == [{"bad%": 1.0}]


def test_artifacts_that_cannot_be_stored_hold_up_neither_metrics_nor_states(tmp_path: Path) -> None:
    server, said = Server(), []
    server.artifacts = False
    outbox = outbox_of(server, tmp_path, said)
    outbox.put(TEXT)
    outbox.put(metric(1))
    outbox.put(CLOSE)
    outbox.put(SetTags("run", {"a": "b"}))
    assert outbox.settle(5.0) == ""
    path = outbox.close(0.5)

    assert path is not None
    assert left_in(path) == [TEXT]
    assert [m for m in server.got if not isinstance(m, SetTags)] == [metric(1), CLOSE]
    assert SetTags("run", {"a": "b"}) in server.got
    (message,) = said
    assert "MLflow does not take artifacts (cannot write artifacts)" in message


def test_a_message_that_alone_fails_lets_the_next_ones_pass(tmp_path: Path) -> None:
    got: list[TrackingMessage] = []

    def take(message: TrackingMessage) -> None:
        if isinstance(message, LogRun):
            raise RuntimeError("internal error")
        got.append(message)

    bad = LogRun("one", "{}", {}, None, (), "FINISHED", 1.0)
    outbox = Outbox(take, Spool(tmp_path / "1.spool"), lambda line: None, answers=lambda: True)
    outbox.put(bad)
    outbox.put(metric(1))
    began = time.monotonic()
    assert outbox.settle(1.0) == ""
    while not got:
        assert time.monotonic() - began < 20.0
        time.sleep(0.05)
    path = outbox.close(0.0)

    assert got == [metric(1)]
    assert path is not None
    assert left_in(path) == [bad]


def test_what_there_is_no_time_for_waits_on_disk(tmp_path: Path) -> None:
    server = Server()
    outbox = outbox_of(server, tmp_path)
    outbox.put(MODEL)
    outbox.put(CLOSE)
    outbox.postpone(LogModel)

    assert outbox.close(5.0) is None
    assert server.got == [CLOSE]
    (path,) = tmp_path.iterdir()
    assert left_in(path) == [MODEL]


def test_what_is_on_its_way_at_the_end_is_not_lost(tmp_path: Path) -> None:
    asked, hang = threading.Event(), threading.Event()

    def take(message: TrackingMessage) -> None:
        if asked.is_set():
            hang.wait(20.0)
        asked.set()
        raise ConnectionError("nobody there")

    outbox = Outbox(take, Spool(tmp_path / "1.spool"), print)
    outbox.put(metric(1))
    assert asked.wait(20.0)
    outbox.put(CLOSE)
    time.sleep(1.0)  # the second attempt has begun
    left = outbox.close(0.1)
    hang.set()

    assert left is not None
    assert left_in(left) == [metric(1), CLOSE]


def test_memory_does_not_grow_while_the_server_is_away(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    outbox = outbox_of(server, tmp_path)
    for step in range(20_000):
        outbox.put(metric(step))
        if step % 100 == 0:
            assert outbox.save()
    assert outbox.save()

    assert len(outbox.spool) == 20_000
    assert not outbox.spool._unsaved
    assert outbox.close(0.0) is not None


def test_a_full_disk_is_told_once_and_what_fits_in_memory_is_delivered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server, said = Server(), []
    outbox = Outbox(server.take, Spool(tmp_path / "file" / "1.spool"), said.append)
    outbox.put(metric(1))
    assert not outbox.save()
    outbox.put(metric(2))
    assert not outbox.save()

    assert outbox.close(5.0) is None
    assert steps(server.got) == [1, 2]
    (message,) = said
    assert "cannot be written to" in message


def test_a_disk_that_becomes_read_only_delivers_all_and_ends_no_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, said = Server(), []
    server.up = False
    outbox = Outbox(server.take, Spool(tmp_path / "1.spool"), said.append)
    outbox.put(metric(1))
    assert outbox.save()

    def refuse(*arguments: object, **options: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    def refuse_file(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr(Spool, "_write", refuse)
        read_only.setattr(Path, "unlink", refuse_file)
        outbox.put(metric(2))
        assert not outbox.save()
        server.up = True
        assert outbox.close(20.0) is None
    assert steps(server.got) == [1, 2]
    assert any("cannot be written to" in line for line in said)
    # What the server has is still on the disk, and is sent again by the next start: the server stores it once.
    assert left_in(tmp_path / "1.spool") == [metric(1)]


CODE = """
import sys, time
from pathlib import Path
from raycurv.tracking.messages import LogRecords
from raycurv.tracking.outbox import Outbox
from raycurv.tracking.spool import Spool
from raycurv.train import Record

def away(message):
    raise ConnectionError("nobody there")

outbox = Outbox(away, Spool(Path(sys.argv[1])), lambda line: None)
step = 0
while True:
    step += 1
    outbox.put(LogRecords("run", (Record("progress", step, 0.0, 0.001, {"loss": 0.5}),)))
    if step % 7 == 0 and outbox.save():
        print(step, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3, 40, 200])
def test_what_was_saved_survives_the_death_of_the_process(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "1.spool"
    with subprocess.Popen([sys.executable, "-c", CODE, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        saved = [int(line) for line in itertools.islice(process.stdout, lines)][-1]
        with pytest.raises(SpoolInUse):
            Spool.open(path)
        process.kill()

    server = Server()
    outbox = outbox_of(server, tmp_path / "next")
    assert outbox.take_over(Spool.open(path))
    assert not path.exists()
    assert outbox.close(5.0) is None
    got = steps(server.got)
    assert got == list(range(1, len(got) + 1))
    assert len(got) >= saved


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    lines = [
        {"kind": "metrics", "run": "run", "values": {}, "metrics": [["loss", 0.5, 1, 3], ["loss", math.nan, 1001, 4]]},
        {"kind": "tags", "run": "run", "values": {"raycurv.event": "x"}, "metrics": []},
        {"kind": "text", "run": "run", "values": {"name": "config.json", "text": "{}"}, "metrics": []},
        {"kind": "status", "run": "run", "values": {"status": "RUNNING"}, "metrics": []},
        {"kind": "model", "run": "run", "values": {"checkpoints": "checkpoints"}, "metrics": []},
        {"kind": "close", "run": "run", "values": {"status": "FINISHED", "time": 1000}, "metrics": []},
    ]
    path = tmp_path / "unsent.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (first, *others), bad = read_unsent(path)
    assert not bad

    assert isinstance(first, LogRecords)
    assert [(record.step, record.time) for record in first.records] == [(3, 0.001), (4, 1.001)]
    assert first.records[0].values == {"loss": 0.5}
    assert math.isnan(first.records[1].values["loss"])
    assert others == [
        SetTags("run", {"raycurv.event": "x"}), LogText("run", "config.json", "{}"), SetStatus("run", "RUNNING"), MODEL,
        CLOSE,
    ]  # fmt: skip


BAD = [
    *('{"kind": "SetStatus", "run": "1", "sta', "null", "3", "[]", '{"kind": "exec"}'),
    *('{"metrics": [], "kind": "tags"}', "[" * 10**5),
]


def test_lines_that_are_no_messages_are_set_aside_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    good = [to_bytes(message).decode() for message in (metric(1), CLOSE)]
    append_lines(path, [line.encode() for line in [*BAD[:3], *good, *BAD[3:]]])
    assert read_unsent(path) == ([metric(1), CLOSE], BAD)


def test_a_damaged_entry_is_set_aside(tmp_path: Path) -> None:
    server, said = Server(), []
    outbox = outbox_of(server, tmp_path, said)
    outbox.spool.add("records", b'{"kind": "LogRec')
    outbox.put(metric(1))

    assert outbox.close(5.0) is None
    assert steps(server.got) == [1]
    assert "is damaged" in said[0]
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == b'{"kind": "LogRec\n'
