from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raycurv import recipes
from raycurv.recipes import Overrides
from raycurv.recipes.overrides import parse_setting
from raycurv.train import RunConfig, check


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_returns_a_configuration_that_passes_the_check(name: str, tmp_path: Path) -> None:
    config = recipes.build(name, {"data": str(tmp_path)})

    check(config)
    assert RunConfig.from_json(config.to_json()) == config
    assert config.optimizer == "curveball"
    assert config.optimizer_settings == {}


def test_data_that_are_not_there_are_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="there is no data at"):
        recipes.build("digits", {"data": "/nowhere"})


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        recipes.get("digit")


def test_a_recipe_of_the_user_is_found_by_its_import_path() -> None:
    assert recipes.build("tests.service.problems:mine", {"epochs": 3}).epochs == 3


def test_an_option_that_the_recipe_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not take --classes; it takes --data, --width"):
        recipes.build("digits", {"data": str(tmp_path), "classes": 10})


def test_a_recipe_that_returns_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"returned a Sequential;"):
        recipes.build("tests.service.problems:perceptron", {"num_classes": 3})


def test_overrides_change_what_they_set_and_nothing_else(tmp_path: Path) -> None:
    config = recipes.digits(str(tmp_path))

    assert Overrides().apply(config) == config
    changed = Overrides(epochs=3, optimizer="sgd", setting=("learning_rate=0.5",)).apply(config)
    assert changed == dataclasses.replace(config, epochs=3, optimizer="sgd", optimizer_settings={"learning_rate": 0.5})


def test_overrides_cover_every_field_that_is_a_plain_value() -> None:
    fields = {field.name for field in dataclasses.fields(RunConfig)} - {"name", "model", "data", "optimizer_settings"}

    assert {field.name for field in dataclasses.fields(Overrides)} == fields | {"setting"}


def test_settings_are_read_as_numbers_where_they_are_numbers() -> None:
    assert parse_setting("a=0.5") == ("a", 0.5)
    assert parse_setting("a=null") == ("a", None)
    assert parse_setting("a=[1, 2]") == ("a", (1, 2))
    assert parse_setting("a=word") == ("a", "word")


@pytest.mark.parametrize("text", ["0.5", "=1", "a b=1"])
def test_a_setting_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_setting(text)
