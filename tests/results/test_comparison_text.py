"""Comparisons as a person reads them on a terminal of 80 columns."""

from __future__ import annotations

import dataclasses

from raycurv.results import comparison
from raycurv.results.comparison_text import comparison_text, networks_text, write_comparison
from tests.results.test_comparison import SEARCHED, run


def test_a_comparison_is_its_conclusion_and_a_table_with_the_best_first() -> None:
    rows = [row for row in comparison.compare_methods(SEARCHED) if row.weights == "raw"]
    conclusion, _, name, *table = comparison_text(rows).splitlines()
    assert conclusion.startswith("mnist: sgd and its search of 2 trials took")
    assert name == "mnist"
    assert table == [
        "optimizer  setting                               loss  accuracy  FLOP   time  failed",
        "─────────  ────────────────────────────  ────────────  ────────  ────  ─────  ──────",
        "curveball  defaults                      0.15 ± 0.071    85.00%   300  3.0 s  0 of 2",
        "sgd        learning_rate=0.1, best of 2    0.4 ± 0.14    60.00%   400  4.0 s  1 of 4",
        "adam       defaults                               0.9    10.00%   300  3.0 s  0 of 1",
    ]


def test_a_comparison_without_a_search_begins_with_the_best_method_in_its_file_too() -> None:
    rows = comparison.compare_methods([run("sgd", [0.5]), run("auto", [0.25])])
    files: dict[str, str] = {}
    text = write_comparison(rows, files.__setitem__)
    assert text.startswith("mnist: auto ends with the lowest training loss of 2 methods, 0.25, before sgd with 0.5")
    assert files["decision.md"] == text
    assert comparison_text(rows).startswith(text.splitlines()[0])


def test_a_comparison_of_single_runs_fits_80_columns() -> None:
    runs = [run("ntlr_hypergradient_sgd", [0.12345678]), run("momentum", [0.5], setting="learning_rate=0.003")]
    runs = [dataclasses.replace(outcome, operations=123e15, seconds=123456.0) for outcome in runs]
    lines = comparison_text(comparison.compare_methods(runs)).splitlines()[2:]
    assert max(map(len, lines)) <= 80
    assert "123 PFLOP" not in lines[3]
    assert "123 P  123456.0 s" in lines[3]


def test_averaged_weights_and_further_metrics_are_columns_where_there_are_any() -> None:
    rows = comparison.compare_methods(SEARCHED)
    rows = [dataclasses.replace(row, metrics={"test/f1": 0.5}) for row in rows]
    head = comparison_text(rows).splitlines()[3].split("  ")
    assert [title.strip() for title in head if title] == [
        "optimizer", "setting", "weights", "loss", "accuracy", "f1", "FLOP", "time", "failed",
    ]  # fmt: skip


def test_every_comparison_has_a_block_of_its_own() -> None:
    other = dataclasses.replace(run("sgd", [0.5]), recipe="cifar10")
    text = comparison_text(comparison.compare_methods([run("sgd", [0.5]), other]))
    assert "\n\nmnist\noptimizer" in text
    assert "\n\ncifar10\noptimizer" in text


def test_random_networks_are_a_table() -> None:
    outcomes = [run("curveball", [loss], network=name) for name, loss in (("a", 0.1), ("b", 0.3), ("c", 0.2))]
    head, _, line = networks_text(comparison.compare_over_networks(outcomes)).splitlines()
    assert head.split() == ["optimizer", "median", "loss", "quartiles", "accuracy", "best", "on", "failed", "seconds"]
    assert line.split() == ["curveball", "0.2", "0.15", "to", "0.25", "80.00%", "3", "of", "3", "0", "1"]
