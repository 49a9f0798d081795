from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, Component, train
from raycurv.train.step_clock import STARTUP_STEPS, StepClock, extra_startup_seconds, steady_step_seconds
from raycurv.train.training_run import TrainingPosition
from tests.train.problems import Kept, config, network


def test_a_slow_start_does_not_change_the_seconds_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    position = TrainingPosition()
    clock = StepClock(position, torch.device("cpu"))
    for step in range(1, 81):
        now += 5.0 if step == 1 else 0.25
        clock.step()
        if step % 7 == 0:
            clock.end()
            now += 100.0  # an evaluation
            clock.start()
    assert position.startup_steps == STARTUP_STEPS
    assert steady_step_seconds(position) == pytest.approx(0.25)
    assert extra_startup_seconds(position) == pytest.approx(4.75)


def slow_at_first(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """A network whose first pass takes two seconds, as the first one of a process does that loads libraries."""
    module = network(input_shape, num_classes)
    waits = iter([2.0])
    module.register_forward_pre_hook(lambda *_: time.sleep(next(waits, 0.0)))
    return module


def test_the_first_run_of_a_process_is_not_charged_for_its_warm_up(tmp_path: Path) -> None:
    first, second = (
        train(
            replace(config(epochs=10), model=Component.of(model)),
            collectives=Local(),
            store=CheckpointStore(str(tmp_path / model.__name__)),
            emit=Kept(),
        )
        for model in (slow_at_first, network)
    )
    assert first.startup_seconds > 1.5 > second.startup_seconds
    assert first.step_seconds < 0.5
    assert first.images_per_second > 8 * first.steps / (first.seconds - 1.5)


def test_a_run_that_is_all_start_up_has_the_mean_of_its_steps(tmp_path: Path) -> None:
    short = train(config(max_steps=3), collectives=Local(), store=CheckpointStore(str(tmp_path)), emit=Kept())
    assert 0 < 3 * short.step_seconds < short.seconds
    assert short.startup_seconds == 0


def test_a_resumed_run_has_a_start_up_of_its_own(tmp_path: Path) -> None:
    store, position = CheckpointStore(str(tmp_path)), TrainingPosition
    train(config(epochs=10, stop_after=25), collectives=Local(), store=store, emit=Kept())
    result = train(config(epochs=10), collectives=Local(), store=store, emit=Kept(), resume="must")
    state = store.load()
    assert state is not None
    assert position.of(state["progress"]).startup_steps == 2 * STARTUP_STEPS
    assert result.step_seconds > 0
