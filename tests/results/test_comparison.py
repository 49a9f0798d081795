import csv
import dataclasses
import io
import math

import pytest

from raycurv.results import comparison
from raycurv.results.outcomes import EvaluationPoint, Outcome


def run(
    optimizer, losses, *, setting="", stage="final", status="finished", seed=0, averaged=None, network=None
) -> Outcome:
    """One second and a hundred operations an epoch."""
    extra = {} if averaged is None else {"averaged/test/accuracy": averaged}
    points = tuple(
        EvaluationPoint(i + 1.0, 4 * (i + 1), i + 1.0, {"train/epoch_loss": loss, "test/accuracy": 1 - loss, **extra})
        for i, loss in enumerate(losses)
    )
    labels = {} if network is None else {"network": network}
    return Outcome(
        f"{optimizer}{setting}{seed}{stage}{network}",
        "mnist",
        optimizer,
        setting,
        seed,
        stage,
        status,
        points=points,
        steps=4 * len(points),
        seconds=float(len(points)),
        operations=100.0 * len(points),
        labels=labels,
    )


SEARCHED = [
    run("sgd", [0.9], setting="learning_rate=0.1", stage="search"),
    run("sgd", [], setting="learning_rate=9", stage="search", status="diverged"),
    run("sgd", [0.8, 0.5, 0.3], setting="learning_rate=0.1"),
    run("sgd", [0.8, 0.5, 0.5], setting="learning_rate=0.1", seed=1),
    run("curveball", [0.7, 0.4, 0.2]),
    run("curveball", [0.6, 0.3, 0.1], seed=1, averaged=0.95),
    run("adam", [0.9, 0.9, 0.9]),
]


def test_the_search_counts_and_the_target_is_what_the_tuned_reach():
    rows = {row.optimizer: row for row in comparison.compare_methods(SEARCHED) if row.weights == "raw"}
    assert comparison.target_of(SEARCHED) == pytest.approx(0.4)
    sgd, curveball, adam = rows["sgd"], rows["curveball"], rows["adam"]
    assert (sgd.loss, sgd.seconds, sgd.operations) == pytest.approx((0.4, 4.0, 400.0))
    assert (sgd.searched, sgd.failed, sgd.runs) == (2, 1, 4)
    assert sgd.spread == pytest.approx(math.sqrt(0.02))
    assert (curveball.loss, curveball.epochs_to_target, curveball.seconds) == pytest.approx((0.15, 2.0, 3.0))
    assert math.isnan(adam.epochs_to_target)


def test_one_setting_written_as_whole_number_and_as_fraction_is_one_method():
    outcomes = [run("red_sgd", [0.2], setting="scale=1"), run("red_sgd", [0.4], setting="scale=1.0", seed=1)]
    (row,) = comparison.compare_methods(outcomes)
    assert (row.setting, row.runs, row.loss) == ("scale=1", 2, pytest.approx(0.3))


def test_averaged_weights_have_rows_of_their_own():
    rows = [row for row in comparison.compare_methods(SEARCHED) if row.weights == "averaged"]
    assert [row.optimizer for row in rows] == ["curveball"]
    assert rows[0].accuracy == pytest.approx(0.95)


def test_the_headline_is_total_compute_at_equal_loss():
    (line,) = comparison.conclusions(comparison.compare_methods(SEARCHED))
    assert line == (
        "mnist: sgd and its search of 2 trials took 2.0× the seconds and 2.0× the operations that untuned curveball "
        "takes to the same training loss, 0.4."
    )


def test_the_headline_says_it_when_nothing_untuned_gets_there():
    (line,) = comparison.conclusions(comparison.compare_methods([*SEARCHED[:4], SEARCHED[-1]]))
    assert "no untuned optimizer reached the training loss 0.4 of tuned sgd" in line
    (line,) = comparison.conclusions(comparison.compare_methods([SEARCHED[-1]]))
    assert "nothing to compare with" in line


def test_the_table_comes_in_three_forms():
    kept = {}
    text = comparison.write_comparison(comparison.compare_methods(SEARCHED), kept.__setitem__)
    assert "| mnist | sgd | learning_rate=0.1 (2 trials) | raw | 0.4 ± 0.14 |" in text
    assert text.index("curveball | nothing") < text.index("| sgd |")
    table = list(csv.DictReader(io.StringIO(kept["decision.csv"])))
    assert [row["optimizer"] for row in table] == ["sgd", "curveball", "curveball", "adam"]
    assert r"learning\_rate=0.1" in kept["decision.tex"]
    assert kept["decision.tex"].count(r"\\") == 5


def test_networks_are_summed_up_by_median_and_quartiles_with_failures():
    losses = {"a": (0.1, 0.4), "b": (0.2, 0.1), "c": (0.3, 0.2), "d": (0.9, None)}
    outcomes = []
    for network, (one, other) in losses.items():
        outcomes.append(run("curveball", [one], network=network))
        status = "finished" if other is not None else "diverged"
        outcomes.append(run("sgd", [] if other is None else [other], network=network, status=status))
    sgd, curveball = comparison.compare_over_networks(outcomes)
    assert (sgd.optimizer, sgd.median, sgd.failed, sgd.best_on) == ("sgd", pytest.approx(0.2), 1, 2)
    assert (curveball.lower, curveball.median, curveball.upper) == pytest.approx((0.175, 0.25, 0.45))
    kept = {}
    assert "| sgd | 0.2 [0.15, 0.3] | 80.00% | 2 of 4 | 1 | 1 |" in comparison.write_network_comparison(
        [sgd, curveball], kept.__setitem__
    )
    assert set(kept) == {"networks.md", "networks.csv"}


def test_further_metrics_of_the_test_set_are_columns_of_the_comparison():
    points = (EvaluationPoint(1.0, 4, 1.0, {"train/epoch_loss": 0.5, "test/accuracy": 0.75, "test/f1": 0.5}),)
    measured = dataclasses.replace(run("sgd", [0.5]), points=points)
    rows = comparison.compare_methods([measured, run("adam", [0.25])])
    files: dict[str, str] = {}
    comparison.write_comparison(rows, files.__setitem__)
    found = {row["optimizer"]: row for row in csv.DictReader(io.StringIO(files["decision.csv"]))}
    assert (found["sgd"]["test/f1"], found["adam"]["test/f1"]) == ("0.5", "nan")
    head, _, adam, sgd = (line.split("|")[7].strip() for line in comparison.markdown(rows).splitlines())
    assert (head, adam, sgd) == ("f1", "–", "0.5")
