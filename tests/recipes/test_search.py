import math

import pytest

from raycurv import recipes
from raycurv.recipes import search
from raycurv.recipes.search import SweepTrial
from raycurv.results.outcomes import EvaluationPoint, Outcome


def config(tmp_path, epochs=10):
    return recipes.build("digits", {"data": str(tmp_path)})


def outcome(trial: SweepTrial, loss: float | None, status="finished") -> Outcome:
    points = (
        () if loss is None else (EvaluationPoint(1.0, 4, 0.5, {"train/epoch_loss": loss, "test/accuracy": loss / 10}),)
    )
    return Outcome(
        trial.name, "r", trial.config.optimizer, trial.setting_text, stage=trial.stage, status=status, points=points
    )


def test_reds_grid_is_one_and_five_times_the_powers_of_ten():
    rates = search.GRIDS["red"]["learning_rate"]
    assert len(rates) == 14
    assert (rates[0], rates[1], rates[-1]) == pytest.approx((1e-5, 5e-5, 50.0))


def test_a_grid_has_every_combination_for_a_fifth_of_the_epochs(tmp_path):
    base = config(tmp_path)
    axes = {"learning_rate": (0.1, 0.01), "momentum": (0.5, 0.9, 0.99)}
    trials = search.grid_trials(base, ["momentum", "nesterov"], axes, search.RULES["red"])
    assert len(trials) == len({trial.name for trial in trials}) == 12
    assert {trial.config.epochs for trial in trials} == {round(0.2 * base.epochs)}
    assert trials[0].setting_text == "learning_rate=0.1 momentum=0.5"
    assert trials[0].config.optimizer_settings == {"learning_rate": 0.1, "momentum": 0.5}
    with pytest.raises(ValueError, match="the grid has no point: learning_rate is empty"):
        search.grid_trials(base, ["sgd"], {"learning_rate": ()}, search.RULES["red"])


def test_reds_rule_counts_the_l2_term_and_reads_older_runs_whose_loss_contains_it(tmp_path):
    trials = search.grid_trials(config(tmp_path), ["sgd"], {"learning_rate": (1.0, 0.1, 0.01)}, search.RULES["red"])
    found = []
    for trial, values in zip(trials, ((0.5, 0.2), (0.4, 0.4), (0.75, None)), strict=True):
        names = ("train/epoch_loss", "train/epoch_l2_term")
        known = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        found.append(Outcome(trial.name, "r", "sgd", points=(EvaluationPoint(1.0, 4, 0.5, known),)))
    red, full = (search.best_settings(trials, found, search.RULES[name])[0] for name in ("red", "full"))
    assert red == {"sgd": {"learning_rate": 1.0}}
    assert full == {"sgd": {"learning_rate": 0.1}}


def test_the_rule_takes_the_smallest_loss_of_those_that_finished(tmp_path):
    trials = search.grid_trials(
        config(tmp_path), ["sgd", "adam"], {"learning_rate": (1.0, 0.1, 0.01)}, search.RULES["full"]
    )
    ends = [
        (0.5, "finished"),
        (0.1, "diverged"),
        (0.3, "finished"),
        (None, "failed"),
        (math.nan, "finished"),
        (None, "diverged"),
    ]
    found = [outcome(trial, *end) for trial, end in zip(trials, ends, strict=True)]
    winners, lost = search.best_settings(trials, found, search.RULES["full"])
    assert winners == {"sgd": {"learning_rate": 0.01}}
    assert lost == ["adam"]
    best, _ = search.best_settings(trials[:3], found[:3], search.RULES["salera"])
    assert best == {"sgd": {"learning_rate": 1.0}}  # the highest accuracy


def test_final_runs_are_whole_and_over_the_seeds(tmp_path):
    base = config(tmp_path)
    trials = search.final_trials(base, {"sgd": {"learning_rate": 0.1}, "curveball": {}}, 3)
    assert [trial.config.seed for trial in trials] == [0, 1, 2] * 2
    assert {trial.config.epochs for trial in trials} == {base.epochs}
    assert trials[-1].setting_text == ""


def test_random_networks_are_the_same_for_every_optimizer(tmp_path):
    settings = {"sgd": [{"learning_rate": 0.1}, {"learning_rate": 0.01}], "curveball": [{}]}
    trials = search.random_architectures(config(tmp_path), 2, settings, width=0.25)
    assert len(trials) == len({trial.name for trial in trials}) == 6
    assert len({str(trial.config.model) for trial in trials if trial.labels == {"network": "net1"}}) == 1
    with pytest.raises(ValueError, match="count is 0"):
        search.random_architectures(config(tmp_path), 0, settings)


def test_unknown_rules_and_grids_are_refused():
    with pytest.raises(ValueError, match="rule 'reed' is unknown; it is one of red, full, salera"):
        search.get_rule("reed")
    with pytest.raises(ValueError, match="grid 'x' is unknown"):
        search.get_grid("x")
    assert search.get_grid("x", (0.5,)) == {"learning_rate": (0.5,)}


def test_names_tell_large_rates_from_small_ones(tmp_path):
    base = config(tmp_path)
    names = {SweepTrial(search.with_optimizer(base, "sgd", {}), {"learning_rate": rate}).name for rate in (1e9, 1e-9)}
    assert len(names) == 2
