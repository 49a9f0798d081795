from __future__ import annotations

import math

from raycurv.figures import report
from raycurv.results import comparison
from raycurv.results.caveats import configuration_differences, list_caveats
from raycurv.results.outcomes import EvaluationPoint, Outcome


def run(name, losses, *, recipe="mnist", optimizer="sgd", accuracy=0.5, status="finished", **fields):
    values = [{"train/epoch_loss": v} | ({} if accuracy is None else {"test/accuracy": accuracy}) for v in losses]
    points = tuple(EvaluationPoint(i, 4 * i, float(i), value) for i, value in enumerate(values, 1))
    return Outcome(name, recipe, optimizer, status=status, points=points, seconds=float(len(points)), **fields)


PLAIN = [run("a", [1.0, 0.5]), run("b", [1.0, 0.6], optimizer="adam")]


def test_nothing_is_remarked_where_nothing_is_odd():
    assert list_caveats(PLAIN) == []


def test_recipes_that_are_mixed_are_named_and_compared_each_for_itself():
    mixed = [*PLAIN, run("c", [9.0], recipe="multi30k", accuracy=None)]
    assert list_caveats(mixed) == ["These are runs of 2 recipes (mnist, multi30k); each recipe is compared for itself."]
    text = report.page("x", mixed, versions={}, command="")
    assert "<h2>mnist</h2>" in text
    assert "<h2>multi30k</h2>" in text


def test_numbers_that_are_missing_or_not_finite_are_told_and_the_rest_is_drawn():
    odd = [*PLAIN, run("c", [math.nan, 0.4]), run("d", [0.3], accuracy=None), run("e", [], status="failed")]
    assert list_caveats(odd) == [
        "mnist: test/accuracy was not measured in 1 of 4 runs (d).",
        "mnist: train/epoch_loss is NaN or infinite at some time in 1 of 5 runs (c); such values are neither drawn nor "
        "averaged.",
    ]
    text = report.page("x", odd, versions={}, command="")
    assert "<summary>2 remarks before you compare</summary>" in text
    assert text.count("<figure") == 4  # loss by epoch and by second, accuracy, profile


def test_losses_that_contain_the_l2_term_are_told_beside_those_that_do_not():
    points = (EvaluationPoint(1, 4, 1.0, {"train/epoch_loss": 0.5, "train/epoch_l2_term": 0.1, "test/accuracy": 0.5}),)
    new = Outcome("c", "mnist", "sgd", points=points)
    assert list_caveats([*PLAIN, new]) == [
        "mnist: train/epoch_l2_term was not measured in 2 of 3 runs (a, b); in version 0.1 it is part of "
        "train/epoch_loss."
    ]
    assert list_caveats([new]) == []


def test_batch_statistics_of_each_worker_are_named():
    local = run("c", [0.4], conditions={"batch_norm": "local"})
    assert list_caveats([*PLAIN, local]) == [
        "mnist: batch normalisation takes the statistics of each worker's share (batch_norm=local) in 1 of 3 runs (c), "
        "so that their results depend on the number of workers."
    ]


def test_runs_that_measured_nothing_still_make_a_report():
    text = report.page("x", [run("a", []), run("b", [math.nan], accuracy=None)], versions={}, command="")
    assert "Nothing that was measured can be drawn." in text
    assert "mnist: train/epoch_loss was not measured in 1 of 2 runs (a)." in text


def test_settings_that_differ_within_a_recipe_are_listed_with_their_runs():
    runs = [*PLAIN, run("c", [1.0], optimizer="adam"), run("d", [1.0], recipe="other")]
    same = {"epochs": "2", "log_every": "9"}
    settings = {
        "a": {**same, "batch_size": "64", "seed": "1"},
        "b": {**same, "batch_size": "64", "optimizer_settings.learning_rate": "0.1"},
        "c": {**same, "batch_size": "128", "l2": "0.1"},
        "d": {**same, "batch_size": "7"},
    }
    assert configuration_differences(runs, settings) == [
        ("mnist", "batch_size", "64 (2 runs: sgd, adam), 128 (1 run: adam)"),
        ("mnist", "l2", "not set (2 runs: sgd, adam), 0.1 (1 run: adam)"),
    ]
    text = report.page("x", runs, versions={}, command="", about=report.ReportContext(settings=settings))
    assert "<td>batch_size</td>" in text.replace("<wbr>", "")
    settings["c"] = settings["b"]
    text = report.page("x", runs, versions={}, command="", about=report.ReportContext(settings=settings))
    assert "all runs of a recipe have the same configuration" in text


def test_the_report_says_what_made_the_runs_and_with_which_versions():
    about = report.ReportContext(
        notes=["One run was left out."],
        places={"the experiment": "http://127.0.0.1/#/1"},
        versions={"torch": "2.9 (1 run), 2.14 (1 run)"},
        commands={"python jobs/train.py --recipe mnist": 2},
    )
    text = report.page("x", PLAIN, versions={"torch": "2.14"}, command="python jobs/compare.py", about=about)
    for part in (
        "<li>One run was left out.</li>",
        '<a href="http://127.0.0.1/#/1">the experiment</a>',
        "<td>torch</td><td>2.9 (1 run), 2.14 (1 run)</td><td>2.14</td>",
        "python jobs/train.py --recipe mnist  (2 runs)",
        "<pre>python jobs/compare.py</pre>",
    ):
        assert part in text


def test_a_headline_leaves_out_operations_that_nobody_counted():
    tuned = [run("s", [0.9], stage="search", operations=10.0), run("f", [0.9, 0.5], setting="learning_rate=0.1")]
    free = run("c", [0.4], optimizer="curveball")
    (line,) = comparison.conclusions(comparison.compare_methods([*tuned, free]))
    assert "took 3.0× the seconds that untuned curveball takes" in line


def test_what_failed_does_not_set_the_target():
    runs = [run("a", [0.5]), run("b", [0.1, 9.0], status="diverged", seed=1), run("c", [math.nan], seed=2)]
    assert comparison.target_of(runs) == 0.5
    assert math.isnan(comparison.target_of(runs[1:]))
