"""Queue from the training processes to the driver: an actor that takes no CPU and makes nobody wait.

A training process learns which of its messages the driver has accepted, that is, has written to its disk.
"""

from __future__ import annotations

import secrets
import sys
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import ray
import ray.cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycurv.tracking.messages import LogRecords, Message, RunFailed, RunMessage, from_bytes, to_bytes
from raycurv.train.records import Record

# Ray sends the actor's class by value, so that its process need not import this package, and with it torch.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
SECONDS = 60.0


@ray.remote(num_cpus=0, max_restarts=0)
class Mailbox:
    """Keeps messages as bytes until the driver takes them, and the driver's request to stop."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, bytes]] = []
        self._taken: deque[str] = deque()  # senders of messages that are not accepted yet, oldest first
        self._accepted: Counter[str] = Counter()
        self._order = ""
        self._paused: set[int] = set()
        self._failed: set[str] = set()
        self._hung: set[str] = set()
        self._job: list[Any] | None = None
        self._controller: Any = None

    def put(self, message: bytes, sender: str = "", failed: str | None = None) -> tuple[str, int]:
        """Add a message.

        Args:
            message: the message as bytes.
            sender: process that sends it.
            failed: name of the run if the message reports its failure.

        Returns:
            What :meth:`order` returns, and the number of messages of the sender that are accepted.
        """
        self._messages.append((sender, message))
        if failed is not None:
            self._failed.add(failed)
        return self._order, self._accepted[sender]

    def order(self) -> str:
        """What the training processes should do: ``stop``, ``pause``, or nothing if empty."""
        return self._order

    def take(self) -> list[bytes]:
        """Remove and return all messages, oldest first."""
        taken, self._messages = self._messages, []
        self._taken.extend(sender for sender, _ in taken)
        return [message for _, message in taken]

    def accept(self, count: int) -> None:
        """Confirm the oldest messages that were taken, once losing them here does no harm."""
        for _ in range(count):
            self._accepted[self._taken.popleft()] += 1

    def stop(self) -> None:
        """Ask the training processes to write a checkpoint and end."""
        self._order = "stop"

    def pause(self) -> None:
        """Ask the training processes to write a checkpoint and wait for their end, before a change of their number."""
        self._order = self._order or "pause"
        self._paused.clear()

    def add_paused(self, rank: int) -> None:
        """Note that a worker has paused."""
        self._paused.add(rank)

    def paused(self) -> int:
        """Number of workers that have paused."""
        return len(self._paused)

    def go_on(self) -> None:
        """End a pause: the workers that start next should train."""
        self._order = "" if self._order == "pause" else self._order

    def give_job(self, job: list[Any]) -> None:
        """Hand the runs to workers that wait for them.

        Args:
            job: a reference to them in a list, so that Ray does not load it here.
        """
        self._job = job

    def job(self) -> tuple[str, list[Any] | None]:
        """What :meth:`order` returns, and the runs; None until the driver has given them."""
        return self._order, self._job

    def set_controller(self, controller: Any) -> None:
        """Note the actor that starts the workers."""
        self._controller = controller

    def controller(self) -> Any:
        """The actor that starts the workers; None until it runs."""
        return self._controller

    def add_hung(self, run: str) -> None:
        """Note that the process of a run did not end by itself."""
        self._hung.add(run)

    def hung(self, run: str) -> bool:
        """Whether an earlier process of a run did not end by itself."""
        return run in self._hung

    def failed(self, runs: Sequence[str]) -> bool:
        """Whether one of the runs met an error that another attempt would meet too."""
        return not self._failed.isdisjoint(runs)


class MessageSender:
    """Sends the messages of one process, one at a time: training waits only for the message before.

    Args:
        mailbox: actor that takes them.
        run: name of the run that records belong to.
        active: whether this process sends records; of several workers only the first one does.

    Attributes:
        accepted: number of messages that the driver is known to have accepted.
    """

    def __init__(self, mailbox: Any, run: str, active: bool = True) -> None:
        self._mailbox, self._run, self._active = mailbox, run, active
        self._name = secrets.token_hex(8)
        self._pending: Any = None
        self._order = ""
        self._sent = self.accepted = 0

    def put(self, message: RunMessage) -> int:
        """Send a message once the one before has arrived.

        Returns:
            Number of messages so far.
        """
        if self._active:
            self.flush()
            self._sent += 1
            self._pending = self._mailbox.put.remote(to_bytes(message), self._name)
        return self._sent

    def fail(self, message: RunFailed) -> None:
        """Report a failure from any worker, and wait until it has arrived."""
        ray.get(self._mailbox.put.remote(to_bytes(message), failed=message.run), timeout=SECONDS)

    def send(self, records: Sequence[Record]) -> int:
        """Send records if there are any.

        Returns:
            Number of messages so far.
        """
        return self.put(LogRecords(self._run, tuple(records))) if records else self._sent

    def flush(self) -> None:
        """Wait until the last message has arrived."""
        if self._pending is not None:
            self._order, self.accepted = ray.get(self._pending, timeout=SECONDS)
            self._pending = None

    @property
    def pausing(self) -> bool:
        """Whether training stopped for a change of the number of workers."""
        return self._order == "pause"

    def stop(self) -> bool:
        """Whether training should stop or pause, as far as answers that have arrived tell."""
        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            self.flush()
        return bool(self._order)


def open_mailbox() -> Any:
    """Start a mailbox on the node of this process, so that it lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = Mailbox
    return actor.options(scheduling_strategy=here).remote()


def receive(mailbox: Any) -> list[Message]:
    """Take the messages that came since the last call, oldest first; the driver accepts them afterwards."""
    return [from_bytes(message) for message in ray.get(mailbox.take.remote(), timeout=SECONDS)]


def accept(mailbox: Any, count: int) -> None:
    """Confirm the oldest messages that were received, once the driver has them on its disk; does not wait."""
    if count:
        mailbox.accept.remote(count)
