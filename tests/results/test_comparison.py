import csv
import dataclasses
import io
import math

import pytest

from raycurv.results import comparison, comparison_text
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
        "mnist: sgd and its search of 2 trials took 2.0× the operations and 2.0× the seconds that untuned curveball "
        "takes to the same training loss, 0.4."
    )


def test_the_headline_says_it_when_nothing_untuned_gets_there():
    (line,) = comparison.conclusions(comparison.compare_methods([*SEARCHED[:4], SEARCHED[-1]]))
    assert "no untuned optimizer reached the training loss 0.4 of tuned sgd" in line
    (line,) = comparison.conclusions(comparison.compare_methods([SEARCHED[-1]]))
    assert "nothing to compare with" in line


def test_the_table_comes_in_three_forms():
    kept = {}
    text = comparison_text.write_comparison(comparison.compare_methods(SEARCHED), kept.__setitem__)
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
    comparison_text.write_comparison(rows, files.__setitem__)
    found = {row["optimizer"]: row for row in csv.DictReader(io.StringIO(files["decision.csv"]))}
    assert (found["sgd"]["test/f1"], found["adam"]["test/f1"]) == ("0.5", "nan")
    head, _, adam, sgd = (line.split("|")[7].strip() for line in comparison.markdown(rows).splitlines())
    assert (head, adam, sgd) == ("f1", "–", "0.5")


def timed(outcome: Outcome, step_seconds: float, startup_seconds: float) -> Outcome:
    seconds = outcome.steps * step_seconds + startup_seconds
    return dataclasses.replace(outcome, step_seconds=step_seconds, startup_seconds=startup_seconds, seconds=seconds)


def test_the_headline_does_not_depend_on_who_ran_first_in_a_process():
    search = run("sgd", [0.9, 0.5], setting="learning_rate=0.1", stage="search")
    tuned = run("sgd", [0.9, 0.5], setting="learning_rate=0.1")
    free = run("auto", [0.9, 0.5])
    found = []
    for first, second in ((60.0, 0.0), (0.0, 60.0)):
        outcomes = [timed(search, 0.1, first), timed(tuned, 0.1, 0.0), timed(free, 0.2, second)]
        rows = comparison.compare_methods(outcomes)
        found.append(comparison.conclusions(rows))
        sgd, auto = rows
        assert (sgd.step_time, auto.step_time) == pytest.approx((1.6, 1.6))
        assert (sgd.startup_seconds, auto.startup_seconds) == (first, second)
    assert found[0] == found[1]
    assert "took 2.0× the operations and 1.0× the step time that untuned auto takes" in found[0][0]


def test_runs_of_other_length_or_batch_are_rows_of_their_own():
    runs = [run("auto", [loss], seed=seed) for seed, loss in enumerate((0.3, 0.5, 0.9))]
    epochs = [{"epochs": "1"}, {"epochs": "1"}, {"epochs": "3"}]
    runs = [dataclasses.replace(o, conditions=same) for o, same in zip(runs, epochs, strict=True)]
    short, long = comparison.compare_methods(runs)
    assert (short.conditions, short.loss, short.runs) == ("epochs=1", pytest.approx(0.4), 2)
    assert (long.conditions, long.loss, long.runs) == ("epochs=3", pytest.approx(0.9), 1)
    assert "| mnist | epochs=3 | auto |" in comparison.markdown([short, long])


def test_networks_are_no_seeds_of_one_method():
    rows = comparison.compare_methods([run("auto", [0.2], network="net0"), run("auto", [0.8], network="net1")])
    assert [(row.conditions, row.loss) for row in rows] == [("network=net0", 0.2), ("network=net1", 0.8)]
    (line,) = comparison.conclusions(rows)
    assert line.startswith("mnist (network=net0), mnist (network=net1): no baseline was tuned")


def test_a_baseline_whose_search_diverges_everywhere_keeps_its_row():
    trials = [run("sgd", [], setting=f"learning_rate={r}", stage="search", status="diverged") for r in (1, 9)]
    rows = comparison.compare_methods([*trials, run("auto", [0.5])])
    lost = next(row for row in rows if row.optimizer == "sgd")
    assert (lost.failed, lost.runs, lost.searched) == (2, 2, 2)
    assert math.isnan(lost.loss)
    assert "| mnist | sgd | no setting (2 trials) | raw | – |" in comparison.markdown(rows)
    (line,) = comparison.conclusions(rows)
    assert line == (
        "mnist: no tuned baseline came to its end (sgd, 2 of 2 runs failed), so there is nothing to compare with."
    )


def test_a_search_belongs_to_the_runs_of_its_batch_size():
    small, large = {"batch_size": "8", "epochs": "1"}, {"batch_size": "64", "epochs": "1"}
    outcomes = [
        dataclasses.replace(run("sgd", [0.5], setting="learning_rate=1", stage=stage), conditions=same)
        for same in (small, large)
        for stage in ("search", "final")
    ]
    outcomes[0] = dataclasses.replace(outcomes[0], operations=1e6, conditions={**small, "epochs": "3"})
    rows = comparison.compare_methods(outcomes)
    assert [(row.conditions, row.searched, row.operations) for row in rows] == [
        ("batch_size=8", 1, 1e6 + 100), ("batch_size=64", 1, 200.0),
    ]  # fmt: skip


def test_seeds_on_one_network_are_averaged_and_other_lengths_are_other_methods():
    def on(network, loss, *, seed=0, epochs="4", status="finished"):
        outcome = run("auto", [loss], network=network, seed=seed, status=status)
        return dataclasses.replace(outcome, conditions={"epochs": epochs, "model.settings.index": network})

    long = [on(network, 0.1, epochs="40") for network in "ab"]
    short = [on("a", 0.2), on("a", 0.4, seed=1), on("b", 0.7), on("c", 9.9), on("c", 9.9, seed=1, status="failed")]
    rows = {row.optimizer: row for row in comparison.compare_over_networks([*short, *long])}
    assert set(rows) == {"auto epochs=4", "auto epochs=40"}
    assert rows["auto epochs=40"].median == 0.1
    row = rows["auto epochs=4"]
    assert row.median == pytest.approx((0.3 + 0.7) / 2)
    assert (row.networks, row.failed, row.best_on) == (3, 1, 0)
