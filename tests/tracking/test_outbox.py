from __future__ import annotations

import threading
import time
from pathlib import Path

from raycurv.tracking.outbox import Delivery, DeliveryRefused, Outbox, read_back


class Server:
    """Takes deliveries while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.got: list[Delivery] = []

    def take(self, delivery: Delivery) -> None:
        if not self.up:
            raise ConnectionError("nobody there")
        if delivery.kind == "bad":
            raise DeliveryRefused("no such run")
        self.got.append(delivery)


def metric(step: int) -> Delivery:
    return Delivery("metrics", "run", metrics=(("loss", 0.5, 1, step),))


def steps(deliveries: list[Delivery]) -> list[int]:
    return [step for delivery in deliveries for _, _, _, step in delivery.metrics]


def test_metrics_that_wait_share_a_request_and_keep_their_order(tmp_path: Path) -> None:
    server = Server()
    outbox = Outbox(server.take, tmp_path, print)
    for step in range(2500):
        outbox.put(metric(step))
    outbox.put(Delivery("close", "run"))

    assert outbox.close(5.0) is None
    assert steps(server.got) == list(range(2500))
    assert [d.kind for d in server.got][-1] == "close"
    assert max(len(d.metrics) for d in server.got) <= 1000
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
    outbox.put(Delivery("close", "run", {"status": "FINISHED"}))
    path = outbox.close(0.1)

    assert path is not None
    assert read_back(path) == [metric(3), Delivery("close", "run", {"status": "FINISHED"})]


def test_a_refused_delivery_holds_nobody_up(tmp_path: Path) -> None:
    server, said = Server(), []
    outbox = Outbox(server.take, tmp_path, said.append)
    outbox.put(Delivery("bad", "run"))
    outbox.put(metric(1))

    assert outbox.close(5.0) is None
    assert steps(server.got) == [1]
    assert "refused bad of run run: no such run" in said[0]


def test_what_there_is_no_time_for_waits_in_a_file(tmp_path: Path) -> None:
    server = Server()
    outbox = Outbox(server.take, tmp_path, print)
    outbox.put(Delivery("model", "run"))
    outbox.put(Delivery("close", "run"))
    outbox.postpone("model")

    assert outbox.close(5.0) is None
    assert [delivery.kind for delivery in server.got] == ["close"]
    (path,) = tmp_path.iterdir()
    assert read_back(path) == [Delivery("model", "run")]


def test_what_is_on_its_way_at_the_end_is_not_lost(tmp_path: Path) -> None:
    asked, hang = threading.Event(), threading.Event()

    def take(delivery: Delivery) -> None:
        if asked.is_set():
            hang.wait(20.0)
        asked.set()
        raise ConnectionError("nobody there")

    outbox = Outbox(take, tmp_path, print)
    outbox.put(metric(1))
    assert asked.wait(20.0)
    outbox.put(Delivery("close", "run"))
    time.sleep(1.0)  # the second attempt has begun
    left = outbox.close(0.1)
    hang.set()

    assert left is not None
    assert [delivery.kind for delivery in read_back(left)] == ["metrics", "close"]
