"""Batches that are computed in parts, as a run asks for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from raycurv.cli.parsing import parse
from raycurv.cli.run_options import RunOptions
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, ResumeError, RunConfig, train
from tests.train.problems import Kept, config

WANTED = config(epochs=2, precision="fp64")


def parameters(folder: Path, wanted: RunConfig, **options: Any) -> list[torch.Tensor]:
    store = CheckpointStore(str(folder))
    train(wanted, collectives=Local(), store=store, emit=Kept(), **options)
    state = store.load()
    assert state is not None
    return [*state["model"].values()]


@pytest.mark.parametrize("optimizer", ["auto", "curveball", "red_rmsprop", "momentum"])
def test_a_run_in_micro_batches_is_the_run_of_whole_batches(tmp_path: Path, optimizer: str) -> None:
    whole = dataclasses.replace(WANTED, optimizer=optimizer)
    expected = parameters(tmp_path / "whole", whole)
    found = parameters(tmp_path / "parts", dataclasses.replace(whole, micro_batch=3))

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_command_line_asks_for_micro_batches() -> None:
    assert parse(RunOptions, ["--micro-batch", "16"]).apply(WANTED).micro_batch == 16
    with pytest.raises(ValueError, match=r"RunConfig.micro_batch is 0; it must be None or at least 1"):
        dataclasses.replace(WANTED, micro_batch=0)


def test_micro_batches_change_the_digest_only_where_they_are_asked_for() -> None:
    assert dataclasses.replace(WANTED, micro_batch=None).digest == WANTED.digest
    assert dataclasses.replace(WANTED, micro_batch=4).digest != WANTED.digest
    assert RunConfig.from_json(dataclasses.replace(WANTED, micro_batch=4).to_json()).micro_batch == 4


def test_a_run_cannot_change_its_micro_batches(tmp_path: Path) -> None:
    parameters(tmp_path, WANTED)
    with pytest.raises(ResumeError, match="micro_batch: None → 4"):
        parameters(tmp_path, dataclasses.replace(WANTED, micro_batch=4), resume="must")
