from __future__ import annotations

from pathlib import Path

import pytest

from raycurv import recipes


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
        recipes.build("tests.service.problems:mislabelled", {})
