"""Every experiment of the papers: listed truly, cut by a scale, and trained for two steps on real data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raycurv import recipes
from raycurv.objective.collectives import Local
from raycurv.recipes import RegisteredRecipe, Scale
from raycurv.train import CheckpointStore, RunConfig, check, train
from tests.recipes import real

ALL = pytest.mark.parametrize("experiment", recipes.registered_recipes(), ids=lambda experiment: experiment.name)


@ALL
def test_two_steps_on_real_data(experiment: RegisteredRecipe, tmp_path: Path) -> None:
    """Few rows and narrow layers, and the end of a run with its evaluation."""
    samples = {"ImageNet": 320, "ImageNet-100": 320, "digits": 64}.get(experiment.data, 300)
    scale = Scale(data=min(1.0, samples / experiment.samples), epochs=0.01, width=0.1)
    config = experiment.recipe(**real.options(experiment, tmp_path), scale=scale)
    config = dataclasses.replace(config, max_steps=2, batch_size=min(config.batch_size, 16))
    result = train(
        config, collectives=Local(), store=CheckpointStore(str(tmp_path / "store")), emit=lambda records: None
    )
    assert result.steps == min(2, math.ceil(samples / config.batch_size))
    assert all(math.isfinite(value) for value in result.values.values())
    if experiment.data.startswith("ImageNet"):
        return  # the sample has no evaluation set
    classified = config.loss == "cross_entropy"
    assert ("test/accuracy" in result.values) == classified
    assert "test/loss" in result.values


@ALL
def test_the_listing_is_true_of_the_configuration(experiment: RegisteredRecipe, tmp_path: Path) -> None:
    config = experiment.recipe(**real.placeholder(experiment, tmp_path))
    check(config)
    assert RunConfig.from_json(config.to_json()) == config
    assert config.epochs == experiment.epochs
    assert config.batch_size <= experiment.samples
    assert experiment.name in recipes.listing()


@pytest.mark.parametrize(
    "experiment", [e for e in recipes.registered_recipes() if real.counted(e)], ids=lambda e: e.name
)
def test_the_cost_listed_is_that_of_the_network(experiment: RegisteredRecipe, tmp_path: Path) -> None:
    config = experiment.recipe(**real.placeholder(experiment, tmp_path))
    input_shape, classes = real.SHAPES[experiment.data]
    kind = torch.int64 if config.weights else torch.float32
    counter = FlopCounterMode(display=False)
    math_only = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.device("meta"), torch.no_grad():
        model = config.model.build(input_shape=input_shape, num_classes=classes).eval()
        with math_only, counter:
            model(torch.zeros(1, *input_shape, dtype=kind))
    assert counter.get_total_flops() / 1e9 == pytest.approx(experiment.gflop, rel=0.02)


@ALL
def test_a_scale_cuts_data_epochs_and_width(experiment: RegisteredRecipe, tmp_path: Path) -> None:
    options = real.placeholder(experiment, tmp_path)
    whole, part = experiment.recipe(**options), experiment.recipe(**options, scale=0.25)
    assert whole != part
    assert part.epochs == max(1, round(whole.epochs / 4))
    assert part.name == f"{whole.name}-x0.25"
    rows = {"max_rows", "steps", "samples"} & part.data.settings.keys()
    assert [part.data.settings[name] for name in rows] == [round(experiment.samples / 4)]
    with torch.device("meta"):
        shape, classes = real.SHAPES.get(experiment.data, ((), 1))
        sizes = [
            sum(p.numel() for p in config.model.build(input_shape=shape, num_classes=classes).parameters())
            for config in (whole, part)
        ]
    linear = experiment.network.startswith(("M0", "linear regression", "logistic", "Rosenbrock"))
    assert sizes[1] == sizes[0] if linear else sizes[1] < sizes[0]


def test_a_scale_that_leaves_no_batch_is_refused_with_the_least_that_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0.001 of the data leaves 50 of 50000 .* batch of 256; take at least 0.0052"):
        recipes.build("red_cifar10_vgg11", {"data": str(tmp_path), "scale": (0.001,)})
    assert recipes.build("red_cifar10_vgg11", {"data": str(tmp_path), "scale": (0.0052, 1.0, 1.0)}).epochs == 500


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), "0.1", (0.1, 0.1), (), (0.1, 0.0, 0.1), True])
def test_what_is_no_scale_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="scale"):
        Scale.of(value)  # type: ignore[arg-type]


def test_one_number_takes_its_root_of_the_width() -> None:
    assert Scale.of(0.01) == Scale(0.01, 0.01, 0.1)
    assert Scale.of((0.1, 0.2, 0.3)) == Scale(0.1, 0.2, 0.3)
    assert Scale.of(1.0) == Scale()
    assert Scale(width=0.1).sizes(512, 7, multiple=16) == (48, 16)
    assert Scale(0.5, 0.1, 1.0).named("a", "", False, 3) == "a-3-x0.5-0.1-1"


def test_variants_differ_in_what_their_name_says(tmp_path: Path) -> None:
    base, elu, l2 = (
        recipes.build(name, {"data": str(tmp_path)})
        for name in ("red_cifar10_vgg11", "red_cifar10_vgg11_elu", "red_cifar10_vgg11_l2")
    )
    assert (base.name, elu.name, l2.name) == (
        "red-cifar10-vgg11",
        "red-cifar10-vgg11-elu",
        "red-cifar10-vgg11-l2-0.0001",
    )
    assert elu.model.settings == {**base.model.settings, "activation": "elu"}
    assert dataclasses.replace(l2, name=base.name, l2=base.l2) == base


def test_llr_offers_what_its_figures_are_of(tmp_path: Path) -> None:
    def built(name: str, **options: object) -> RunConfig:
        return recipes.build(name, {"data": str(tmp_path), **options})

    boston, raw = built("llr_boston"), built("llr_boston", standardise=False)
    assert (boston.name, raw.name) == ("llr-boston", "llr-boston-raw")
    assert raw.data.settings == {**boston.data.settings, "standardise": False}
    pixels = built("llr_mnist_logistic").data.settings
    assert (pixels["mean"], pixels["std"]) == ((0.0,), (1.0,))
    for name in ("llr_cifar10_resnet18", "llr_cifar100_resnet18"):
        assert built(name).model.settings["dropout_layers"] == 2
    classifiers = [e.name for e in recipes.registered_recipes() if e.paper == "LLR" and e.name != "llr_boston"]
    assert all(built(name).evaluate_training for name in classifiers)


def test_recipes_of_salera_log_the_mini_batch_error_and_claim_the_figures_that_they_make(tmp_path: Path) -> None:
    found = {e.name: e for e in recipes.registered_recipes() if e.paper == "SALERA"}
    assert all(e.recipe(data=str(tmp_path)).batch_error for e in found.values())
    figures = {name: e.shows.removeprefix("Table 1, 2, ") for name, e in found.items() if "Fig." in e.shows}
    assert figures == {"salera_mnist_m2": "Fig. 1", "salera_cifar10_m4b": "Fig. 2"}


def test_only_the_cifar_10_classifier_claims_figures_2_and_4_of_red() -> None:
    def figures(shows: str) -> set[int]:
        spans = [[int(end) for end in part.split("-")] for part in shows.removeprefix("Fig. ").split(", ")]
        return {number for span in spans for number in range(span[0], span[-1] + 1)}

    found = {e.name: figures(e.shows) for e in recipes.registered_recipes() if e.paper == "RED" and "Fig." in e.shows}
    assert {name for name, numbers in found.items() if numbers & {2, 4}} == {"red_cifar10_vgg11"}
    assert {name for name, numbers in found.items() if 3 in numbers} == {"red_cifar10_vgg11", "red_cifar100_vgg19"}


def test_names_of_whole_runs_are_unique(tmp_path: Path) -> None:
    found = [e.recipe(**real.placeholder(e, tmp_path)).name for e in recipes.registered_recipes()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("salera_mnist_m2", {"portion": 0.0}, "portion is 0.0"),
        ("ntlr_cifar10_wide_resnet", {"widen": 0.5, "scales": 1}, "does not take --scales; it takes --data, --depth"),
    ],
)
def test_a_bad_option_of_a_recipe_is_named(name: str, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.build(name, {"data": str(tmp_path), **options})
