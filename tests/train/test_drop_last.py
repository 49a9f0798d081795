"""Epochs without their short last batch, and the check of the first batch, as a run asks for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raycurv.cli.parsing import parse
from raycurv.cli.run_options import RunOptions
from raycurv.objective.collectives import Local
from raycurv.objective.consistency import InconsistentModel
from raycurv.train import CheckpointStore, Component, ResumeError, RunConfig, train
from tests.train.problems import Kept, config

WANTED = config(samples=13, batch_size=4, epochs=3, log_every=1, checkpoint_every=2)


def go(folder: Path, wanted: RunConfig, **options: object) -> tuple[int, list[Tensor]]:
    store = CheckpointStore(str(folder))
    result = train(wanted, collectives=Local(), store=store, emit=Kept(), **options)  # type: ignore[arg-type]
    state = store.load()
    assert state is not None
    return result.steps, [*state["model"].values()]


def test_a_short_last_batch_can_be_left_out(tmp_path: Path) -> None:
    assert go(tmp_path / "all", WANTED)[0] == 12
    assert go(tmp_path / "dropped", dataclasses.replace(WANTED, drop_last=True))[0] == 9


def test_a_run_without_short_batches_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    wanted = dataclasses.replace(WANTED, drop_last=True)
    expected = go(tmp_path / "whole", wanted)
    go(tmp_path / "stopped", dataclasses.replace(wanted, stop_after=5))
    found = go(tmp_path / "stopped", wanted, resume="must")
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)


def test_a_set_of_whole_batches_gives_the_same_run_in_both_ways(tmp_path: Path) -> None:
    wanted = config(samples=12, batch_size=4, epochs=2)
    expected = go(tmp_path / "all", wanted)[1]
    found = go(tmp_path / "dropped", dataclasses.replace(wanted, drop_last=True))[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_leaving_out_batches_changes_the_digest_and_a_resume(tmp_path: Path) -> None:
    dropped = dataclasses.replace(WANTED, drop_last=True)
    assert dropped.digest != WANTED.digest
    assert dataclasses.replace(dropped, drop_last=False).digest == WANTED.digest
    go(tmp_path, WANTED)
    with pytest.raises(ResumeError, match="drop_last: False → True"):
        go(tmp_path, dropped, resume="must")


def test_the_command_line_has_both_switches() -> None:
    given = parse(RunOptions, ["--drop-last", "--no-check-consistency"]).apply(WANTED)
    assert (given.drop_last, given.check_consistency) == (True, False)
    given = parse(RunOptions, []).apply(WANTED)
    assert (given.drop_last, given.check_consistency) == (False, True)


class Counting(nn.Linear):
    """Counts its forward passes, and computes with the count."""

    count = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        return super().forward(inputs) * self.count


def counting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Counting(input_shape[0], num_classes)


def test_the_check_of_the_first_batch_can_be_switched_off_in_a_run(tmp_path: Path) -> None:
    wanted = dataclasses.replace(WANTED, model=Component.of(counting), optimizer="sgd", max_steps=2)
    with pytest.raises(InconsistentModel):
        go(tmp_path / "checked", wanted)
    unchecked = dataclasses.replace(wanted, check_consistency=False)
    go(tmp_path / "unchecked", unchecked)
    assert unchecked.digest == wanted.digest
