"""When the workers of a launch start, shrink and grow, on nodes that the tests make up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

from raycurv.service import node_watch, worker_count
from raycurv.service.cluster import Cluster
from raycurv.tracking.messages import WorkersNotice, from_bytes

EACH = {"CPU": 1.0}


class Nodes:
    """A cluster with one free CPU on each node, and a group of workers on some of them."""

    def __init__(self) -> None:
        self.alive: dict[str, float] = {}  # name → free CPUs
        self.silent: dict[str, float] = {}  # name → seconds without an answer
        self.leaving: list[str] = []
        self.group: list[str] = []
        self.moved: dict[str, str] = {}  # node of a worker → node to which Ray has moved its place
        self.deadline = 120.0

    def usable(self) -> list[dict[str, Any]]:
        return [{"NodeID": name} for name in self.alive if name not in self.silent and name not in self.leaving]

    def silence(self, node: str) -> float:
        return self.silent.get(node, 0.0)

    def draining(self, nodes: list[str]) -> list[str]:
        return [node for node in nodes if node in self.leaving]

    def seconds_left(self, node: str) -> float:
        return self.deadline

    def address(self, node: str) -> str:
        return node

    def look(self) -> None:
        """Nothing: the answers are made up."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(worker_count, "time", clock)
    return clock


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Nodes:
    nodes = Nodes()
    free = lambda: {name: {"CPU": cpus} for name, cpus in nodes.alive.items()}  # noqa: E731
    monkeypatch.setattr("ray._private.state.available_resources_per_node", free)
    monkeypatch.setattr(worker_count, "_watch", lambda: nodes)
    monkeypatch.setattr(worker_count, "_nodes_of_group", lambda: nodes.group)
    places = lambda: [nodes.moved.get(name, name) for name in nodes.group]  # noqa: E731
    monkeypatch.setattr(worker_count, "_places_of_group", places)
    return nodes


class Mailbox:
    """The part of the actor that a policy calls."""

    def __init__(self) -> None:
        self.told: list[WorkersNotice] = []
        self.killed: list[str] = []
        self.order, self.workers_paused = "", 0
        self.put = SimpleNamespace(remote=lambda message: self.told.append(from_bytes(message)))  # type: ignore[arg-type]
        self.pause = SimpleNamespace(remote=lambda: setattr(self, "order", "pause"))
        self.go_on = SimpleNamespace(remote=lambda: setattr(self, "order", ""))
        self.paused = SimpleNamespace(remote=lambda: self.workers_paused)


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    mailbox = Mailbox()
    ray = SimpleNamespace(get=lambda value, timeout: value, kill=mailbox.killed.append)
    monkeypatch.setattr(worker_count, "ray", ray)
    return mailbox


@pytest.fixture
def policy(nodes: Nodes, mailbox: Mailbox) -> Callable[..., worker_count.WorkerCountPolicy]:
    def make(smallest: int, largest: int, **options: Any) -> worker_count.WorkerCountPolicy:
        config = SimpleNamespace(min_workers=smallest, max_workers=largest, _resources_per_worker_not_none=EACH)
        policy = worker_count.WorkerCountPolicy(config, mailbox, patience=30.0, **options)
        policy._coordinator_client = Mock()
        return policy

    return make


def start(policy: worker_count.WorkerCountPolicy, clock: Clock, seconds: float = 10.0) -> int:
    """Number of workers that a policy starts within some seconds; 0 for none."""
    end = clock.now + seconds
    while clock.now < end:
        decision = policy.make_decision_for_non_running_worker_group()
        if hasattr(decision, "num_workers"):
            return int(decision.num_workers)
    return 0


def resize(policy: worker_count.WorkerCountPolicy, nodes: Nodes, clock: Clock, seconds: float = 10.0) -> int:
    """Number of workers that a policy changes a running group to within some seconds; 0 for no change."""
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=name)) for name in nodes.group]
    group = SimpleNamespace(workers=workers, num_workers=len(workers), start_time=clock.now - 60)
    end = clock.now + seconds
    while clock.now < end:
        decision = policy.make_decision_for_running_worker_group(group, None)
        if hasattr(decision, "num_workers"):
            return int(decision.num_workers)
        clock.now += 0.5
    return 0


def test_a_fixed_number_starts_once_there_is_room_for_it(policy: Any, nodes: Nodes, clock: Clock) -> None:
    fixed = policy(2, 2)
    nodes.alive = {"n1": 1.0}
    assert start(fixed, clock) == 0
    nodes.alive["n2"] = 1.0
    assert start(fixed, clock) == 2


def test_a_range_starts_on_what_there_is(policy: Any, nodes: Nodes, clock: Clock) -> None:
    nodes.alive = {"n1": 1.0, "n2": 1.0}
    assert start(policy(1, 3), clock) == 2


def test_a_node_that_does_not_answer_is_no_room(policy: Any, nodes: Nodes, clock: Clock) -> None:
    nodes.alive, nodes.silent = {"n1": 1.0, "n2": 1.0}, {"n2": 3.5}
    assert start(policy(1, 3), clock) == 1


def test_workers_that_died_leave_their_places_to_the_next(policy: Any, nodes: Nodes, clock: Clock) -> None:
    nodes.alive, nodes.group = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"]
    assert start(policy(2, 2), clock) == 2


def test_the_place_of_a_lost_node_may_be_on_a_new_one(policy: Any, nodes: Nodes, clock: Clock) -> None:
    nodes.alive, nodes.group, nodes.moved = {"n1": 0.0, "n3": 0.0}, ["n1", "n2"], {"n2": "n3"}
    assert start(policy(2, 2), clock) == 2


def test_waiting_is_said_and_ends_with_what_there_was(
    policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox
) -> None:
    nodes.alive = {"n1": 1.0}
    with pytest.raises(worker_count.NoRoom, match=r"after 30 s \(--worker-timeout\) there was room for 1 of 2 workers"):
        start(policy(2, 2), clock, seconds=60)
    assert [notice.text for notice in mailbox.told] == [
        "waiting for workers, up to 30 s (--worker-timeout): room for 1 of 2 workers on 1 nodes that answer: n1"
    ]


def test_a_lost_node_shrinks_an_elastic_group(policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox) -> None:
    nodes.alive, nodes.group, nodes.silent = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"], {"n2": 5.0}
    assert resize(policy(1, 2), nodes, clock) == 1
    assert mailbox.told == [WorkersNotice("n2 does not answer: training goes on without it", "resize")]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox) -> list[str]:
    """The workers of the newest group that are ended at once."""
    workers = [SimpleNamespace(actor=name) for name in ("first", "second")]
    group = SimpleNamespace(has_started=lambda: True, get_workers=lambda: workers)
    monkeypatch.setitem(worker_count._shared, "group", group)
    return mailbox.killed


def test_workers_that_wait_for_a_lost_one_are_ended_at_once(
    policy: Any, nodes: Nodes, clock: Clock, killed: list[str]
) -> None:
    nodes.alive, nodes.group, nodes.silent = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"], {"n2": 5.0}
    assert resize(policy(1, 2), nodes, clock) == 1
    assert killed == ["first", "second"]


def test_workers_are_ended_at_once_where_one_is_lost_during_a_pause(
    policy: Any, nodes: Nodes, clock: Clock, killed: list[str]
) -> None:
    elastic = policy(1, 3)
    nodes.alive, nodes.group = {"n1": 0.0, "n2": 0.0, "n3": 1.0}, ["n1", "n2"]
    assert resize(elastic, nodes, clock) == 0
    assert killed == []
    nodes.silent = {"n2": 5.0}
    assert resize(elastic, nodes, clock) == 2
    assert killed == ["first", "second"]


@pytest.mark.parametrize(("elastic", "change"), [(True, "resize"), (False, "failure")])
@pytest.mark.parametrize("lost", ["n2", ""])
def test_the_loss_of_a_node_is_a_failure_of_a_fixed_number_alone(
    elastic: bool, change: str, lost: str, mailbox: Mailbox, killed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_count, "_lost_nodes", lambda: lost)
    config = SimpleNamespace(max_failures=1, controller_failure_limit=0)
    failures = worker_count.WorkerFailurePolicy(config, mailbox, elastic)
    error = WorkerGroupError("", {1: RuntimeError("gone")})
    assert failures.make_decision(error) is FailureDecision.RETRY
    assert [notice.change for notice in mailbox.told] == [change if lost else "failure"]
    assert killed == (["first", "second"] if lost else [])


def test_a_fixed_group_waits_for_a_node_with_a_word(policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox) -> None:
    fixed = policy(2, 2)
    nodes.alive, nodes.group, nodes.silent = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"], {"n2": 5.0}
    assert resize(fixed, nodes, clock) == 0
    nodes.silent.clear()
    assert resize(fixed, nodes, clock) == 0
    assert [notice.text for notice in mailbox.told] == ["n2 does not answer; waiting for it", "n2 answers again"]


def test_a_group_grows_once_all_workers_have_paused(policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox) -> None:
    elastic = policy(1, 3)
    nodes.alive, nodes.group = {"n1": 0.0, "n2": 1.0, "n3": 1.0}, ["n1"]
    assert resize(elastic, nodes, clock) == 0
    assert mailbox.order == "pause"
    mailbox.workers_paused = 1
    assert resize(elastic, nodes, clock) == 3
    assert mailbox.order == ""
    assert mailbox.told[-1] == WorkersNotice("there is room for 3 workers", "resize")


def test_workers_leave_a_node_that_is_about_to_go(policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox) -> None:
    elastic = policy(1, 2)
    nodes.alive, nodes.group, nodes.leaving = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"], ["n2"]
    assert resize(elastic, nodes, clock) == 0
    mailbox.workers_paused = 2
    assert resize(elastic, nodes, clock) == 1
    assert "n2 is about to go away" in mailbox.told[0].text


def test_a_fixed_group_uses_the_time_that_a_node_has_left(
    policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox
) -> None:
    fixed = policy(2, 2)
    nodes.alive, nodes.group, nodes.leaving = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"], ["n2"]
    assert resize(fixed, nodes, clock) == 0
    assert mailbox.order == ""
    nodes.deadline = 20.0
    assert resize(fixed, nodes, clock) == 0
    assert mailbox.order == "pause"


def test_a_trial_does_not_pause_the_others_that_share_its_mailbox(
    policy: Any, nodes: Nodes, clock: Clock, mailbox: Mailbox
) -> None:
    trial = policy(2, 2, pauses=False)
    nodes.alive, nodes.group, nodes.leaving, nodes.deadline = {"n1": 0.0, "n2": 0.0}, ["n1", "n2"], ["n2"], 20.0
    assert resize(trial, nodes, clock) == 0
    assert (mailbox.order, mailbox.told) == ("", [])


@pytest.mark.parametrize(("workers", "expected"), [(3, (3, 3)), ("3", (3, 3)), ("2-8", (2, 8))])
def test_the_number_of_workers_may_be_a_range(workers: Any, expected: tuple[int, int]) -> None:
    cluster = Cluster(workers=workers)
    assert (cluster.min_workers, cluster.max_workers) == expected
    assert cluster.seconds_between_checkpoints == (10.0 if expected[0] < expected[1] else None)


@pytest.mark.parametrize("workers", [0, True, -1, 1.5, "8-2", "0-2", "2-", "many", ""])
def test_anything_else_is_refused(workers: Any) -> None:
    with pytest.raises(ValueError, match=r"Cluster\.workers is .*; it must be .* a range as '2-8'"):
        Cluster(workers=workers)


def test_a_node_answers_as_long_as_its_port_is_open() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": listener.getsockname()[1]}
        assert node_watch._answer(node) is True
    assert node_watch._answer(node) is False


def test_a_packet_that_is_lost_is_sent_again_before_a_node_counts_as_silent() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as opened:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.settimeout(10)
        address, port = listener.getsockname()
        for _ in range(2):  # the queue is full: further packets are dropped, as a network does
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        time.sleep(0.1)
        later = threading.Timer(0.5, lambda: [opened.enter_context(listener.accept()[0]) for _ in range(2)])
        later.start()
        assert node_watch._answer({"NodeManagerAddress": address, "NodeManagerPort": port}) is True
        later.join()


@pytest.mark.parametrize(("ranks", "text"), [((1,), "worker 1 died"), ((1, 0), "workers 0, 1 died")])
def test_workers_that_died_are_named(
    ranks: tuple[int, ...], text: str, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_count, "_lost_nodes", str)
    failures = worker_count.WorkerFailurePolicy(
        SimpleNamespace(max_failures=1, controller_failure_limit=0), mailbox, False
    )
    failures.make_decision(WorkerGroupError("", {rank: RuntimeError("gone") for rank in ranks}))
    assert [notice.text for notice in mailbox.told] == [text]
