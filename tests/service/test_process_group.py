"""What follows where the workers cannot connect to each other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

from raycurv.service import process_group, worker_count
from raycurv.service.process_group import ATTEMPTS, NodeTorchBackend, NodeTorchConfig, WorkersNotConnected

RESET = "Gloo connectFullMesh failed with [pair.cc:538] Connection closed by peer [127.0.0.1]:4711"


class Group:
    """Two workers.

    Args:
        answers: how the call of each to connect ends: an error, or None where it connects.
    """

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = answers
        self.ended = False

    def __len__(self) -> int:
        return len(self.answers)

    def execute_async(self, function: Callable[..., Any]) -> list[Any]:
        return []

    def execute_single(self, rank: int, function: Callable[..., Any]) -> tuple[str, int]:
        return "127.0.0.1", 1

    def execute_single_async(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.answers[rank]

    def shutdown(self) -> None:
        self.ended = True


def failed(text: str) -> RayTaskError:
    return RayTaskError("_join", f"RuntimeError: {text}", RuntimeError(text))


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Group], None]:
    def get(answers: list[Any]) -> None:
        for answer in answers:
            if answer is not None:
                raise answer

    monkeypatch.setattr(process_group, "ray", SimpleNamespace(get=get, wait=lambda calls: (calls[:1], calls[1:])))
    backend = NodeTorchBackend()
    return lambda group: backend.on_start(group, NodeTorchConfig())


@pytest.mark.parametrize("text", [RESET, "torch.distributed.DistNetworkError: failed to recv, got 0 bytes"])
def test_workers_that_lose_a_connection_are_started_again(start: Callable[[Group], None], text: str) -> None:
    group = Group(None, failed(text))
    with pytest.raises(WorkerGroupStartupFailedError) as raised:
        start(group)
    assert group.ended
    config = SimpleNamespace(max_failures=0, controller_failure_limit=1)
    policy = worker_count.WorkerFailurePolicy(config, Mock(), False)
    assert policy.make_decision(ControllerError(raised.value)) is FailureDecision.RETRY
    start(Group(None, None))


def test_workers_that_never_connect_end_the_launch_with_what_to_do(start: Callable[[Group], None]) -> None:
    start(Group(None, None))
    for _ in range(ATTEMPTS - 1):
        with pytest.raises(WorkerGroupStartupFailedError):
            start(Group(failed(RESET), failed(RESET)))
    with pytest.raises(WorkersNotConnected, match=r"after 3 attempts .*closed by peer.*set GLOO_SOCKET_IFNAME"):
        start(Group(failed(RESET), failed(RESET)))


@pytest.mark.parametrize("error", [failed("no such backend"), RayActorError()])
def test_any_other_error_of_the_start_ends_the_workers_too(start: Callable[[Group], None], error: Exception) -> None:
    group = Group(None, error)
    with pytest.raises(type(error)):
        start(group)
    assert group.ended
