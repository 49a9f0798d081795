"""``jobs/train.py`` with the driver and the training in one process, and no Ray between: it starts in seconds.

The driver, the mailbox's class, the workers' messages, checkpoints and tracking are the real ones. The death of the
process is that of a driver and of the workers that Ray ends with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import runpy
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock


class _Method:
    def __init__(self, method: Callable[..., Any], lock: threading.Lock) -> None:
        self._method, self._lock = method, lock

    def remote(self, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            return self._method(*arguments, **named)


class _Actor:
    """An object whose methods are called as those of an actor are, one at a time."""

    def __init__(self, target: Any) -> None:
        self._target, self._lock = target, threading.Lock()

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._target, name), self._lock)


class _Module(types.ModuleType):
    """A module of Ray whose names are classes that do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


def without_ray() -> None:
    names = ("", ".exceptions", ".train", ".train.torch", ".train.backend", ".cloudpickle", ".util", ".util.metrics")
    for name in (*names, ".util.scheduling_strategies"):
        sys.modules[f"ray{name}"] = module = _Module(f"ray{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(f"ray{name}", None)
    ray: Any = sys.modules["ray"]
    for name in ("cloudpickle", "exceptions", "train"):
        setattr(ray, name, sys.modules[f"ray.{name}"])
    ray.cloudpickle.register_pickle_by_value = lambda module: None
    ray.remote = lambda **options: lambda kind: kind
    ray.get = lambda answer, timeout=None: answer
    ray.put = lambda value: value
    ray.wait = lambda answers, timeout=None: (answers, [])
    sys.modules["raycurv.service.ray_trainer"] = mock.MagicMock(trainer=_Trainer)
    sys.modules["raycurv.service.shared_storage"] = mock.MagicMock(probe_file=contextlib.nullcontext)

    from raycurv.service import mailbox, standby

    launch: Any = importlib.import_module("raycurv.service.launch")

    launch.ray_session = lambda cluster, notify: contextlib.nullcontext()
    standby.workers_on_standby = launch.workers_on_standby = lambda cluster: contextlib.nullcontext()  # type: ignore[assignment]
    mailbox.open_mailbox = lambda: _Actor(mailbox.Mailbox())  # type: ignore[assignment]


class _Trainer:
    def __init__(self, job: Any, mailbox: Any, *others: Any, **named: Any) -> None:
        self._mailbox = mailbox

    def fit(self) -> None:
        from raycurv.objective.collectives import Local
        from raycurv.service.mailbox import MessageSender
        from raycurv.service.worker import train_and_send

        while (job := self._mailbox.job.remote()[1]) is None:
            time.sleep(0.01)
        for task in job[0].tasks:
            sender = MessageSender(self._mailbox, task.run)
            train_and_send(task, sender, Local(), "cpu", mock.MagicMock(), stop=sender.stop)

    def give_back(self) -> None:
        """Do nothing: no resources are reserved."""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    without_ray()
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
