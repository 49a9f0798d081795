from __future__ import annotations

from pathlib import Path

import pytest

from raycurv import optim, recipes
from raycurv.recipes import studies
from raycurv.recipes.studies import Study
from raycurv.train import check


@pytest.fixture
def empty_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the sets' names, enough to make configurations."""
    for name in ("mnist", "cifar10", "cifar100", "imagenet", "multi30k", "boston_housing.csv"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path))


@pytest.mark.usefixtures("empty_data")
@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_run_of_a_study_passes_the_check_under_its_own_name(name: str) -> None:
    study = studies.get(name)
    runs = study.runs(scale=0.05)
    assert len(runs) == len(study)
    assert len({run.name for run in runs}) == len(runs)
    networks = {tuple(run.model.settings.items()) for run in runs} if study.options else {()}
    points = {(run.optimizer, tuple(run.optimizer_settings.items()), run.batch_size, run.l2) for run in runs}
    assert len(points) * len(networks) * len(study.recipes) * study.seeds >= len(runs)
    for point in {run.optimizer: run for run in runs}.values():
        check(point)
    assert set(study.optimizers) <= set(optim.names())


@pytest.mark.usefixtures("empty_data")
def test_points_settings_and_seeds_are_combined() -> None:
    study = Study(
        "s",
        "p",
        "Fig. 1",
        ("red_mnist_lenet",),
        {"red_sgd": {"decay": (0.5, 1.0)}, "sgd": {}},
        {"l2": (0.0, 1e-4)},
        seeds=2,
    )
    runs = study.runs(scale=0.1)
    assert len(runs) == len(study) == 3 * 2 * 2
    assert runs[0].name == "red-mnist-lenet-x0.1-red_sgd-decay-0.5-l2-0-s0"
    assert {(run.optimizer_settings.get("decay"), run.l2, run.seed) for run in runs if run.optimizer == "red_sgd"} == {
        (decay, l2, seed) for decay in (0.5, 1.0) for l2 in (0.0, 1e-4) for seed in (0, 1)
    }


@pytest.mark.usefixtures("empty_data")
def test_the_recipes_own_settings_stay_with_its_own_optimizer() -> None:
    found = {run.optimizer: run.optimizer_settings for run in studies.get("llr_momentum").runs()}
    assert found["llr_second_order"] == {"learning_rate": 0.1, "momentum": 0.9}
    orders = {run.name: run.optimizer_settings for run in studies.get("llr_orders").runs()}
    assert orders["llr-cifar100-resnet18-llr_second_order"] == {"learning_rate": 0.02}
    assert orders["llr-cifar100-resnet18-sgd"] == {}


def test_all_recipes_of_the_studies_are_there() -> None:
    assert {recipe for study in studies.STUDIES.values() for recipe in study.recipes} <= set(recipes.names())


def test_an_unknown_or_empty_study_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'red_beta3'"):
        studies.get("red_beta")
    with pytest.raises(ValueError, match="study 's' has no run: decay empty"):
        Study("s", "p", "", ("red_mnist_lenet",), {"red_sgd": {"decay": ()}})
    with pytest.raises(ValueError, match="varies 'seed'; it may vary batch_size, l2"):
        Study("s", "p", "", ("red_mnist_lenet",), {"sgd": {}}, {"seed": (1,)})
