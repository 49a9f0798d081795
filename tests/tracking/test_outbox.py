from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path

from raycurv.tracking.messages import LogModel, LogRecords, LogText, SetStatus, SetTags, TrackingMessage
from raycurv.tracking.outbox import MessageRefused, Outbox, read_unsent, write_unsent
from raycurv.train import Record


class Server:
    """Takes messages while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.got: list[TrackingMessage] = []

    def take(self, message: TrackingMessage) -> None:
        if not self.up:
            raise ConnectionError("nobody there")
        if isinstance(message, LogText):
            raise MessageRefused("no such run")
        self.got.append(message)


CLOSE, MODEL = SetStatus("run", "FINISHED", 1.0), LogModel("run", "checkpoints")


def metric(step: int) -> LogRecords:
    return LogRecords("run", (Record("progress", step, 0.0, 0.001, {"loss": 0.5}),))


def steps(messages: list[TrackingMessage]) -> list[int]:
    return [record.step for message in messages if isinstance(message, LogRecords) for record in message.records]


def test_metrics_that_wait_share_a_request_and_keep_their_order(tmp_path: Path) -> None:
    server = Server()
    outbox = Outbox(server.take, tmp_path, print)
    for step in range(2500):
        outbox.put(metric(step))
    outbox.put(CLOSE)

    assert outbox.close(5.0) is None
    assert steps(server.got) == list(range(2500))
    assert server.got[-1] == CLOSE
    assert max(len(steps([message])) for message in server.got) <= 1000
    assert len(server.got) < 20


def test_a_server_that_comes_back_gets_everything(tmp_path: Path) -> None:
    server, said = Server(), []
    server.up = False
    outbox = Outbox(server.take, tmp_path, said.append)
    for step in range(10):
        outbox.put(metric(step))
    while not said:
        time.sleep(0.05)
    server.up = True

    assert outbox.close(20.0) is None
    assert steps(server.got) == list(range(10))
    assert "does not answer (nobody there)" in said[0]
    assert "answers again" in said[1]


def test_what_a_dead_server_does_not_take_is_written_down(tmp_path: Path) -> None:
    server = Server()
    server.up = False
    outbox = Outbox(server.take, tmp_path, lambda line: None)
    outbox.put(metric(3))
    outbox.put(CLOSE)
    path = outbox.close(0.1)

    assert path is not None
    assert read_unsent(path) == ([metric(3), CLOSE], [])


def test_a_refused_message_holds_nobody_up(tmp_path: Path) -> None:
    server, said = Server(), []
    outbox = Outbox(server.take, tmp_path, said.append)
    outbox.put(LogText("run", "name", "text"))
    outbox.put(metric(1))

    assert outbox.close(5.0) is None
    assert steps(server.got) == [1]
    assert "refused LogText of run run: no such run" in said[0]


def test_what_there_is_no_time_for_waits_in_a_file(tmp_path: Path) -> None:
    server = Server()
    outbox = Outbox(server.take, tmp_path, print)
    outbox.put(MODEL)
    outbox.put(CLOSE)
    outbox.postpone(LogModel)

    assert outbox.close(5.0) is None
    assert server.got == [CLOSE]
    (path,) = tmp_path.iterdir()
    assert read_unsent(path) == ([MODEL], [])


def test_what_is_on_its_way_at_the_end_is_not_lost(tmp_path: Path) -> None:
    asked, hang = threading.Event(), threading.Event()

    def take(message: TrackingMessage) -> None:
        if asked.is_set():
            hang.wait(20.0)
        asked.set()
        raise ConnectionError("nobody there")

    outbox = Outbox(take, tmp_path, print)
    outbox.put(metric(1))
    assert asked.wait(20.0)
    outbox.put(CLOSE)
    time.sleep(1.0)  # the second attempt has begun
    left = outbox.close(0.1)
    hang.set()

    assert left is not None
    assert read_unsent(left) == ([metric(1), CLOSE], [])


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
    path = write_unsent([metric(1), CLOSE], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    path.write_text("\n".join([*BAD[:3], path.read_text().rstrip("\n"), *BAD[3:]]))
    assert read_unsent(path) == ([metric(1), CLOSE], BAD)
