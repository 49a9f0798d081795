import math

import pytest

from raycurv.benchmarks.suite import tables
from raycurv.benchmarks.suite.plan import SuitePlan
from raycurv.benchmarks.suite.runs import SuiteRuns
from raycurv.results.target_score import score
from tests.benchmarks.suite.cases import ADAM, AUTO, COSTLY, EASY, HARD, RATES, TUNED, outcome

PLAN = SuitePlan((EASY, HARD, COSTLY), (TUNED, ADAM, AUTO), seeds=3)
ONE_SEED = SuitePlan((EASY,), (ADAM, AUTO), seeds=1)


def seeds(task, method, *rows, **options):
    return [outcome(task, method, row, seed=seed, **options) for seed, row in enumerate(rows)]


def cells(table, name):
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_grid_is_searched_on_one_seed_and_its_best_point_gets_the_others():
    assert len(PLAN.first(EASY)) == 3 + 3 + 3
    assert PLAN.expected(EASY) == 9 + 2
    assert PLAN.final(EASY, SuiteRuns([])) == []
    runs = SuiteRuns(outcome(EASY, TUNED, [x], settings=p) for p, x in zip(RATES, (0.1, 0.95, 0.2), strict=True))
    assert [(p.settings, p.seed) for p in PLAN.final(EASY, runs)] == [(RATES[1], 1), (RATES[1], 2)]
    assert PLAN.done(EASY, runs) == 3


def test_only_the_methods_for_them_run_on_costly_tasks():
    assert [method.name for method in PLAN.methods_on(COSTLY)] == ["sgd, tuned", "auto"]


def test_a_point_that_two_methods_share_runs_once():
    twin = type(ADAM)("twin", "adam", dict(ADAM.settings))
    assert len(SuitePlan((EASY,), (ADAM, twin), seeds=2).first(EASY)) == 2


def test_one_setting_for_all_against_the_best_of_each_task():
    outcomes = [
        *seeds(EASY, ADAM, [0.95], [0.95], [0.5], loss=0.4, operations=4e9),
        *seeds(EASY, AUTO, [0.5, 0.95], [0.5, 0.95], [0.5, 0.95], loss=0.1, step_seconds=0.5),
        *seeds(HARD, ADAM, [0.4], [0.4], [0.4], loss=0.2),
        *seeds(HARD, AUTO, [0.9], [0.9], [0.9], status="diverged", operations=8e9),
    ]
    runs = SuiteRuns(outcomes)
    table = tables.one_setting_table(PLAN, runs)
    assert cells(table, "adam")[:5] == ["adam", "default", "2.00", "4.00", "0"]
    assert cells(table, "adam")[7:] == ["2 of 2", "1.00"]
    assert cells(table, "auto")[8] == f"{math.sqrt(2):.2f}"
    assert cells(table, "auto")[2:8] == ["1.00", "1.00", "1", "0.33", "0.00", "1 of 2"]
    assert cells(table, "sgd, tuned")[1:3] == ["tuned", "not run yet"]
    summary = tables.loss_summary(PLAN, runs, ADAM)
    assert summary.mean == pytest.approx(math.sqrt(4 * 1))
    profiles = {p.name: p for p in tables.suite_profiles(PLAN, runs)}
    assert profiles["adam"].ratios == (1.0, 1.0)
    assert profiles["auto"].ratios == (2.0, math.inf)
    assert score(profiles["auto"]) == pytest.approx(((4 - 2) / 3 + 0) / 2)


def test_a_loss_far_above_the_best_is_a_failure():
    runs = SuiteRuns([*seeds(EASY, ADAM, [0.1], loss=1e13), *seeds(EASY, AUTO, [0.95], loss=0.1)])
    assert tables.loss_summary(ONE_SEED, runs, ADAM).failures == 1


def test_a_task_on_which_nothing_finished_is_a_failure_of_all():
    runs = SuiteRuns(seeds(EASY, ADAM, [0.1], status="diverged"))
    assert tables.loss_summary(ONE_SEED, runs, ADAM).failures == 1


def test_the_cost_to_the_target_says_what_was_missed_and_what_was_not_run():
    outcomes = [
        *seeds(EASY, ADAM, [0.95], [0.95], [0.5]),
        *seeds(EASY, AUTO, [0.5, 0.95], [0.5, 0.95], [0.5, 0.95]),
        *seeds(HARD, ADAM, [0.9], [0.9], [0.9]),
    ]
    table = tables.target_table(PLAN, SuiteRuns(outcomes))
    assert cells(table, "adam") == ["adam", "**1 G** (1 of 3 missed)", "missed (3 of 3 missed)"]
    assert cells(table, "auto")[1:] == ["2 G", f"[{tables.quantity(HARD.operations)}]"]
    assert cells(table, "sgd, tuned")[1] == f"[{tables.quantity(3 * EASY.operations)}]"


def test_costly_tasks_show_once_they_have_run_and_only_the_methods_for_them():
    table = tables.target_table(PLAN, SuiteRuns(seeds(COSTLY, AUTO, [0.95])))
    airbench = 3e9 * 0.236 * 1024 * 40
    assert table.splitlines()[0] == "| operations to the target | Costly |"
    assert cells(table, "adam")[1] == "–"
    assert cells(table, "auto")[1] == "1 G (1 of 3 seeds)"
    assert cells(table, "sgd, tuned")[1] == f"[{tables.quantity(3 * airbench)}]"


def test_the_tasks_show_their_targets_and_runs():
    table = tables.task_table(PLAN, SuiteRuns(seeds(EASY, ADAM, [0.95])))
    expected = ["Easy", "`mnist_algoperf`", "40", "test/accuracy 0.9", tables.quantity(EASY.operations), "1 of 11"]
    assert cells(table, "Easy") == expected


def test_a_task_that_was_not_timed_has_no_score_by_step_time():
    timed, untimed = seeds(EASY, ADAM, *[[0.95]] * 3), seeds(EASY, AUTO, *[[0.95]] * 3, step_seconds=0.0)
    assert tables.suite_profiles(PLAN, SuiteRuns([*timed, *untimed]), "seconds") == []
    assert [p.name for p in tables.suite_profiles(PLAN, SuiteRuns(timed), "seconds")] == ["adam"]


def test_what_does_not_differ_from_the_best_is_bold():
    same = [
        *seeds(EASY, ADAM, [0.95], [0.95], [0.5, 0.95]),
        *seeds(EASY, AUTO, [0.95], [0.5, 0.95], [0.95], operations=4.4e9),
    ]
    table = tables.target_table(PLAN, SuiteRuns(same))
    assert cells(table, "adam")[1] == "**1 G**"
    assert cells(table, "auto")[1] == "**1.1 G**"
    alone = tables.target_table(PLAN, SuiteRuns([same[0], same[3]]))
    assert cells(alone, "auto")[1] == "1.1 G (1 of 3 seeds)"
    assert cells(tables.one_setting_table(PLAN, SuiteRuns([same[0], same[3]])), "auto")[2] == "not run yet"


def test_the_time_left_is_that_of_the_runs_that_are_not_done():
    text = tables.progress(PLAN, SuiteRuns(seeds(EASY, ADAM, [0.5] * 3600)))
    assert text.splitlines()[1].split() == ["easy", "1", "of", "11", "10.0", "h"]
    assert tables.progress(PLAN, SuiteRuns([])).splitlines()[1].split()[-1] == "unknown"


def test_the_page_names_the_rule_of_a_difference_and_the_commits():
    page = tables.page(PLAN, SuiteRuns(seeds(EASY, ADAM, [0.95])))
    assert "at least 2 over the n seeds" in page
    assert "Commits of the runs: abcdef1." in page


@pytest.mark.parametrize(
    ("value", "text"), [(1.234e15, "1.23 P"), (999.9e9, "1 T"), (5e6, "5 M"), (12.0, "12"), (math.nan, "?")]
)
def test_operations_are_written_with_a_prefix(value, text):
    assert tables.quantity(value) == text
