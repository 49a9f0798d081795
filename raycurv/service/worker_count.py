"""When the workers of a launch start, shrink and grow: a scaling and a failure policy of Ray Train.

Ray Train's elastic policy counts a dead node for another 16 s, tries to start on it, and kills the workers for a
resize without a checkpoint. These policies ask the nodes themselves (:mod:`raycurv.service.node_watch`), let the
workers write a checkpoint before an announced change, and send the driver a line about each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy

from raycurv.service.node_watch import NodeWatch
from raycurv.tracking.messages import WorkersNotice, to_bytes

SETTLED_SECONDS = 1.5  # that the room for workers stays the same before a group starts on less than the maximum
SILENT_SECONDS = 4.0  # without an answer, until a node counts as lost
BETWEEN_RESIZES = 10.0  # seconds that a group trains before it grows
PAUSE_SECONDS = 60.0  # that workers have for the checkpoint before a resize
LAST_SECONDS = 30.0  # before a node goes, when a checkpoint is written even if there is no other node
FIRST_WORD, NEXT_WORD = 5.0, 60.0  # seconds of waiting for workers until a line to the driver, and until another
POLL_SECONDS = 0.2
JUST_NOW = 0.5  # seconds since the answer of a node that has just been asked


class NoRoom(RuntimeError):
    """The cluster had no room for the workers for `worker_timeout` seconds; the message says what it has."""


# One controller per process: the policies and the callback, which Ray sends there separately, share what they see.
_shared: dict[str, Any] = {}


class GroupTracker(WorkerGroupCallback):
    """Keeps the newest group of workers for the policies, from its start to its end."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Keep the group."""
        _shared["group"] = worker_group

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Forget the group."""
        _shared.pop("group", None)

    def after_worker_group_abort(self, worker_group_context: Any) -> None:
        """Forget the group."""
        _shared.pop("group", None)


def _nodes_of_group() -> list[str]:
    """The node of each worker of the newest group; empty if there is none."""
    group = _shared.get("group")
    return [worker.metadata.node_id for worker in group.get_workers()] if group and group.has_started() else []


def _places_of_group() -> list[str]:
    """The node of each place that the newest group holds, where its next workers can start; empty if there is none.

    Ray moves the places of a lost node to another node, and no worker runs there yet.
    """
    from ray._private.state import state  # the public call refuses a group of places that has been removed

    group = _shared.get("group")
    if not group or not group.has_started():
        return []
    places = group.get_worker_group_state().placement_group_handle.placement_group
    return [node for node in state.placement_group_table(places.id).get("bundles_to_node_id", {}).values() if node]


def _watch() -> NodeWatch:
    if "watch" not in _shared:
        _shared["watch"] = NodeWatch()
        _shared["watch"].start()
    return _shared["watch"]


class WorkerCountPolicy(ScalingPolicy):
    """As many workers as there is room for, between a minimum and a maximum.

    Args:
        scaling_config: number and resources of the workers.
        mailbox: actor that takes messages for the driver.
        patience: seconds to wait for room for the minimum.
        pauses: whether workers pause before an announced change. Trials share a mailbox, so that a pause would reach
            the others too.
    """

    def __init__(self, scaling_config: Any, mailbox: Any, patience: float, *, pauses: bool = True) -> None:
        super().__init__(scaling_config)
        self._mailbox, self._patience, self._pauses = mailbox, patience, pauses
        self._room = (-1, 0.0)  # newest count, and since when
        self._waiting: float | None = None
        self._next_word = FIRST_WORD
        self._pausing: tuple[float, str] | None = None
        self._silent: set[str] = set()

    @property
    def _elastic(self) -> bool:
        return bool(self.scaling_config.min_workers < self.scaling_config.max_workers)

    def after_controller_start(self, train_run_context: Any) -> None:
        """Tell the driver who controls the workers, for a launch that gives up before they have a run."""
        super().after_controller_start(train_run_context)
        self._mailbox.set_controller.remote(ray.get_runtime_context().current_actor)

    def _get_num_workers_for_resource_request(self) -> int:
        return int(self.scaling_config.max_workers)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start a group once there is room for it.

        Raises:
            NoRoom: there was none for `patience` seconds.
        """
        self._maybe_send_resource_request()
        self._pausing = None
        self._silent.clear()
        now = time.monotonic()
        self._waiting = now if self._waiting is None else self._waiting
        count = self._settled(self._possible())
        if count is not None and count >= self.scaling_config.min_workers:
            self._waiting, self._next_word = None, FIRST_WORD
            return self._resize(count)
        waited = now - self._waiting
        if waited > self._patience:
            raise NoRoom(f"after {self._patience:g} s (--worker-timeout) there was {self._what_there_is()}")
        if waited > self._next_word:
            self._next_word = waited + NEXT_WORD
            self._tell(f"waiting for workers, up to {self._patience:g} s (--worker-timeout): {self._what_there_is()}")
        time.sleep(POLL_SECONDS)  # Ray's control loop asks again at once
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Shrink when a node is lost, grow when one has come, leave those that are about to go."""
        self._maybe_send_resource_request()
        nodes = [worker.metadata.node_id for worker in worker_group_state.workers]
        if self._pausing is not None:
            return self._after_pause(nodes)
        if decision := self._without_silent(nodes):
            return decision
        if not self._pauses:
            return NoopDecision()
        room = self._possible()
        if leaving := _watch().draining(nodes):
            near = min(_watch().seconds_left(node) for node in leaving) < LAST_SECONDS
            if near or room >= self.scaling_config.min_workers:
                self._pause(f"{self._names(leaving)} is about to go away")
        elif self._may_grow(worker_group_state, room) and self._settled(room) is not None:
            self._pause(f"there is room for {room} workers")
        return NoopDecision()

    def _may_grow(self, group: Any, room: int) -> bool:
        return room > group.num_workers and time.monotonic() - group.start_time > BETWEEN_RESIZES

    def _without_silent(self, nodes: list[str]) -> ScalingDecision | None:
        """The decision about nodes that do not answer; None if all do, or if they are waited for."""
        silent = {node for node in nodes if _watch().silence(node) > SILENT_SECONDS}
        count = self._possible()
        if silent and self._elastic and count >= self.scaling_config.min_workers:
            self._stopped(f"{self._names(silent)} does not answer: training goes on without it")
            self._silent = set()
            _kill_group()
            return self._resize(count)
        for node in silent - self._silent:
            self._tell(f"{_watch().address(node)} does not answer; waiting for it")
        for node in self._silent - silent:
            self._tell(f"{_watch().address(node)} answers again")
        self._silent = silent
        return None

    def _after_pause(self, nodes: list[str]) -> ScalingDecision:
        """Resize once every worker has stopped behind its checkpoint, or after `PAUSE_SECONDS`."""
        assert self._pausing is not None
        since, reason = self._pausing
        paused = ray.get(self._mailbox.paused.remote(), timeout=PAUSE_SECONDS)
        lost = any(_watch().silence(node) > SILENT_SECONDS for node in nodes)
        if paused < len(nodes) and not lost and time.monotonic() - since < PAUSE_SECONDS:
            return NoopDecision()
        self._pausing = None
        if lost:
            _kill_group()
        self._mailbox.go_on.remote()
        self._stopped(reason if paused == len(nodes) else f"{reason}; no checkpoint came in time")
        return self._resize(max(self._possible(), self.scaling_config.min_workers))

    def _pause(self, reason: str) -> None:
        self._pausing = (time.monotonic(), reason)
        self._mailbox.pause.remote()
        self._tell(f"{reason}: the workers write a checkpoint")

    def _resize(self, count: int) -> ScalingDecision:
        self._room = (-1, 0.0)
        return ResizeDecision(
            num_workers=count, resources_per_worker=self.scaling_config._resources_per_worker_not_none
        )

    def _settled(self, count: int) -> int | None:
        """The number of workers that there has been room for during `SETTLED_SECONDS`, or at once for all of them."""
        now = time.monotonic()
        if count != self._room[0]:
            self._room = (count, now)
        complete = count >= self.scaling_config.max_workers
        return count if complete or now - self._room[1] >= SETTLED_SECONDS else None

    def _possible(self) -> int:
        """Number of workers, up to the largest, that nodes have room for. Workers that died still hold their places."""
        return min(self._places(), int(self.scaling_config.max_workers))

    def _places(self) -> int:
        """Number of workers that fit on the nodes that can be used, in places that are free or the group's own."""
        from ray._private.state import available_resources_per_node

        each = self.scaling_config._resources_per_worker_not_none
        free = available_resources_per_node()
        usable = [node["NodeID"] for node in _watch().usable()]
        own = sum(node in usable for node in _places_of_group())
        left = [free.get(node, {}) for node in usable]
        fit = (min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in each.items()) for node in left)
        return own + sum(fit)

    def _what_there_is(self) -> str:
        wanted = self.scaling_config.min_workers
        nodes = [_watch().address(node["NodeID"]) for node in _watch().usable()]
        return f"room for {self._places()} of {wanted} workers on {len(nodes)} nodes that answer: {', '.join(nodes)}"

    def _names(self, nodes: Iterable[str]) -> str:
        return ", ".join(sorted({_watch().address(node) for node in nodes}))

    def _tell(self, text: str) -> None:
        _send(self._mailbox, text)

    def _stopped(self, reason: str) -> None:
        _send(self._mailbox, reason, "resize")


class WorkerFailurePolicy(DefaultFailurePolicy):
    """Start workers that died again; of an elastic group, one whose node was lost is no failure.

    Args:
        failure_config: how many failures are allowed.
        mailbox: actor that takes messages for the driver.
        elastic: whether the number of workers may change.
    """

    def __init__(self, failure_config: Any, mailbox: Any, elastic: bool) -> None:
        super().__init__(failure_config)
        self._mailbox, self._elastic = mailbox, elastic

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Whether to try again."""
        if isinstance(training_failed_error, ControllerError):
            _end_failed_start(training_failed_error.controller_failure)
        if isinstance(training_failed_error, WorkerGroupError):
            lost = _lost_nodes()
            if lost:
                _kill_group()
            if lost and self._elastic:
                _send(self._mailbox, f"{lost} is gone: training goes on without it", "resize")
                return FailureDecision.RETRY
            died = _died(sorted(training_failed_error.worker_failures))
            _send(self._mailbox, f"{lost} is gone" if lost else died, "failure")
        return super().make_decision(training_failed_error)


def _died(ranks: Sequence[int]) -> str:
    return f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} died"


def _end_failed_start(error: Exception) -> None:
    """End workers whose start failed late, which Ray leaves in the places that it needs for the next ones."""
    group = _shared.pop("group", None)
    if isinstance(error, WorkerGroupStartupFailedError) and group is not None and group.has_started():
        group.shutdown()


def _kill_group() -> None:
    """End all workers of the newest group at once.

    Those that wait for a lost one in a collective do not leave their process group, for which Ray would wait 7 s.
    """
    group = _shared.get("group")
    for worker in group.get_workers() if group is not None and group.has_started() else []:
        ray.kill(worker.actor)


def _lost_nodes() -> str:
    """The nodes of the newest group that cannot be reached; empty if all can."""
    watch = _watch()
    watch.look()
    lost = [node for node in sorted(set(_nodes_of_group())) if watch.silence(node) > JUST_NOW]
    return ", ".join(watch.address(node) for node in lost)


def _send(mailbox: Any, text: str, change: str = "") -> None:
    mailbox.put.remote(to_bytes(WorkersNotice(text, change)))
