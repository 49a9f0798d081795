from __future__ import annotations

import dataclasses
import io
import types

import pytest
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.utils.callback import _create_default_callbacks

from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.service import tune_callback
from raycurv.service.driver_lock import DriverLock, LockClaim
from raycurv.service.terminal import TerminalProgress
from raycurv.service.trial import TrialTask
from raycurv.tracking.messages import LogRecords
from raycurv.train import Record


def test_long_trials_are_not_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    sweep = types.SimpleNamespace(name="sweep", terminal=TerminalProgress(said), lock=DriverLock())
    tasks = [
        TrialTask(n, "{}", "", LockClaim("", ""), Outcome(n, "vgg", "adam", "learning_rate=0.1", seed), "")
        for seed, n in enumerate("abc")
    ]
    evaluation = Record("evaluation", 8, 2.0, 1.0, {"train/epoch_loss": 0.5})
    monkeypatch.setattr(tune_callback, "RECEIVE_SECONDS", 0.0)
    monkeypatch.setattr(tune_callback, "receive", lambda mailbox: [LogRecords("a", (evaluation,))])
    accepted: list[int] = []
    monkeypatch.setattr(tune_callback, "accept", lambda mailbox, count: accepted.append(count))
    callback = tune_callback.SweepCallback(sweep, tasks, None)  # type: ignore[arg-type]
    trials = [
        types.SimpleNamespace(status="RUNNING", config={"trial": 0}),
        types.SimpleNamespace(status="RUNNING", config={"trial": 1}),
        types.SimpleNamespace(status="PENDING", config={"trial": 2}),
    ]
    callback.on_step_end(1, trials)
    assert not said.getvalue()  # too soon
    assert accepted == [1]
    monkeypatch.setattr(tune_callback, "QUIET_SECONDS", 0.0)
    callback.on_step_end(2, trials)
    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(tune_callback, "ray", types.SimpleNamespace(nodes=lambda: [node]))
    callback.on_step_end(3, trials[2:])

    assert said.getvalue().splitlines() == [
        "sweep: 0 of 3 trials done, 2 running",
        "  vgg adam learning_rate=0.1 seed 0: 2 epochs done, training loss 0.5",
        "  vgg adam learning_rate=0.1 seed 1: in its first epoch",
        "sweep: 0 of 3 trials done, 0 running",
        "  waiting for room: 1 node with 2 CPU and 0 GPU",
    ]


def test_ray_tune_prints_no_line_of_its_own_for_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ours = tune_callback.NoTrialReports()
    found = _create_default_callbacks([ours], config={}, air_verbosity=None)
    assert [callback for callback in found if isinstance(callback, TrialProgressCallback)] == [ours]
    ours.on_trial_complete(1, [], None)


def test_a_trial_that_ends_is_one_line() -> None:
    point = EvaluationPoint(2.0, 8, 1.0, {"train/epoch_loss": 0.5, "test/accuracy": 0.75})
    outcome = Outcome("a", "vgg", "adam", "learning_rate=0.1", 1, points=(point,), steps=1234, seconds=5.06)
    line = tune_callback.ended_line(dataclasses.replace(outcome, status="finished"))
    assert line == "adam learning_rate=0.1 seed 1: loss 0.5, accuracy 75.00%, 1,234 steps, 5.1 s"
    line = tune_callback.ended_line(dataclasses.replace(outcome, status="diverged", reason="it ended at 1e13"))
    assert line == "adam learning_rate=0.1 seed 1: diverged, it ended at 1e13"
