"""The recipes of fine-tuning: other digits, another head, and a start that helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raycurv.data.digits import write_digits
from raycurv.objective.collectives import Local
from raycurv.recipes import digits_first_six, digits_last_four
from raycurv.recipes.fine_tuning import FIRST_SAMPLES, LAST_SAMPLES
from raycurv.train import CheckpointStore, RunConfig, train
from tests.train.problems import Kept


def go(folder: Path, wanted: RunConfig) -> tuple[float, list[str]]:
    records = Kept()
    result = train(wanted, collectives=Local(), store=CheckpointStore(str(folder)), emit=records)
    return result.values["test/accuracy"], [record.message for record in records.of("event")]


def test_the_two_sets_have_the_samples_that_their_recipes_say(tmp_path: Path) -> None:
    data = str(write_digits(tmp_path / "digits"))
    first, last = (recipe(data).data.build().train for recipe in (digits_first_six, digits_last_four))
    assert (len(first), len(last)) == (FIRST_SAMPLES, LAST_SAMPLES)
    assert (first.classes, last.classes) == (tuple("012345"), tuple("6789"))


@pytest.mark.slow
def test_a_network_that_has_learned_some_digits_learns_the_others_faster(tmp_path: Path) -> None:
    data = str(write_digits(tmp_path / "digits"))
    learned, _ = go(tmp_path / "first", dataclasses.replace(digits_first_six(data), epochs=4))
    assert learned > 0.9
    wanted = dataclasses.replace(digits_last_four(data), optimizer="adam")
    scratch, _ = go(tmp_path / "scratch", wanted)
    start = dataclasses.replace(wanted, start_from=str(tmp_path / "first"))
    tuned, messages = go(tmp_path / "tuned", start)
    assert any("drawn anew: fc.weight (6, 128) → (4, 128), fc.bias (6,) → (4,)" in message for message in messages)
    frozen, _ = go(tmp_path / "frozen", dataclasses.replace(start, freeze=("conv1.*", "layer1.*", "layer2.*")))
    assert min(tuned, frozen) > scratch + 0.1
