from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from raycurv.train import Component, RunConfig, check
from tests.train import problems
from tests.train.problems import config


def test_configuration_comes_back_from_json() -> None:
    wanted = config(optimizer_settings={"damping": 2.0}, dropout=0.25, clip_gradient=1.5, max_steps=7)
    assert RunConfig.from_json(wanted.to_json()) == wanted


def test_evaluation_by_steps_changes_the_digest_only_where_it_is_asked_for() -> None:
    wanted = config()
    assert dataclasses.replace(wanted, evaluate_every_steps=None).digest == wanted.digest
    assert dataclasses.replace(wanted, evaluate_every_steps=5).digest != wanted.digest


def test_compiled_steps_change_the_digest_and_the_default_does_not() -> None:
    wanted = config()
    assert dataclasses.replace(wanted, compile=False).digest == wanted.digest
    assert dataclasses.replace(wanted, compile=True).digest != wanted.digest


def test_local_batch_statistics_change_the_digest_and_the_default_does_not() -> None:
    wanted = config()
    assert dataclasses.replace(wanted, batch_norm="synchronised").digest == wanted.digest
    assert dataclasses.replace(wanted, batch_norm="local").digest != wanted.digest
    with pytest.raises(ValueError, match=r"RunConfig.batch_norm is 'global'; it must be one of synchronised, local"):
        config(batch_norm="global")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("name", "a/b", "letters"),
        ("batch_size", 0, "at least 1"),
        ("epochs", 1.5, "a whole number"),
        ("max_steps", 0, "None or at least 1"),
        ("evaluate_every_steps", 0, "None or at least 1"),
        ("evaluate_training_samples", 0, "None or at least 1"),
        ("seed", -1, "from 0"),
        ("l2", float("nan"), "finite"),
        ("precision", "fp8", "fp32, fp64, bf16, fp16"),
        ("clip_gradient", 0.0, "positive"),
        ("average_weights", 1.0, "between 0 and 1"),
        ("keep_checkpoints", 0, "at least 1"),
    ],
)
def test_value_out_of_bounds_is_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"RunConfig.{field} is .*{allowed}"):
        dataclasses.replace(config(), **{field: value})


def test_unknown_field_of_a_file_is_named() -> None:
    with pytest.raises(ValueError, match="has no field epoch"):
        RunConfig.from_json('{"epoch": 3}')


def test_component_is_offered_what_it_takes_and_does_not_set() -> None:
    model = Component.of(problems.network, num_classes=5).build(input_shape=(4,), num_classes=3, unheard_of=1)
    assert model[-1].out_features == 5


def test_local_function_cannot_travel() -> None:
    with pytest.raises(ValueError, match="cannot be imported by a worker"):
        Component.of(lambda: None)


def test_good_configuration_passes_without_building_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [config(), config(optimizer="adam", clip_gradient=1.0), config(precision="bf16"), config(precision="fp64")]

    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("was built")

    monkeypatch.setattr(problems.nn, "Sequential", heavy)
    monkeypatch.setattr(problems, "TensorSource", heavy)
    for one in wanted:
        check(one)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optimizer": "curvebal"}, "'curveball'"),
        ({"optimizer_settings": {"dampin": 1.0}}, "did you mean 'damping'"),
        ({"optimizer_settings": {"damping": -1.0}}, "damping is -1.0"),
        ({"clip_gradient": 1.0}, "clip_gradient has no meaning for 'curveball'"),
        ({"loss": "tests.train.problems:nothing"}, "has no 'nothing'"),
        ({"model": Component("no_such_package:network")}, "no module 'no_such_package'"),
        ({"model": Component("tests.train.problems:network", {"width": 3})}, "its settings are: input_shape"),
        ({"data": Component("tests.train.problems:blobs", {"path": "x"})}, "unexpected keyword argument 'path'"),
        ({"data": Component("tests.train.problems:__name__")}, "is str, not a function"),
    ],
)
def test_bad_configuration_is_refused_before_anything_starts(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(dataclasses.replace(config(), **changes))
