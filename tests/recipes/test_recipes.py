from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from raycurv import recipes
from raycurv.recipes import Overrides, studies
from raycurv.recipes.overrides import parse_setting
from raycurv.service import commandline
from raycurv.train import RunConfig


def test_data_that_are_not_there_are_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="there is no data at"):
        recipes.build("digits", {"data": "/nowhere"})


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        recipes.get("digit")
    with pytest.raises(ValueError, match="did you mean 'red_mnist_lenet' or 'red_mnist_lenet5' or"):
        recipes.get("red_mnist_lenet6")
    with pytest.raises(ValueError, match="did you mean 'ntlr_cifar10_wide_resnet' or 'ntlr_cifar100_wide_resnet'"):
        recipes.get("wide_resnet")


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


def test_the_job_lists_all_recipes_and_asks_for_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("train_job", Path(__file__).parents[2] / "jobs" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, job)  # where the command line looks for the types of its fields
    spec.loader.exec_module(job)
    job.main(commandline.parse(job.Job, ["--list"]))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line]
    assert names == ["recipe", *(e.name for e in recipes.registered_recipes()), "study", *studies.STUDIES]
    with pytest.raises(ValueError, match="name what to train with --recipe"):
        job.main(commandline.parse(job.Job, []))
    with pytest.raises(ValueError, match="--study names its recipes and optimizers itself"):
        job.main(commandline.parse(job.Job, ["--study", "red_l2", "--optimizer", "sgd"]))
    with pytest.raises(ValueError, match="leaves 14 of 1437 training samples, fewer than one batch of 64"):
        job.main(commandline.parse(job.Job, ["--recipe", "digits", "--scale", "0.01", "--option", f"data={tmp_path}"]))
