"""What a command line changes about a recipe's run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raycurv import recipes
from raycurv.cli.options import all_options
from raycurv.cli.parsing import parse
from raycurv.cli.run_options import RunOptions, parse_setting, parse_settings, variants
from raycurv.train import RunConfig


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return recipes.digits(str(tmp_path))


def test_options_change_what_was_given_and_nothing_else(config: RunConfig) -> None:
    assert RunOptions().apply(config) == config
    changed = RunOptions(epochs=3, optimizer="sgd", setting=("learning_rate=0.5",)).apply(config)
    assert changed == dataclasses.replace(config, epochs=3, optimizer="sgd", optimizer_settings={"learning_rate": 0.5})


def test_a_start_and_patterns_to_freeze_are_options(config: RunConfig) -> None:
    words = ["--start-from", "torchvision:resnet18", "--freeze", "features.*", "stem.?", "--epochs", "2"]
    changed = parse(RunOptions, words).apply(config)
    wanted = {"start_from": "torchvision:resnet18", "freeze": ("features.*", "stem.?"), "epochs": 2}
    assert changed == dataclasses.replace(config, **wanted)
    options = {option.name: option for option in all_options(RunOptions)}
    assert (options["start_from"].values, options["freeze"].values) == ("WEIGHTS", "PATTERN …")


def test_settings_are_added_to_those_of_the_recipes_own_optimizer(config: RunConfig) -> None:
    given = dataclasses.replace(config, optimizer_settings={"damping": 2.0})
    assert RunOptions(setting=("adapt=false",)).apply(given).optimizer_settings == {"damping": 2.0, "adapt": False}
    assert RunOptions(optimizer="sgd").apply(given).optimizer_settings == {}


def test_every_field_of_a_run_that_is_a_plain_value_is_an_option_with_its_text() -> None:
    fields = {field.name for field in dataclasses.fields(RunConfig)} - {"name", "model", "data", "optimizer_settings"}
    options = {option.name: option for option in all_options(RunOptions)}
    assert set(options) == fields | {"setting"}
    assert options["batch_size"].flag == "--batch-size"
    assert options["batch_size"].text.startswith("Samples per step")
    assert options["loss"].text.startswith("cross_entropy, ")
    assert all(option.text for option in options.values())


def test_settings_are_read_as_numbers_where_they_are_numbers() -> None:
    assert parse_setting("a=0.5") == ("a", 0.5)
    assert parse_setting("a=null") == ("a", None)
    assert parse_setting("a=[1, 2]") == ("a", (1, 2))
    assert parse_setting("a=word") == ("a", "word")


@pytest.mark.parametrize("text", ["0.5", "=1", "a b=1"])
def test_a_setting_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_setting(text)


def test_a_comparison_has_every_optimizer_once_at_its_defaults(config: RunConfig) -> None:
    given = dataclasses.replace(config, optimizer_settings={"damping": 2.0})
    first, second = variants(given, ("adam",))
    assert first is given
    assert (second.optimizer, second.optimizer_settings) == ("adam", {})
    with pytest.raises(ValueError, match="must name different optimizers, and not 'curveball'"):
        variants(given, ("curveball",))


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--axis", r"--axis has 'rate' twice, as 0.1 and 1: give it once, with all values as rate=\[…\]"),
     ("--option", "--option has 'rate' twice, as 0.1 and 1: give it once$")],
)  # fmt: skip
def test_a_name_given_twice_is_refused_and_not_replaced(flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(flag, ("rate=0.1", "decay=2", "rate=1.0"))
