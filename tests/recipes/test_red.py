"""RED's recipes, studies and tables: the paper's baselines, seeds and losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raycurv import Objective, recipes
from raycurv.benchmarks import paper_tables, red_epoch_time
from raycurv.recipes import studies
from raycurv.recipes.table import Table
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.train.build import resolve_loss


def test_the_tuned_rmsprop_of_every_table_is_the_papers_own() -> None:
    tables = [table for table in paper_tables.TABLES.values() if isinstance(table, Table) and table.paper == "RED"]
    searched = {name: {o for study in table.studies for o in study.tuned} for table in tables for name in [table.name]}
    assert not [name for name, tuned in searched.items() if "rmsprop" in tuned]
    assert {"red_fig1", "red_fig8", "red_fig9"} == {n for n, o in searched.items() if "rmsprop_bias_corrected" in o}


def test_the_tables_show_losses_with_the_l2_term_as_the_paper_does() -> None:
    values = {"train/epoch_loss": 0.5, "train/epoch_l2_term": 0.25, "test/loss": 1.0, "test/l2_term": 0.125}
    ended = Outcome("a", "r", "red_sgd", points=(EvaluationPoint(1.0, 1, 1.0, {**values, "test/accuracy": 0.5}),))
    older = dict.fromkeys(("train/epoch_loss", "test/loss", "test/accuracy"), 0.5)
    before = Outcome("b", "r", "red_sgd", points=(EvaluationPoint(1.0, 1, 1.0, older),))
    table = paper_tables.get("red_fig1")
    assert isinstance(table, Table)
    assert [statistic.title for statistic in table.statistics[:2]] == [
        "training loss with L2 term",
        "test loss with L2 term",
    ]
    assert [statistic.of(ended) for statistic in table.statistics] == [0.75, 1.125, 50.0]
    assert [statistic.of(before) for statistic in table.statistics] == [0.5, 0.5, 50.0]


@pytest.mark.parametrize("name", ["red_scale_decay", "red_annealing", "red_beta3"])
def test_every_curve_is_that_of_three_seeds(name: str) -> None:
    assert studies.get(name).seeds == 3


@pytest.mark.parametrize("name", ["red_fig2", "red_fig3", "red_fig4"])
def test_every_entry_is_that_of_three_seeds(name: str) -> None:
    table = paper_tables.get(name)
    assert isinstance(table, Table)
    assert {study.seeds for study in table.studies} == {3}


def test_the_autoencoders_loss_is_the_sum_over_the_pixels_as_on_the_papers_axis(tmp_path: Path) -> None:
    """At the start a sum is of the order of 10², which falls to the paper's 10¹; a mean is below 1."""
    torch.manual_seed(0)
    images = torch.rand(32, 1, 28, 28)
    found = {}
    for reduction in ("sum", "mean"):
        config = recipes.build("red_mnist_autoencoder", {"data": str(tmp_path), "reduction": reduction})
        model = config.model.build(input_shape=(1, 28, 28), num_classes=0)
        found[reduction] = float(Objective(model, resolve_loss(config.loss)).batch(images, images.flatten(1)).value())
    assert found["sum"] > 10
    assert found["mean"] < 1
    default = recipes.build("red_mnist_autoencoder", {"data": str(tmp_path)})
    assert default.loss == "squared_error"
    assert default.name == "red-mnist-autoencoder"
    assert config.name == "red-mnist-autoencoder-mean"


def test_another_reduction_of_the_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reduction is 'median'; it must be sum or mean"):
        recipes.build("red_mnist_autoencoder", {"data": str(tmp_path), "reduction": "median"})


def test_table_3_has_the_papers_seconds_and_ratios_beside_ours() -> None:
    table = paper_tables.get("red_table3")
    assert isinstance(table, paper_tables.ComputedTable)
    found = red_epoch_time.entries(0.01, recipes=["red_mnist_lenet", "red_cifar100_vgg19"], scale=(1.0, 1.0, 0.05))
    printed = {(entry.row, entry.column): entry.printed for entry in found}
    assert len(printed) == 2 * 6
    assert printed["MNIST, LeNet", "SGD, s"] == "5.3"
    assert printed["CIFAR-100, VGG19", "RED-RMSProp, s"] == "65.0"
    for row, ratio in (("MNIST, LeNet", "1.43"), ("CIFAR-100, VGG19", "1.79")):
        assert printed[row, "RED-SGD / SGD"] == ratio
    assert all(0 < entry.low <= entry.value <= entry.high for entry in found)
    assert {entry.form for entry in found if "/" in entry.column} == {"{:.2f}"}


def test_the_paper_prints_seconds_for_all_four_problems() -> None:
    ratios = [f"{times.seconds[1] / times.seconds[0]:.2f}" for times in red_epoch_time.PRINTED.values()]
    assert ratios == ["1.43", "1.84", "1.79", "1.12"]


def test_an_epoch_of_table_3_is_all_steps_of_the_recipes_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(red_epoch_time.StepRunner, "seconds", lambda runner: 0.1)
    found = red_epoch_time.seconds_of_epoch("red_mnist_lenet", 3, (1.0, 1.0, 0.05))
    assert found == {label: pytest.approx([0.1 * 60_000 / 256] * 3) for label in red_epoch_time.OPTIMIZERS}
