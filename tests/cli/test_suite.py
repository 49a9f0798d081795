from __future__ import annotations

from pathlib import Path

import pytest

from raycurv.cli.main import main
from raycurv.cli.suite import BEGIN, END, replace_part
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.service.outcome_log import OutcomeLog


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"# Results\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    once = replace_part(page, "new")
    assert once == f"# Results\n\n{BEGIN}\n\nnew\n{END}\n\nmore\n"
    assert replace_part(once, "new") == once


@pytest.mark.parametrize("page", ["no marks", f"{BEGIN} alone", f"{END}{BEGIN}"])
def test_a_page_without_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="the page has no part for the suite"):
        replace_part(page, "new")


def test_tables_page_and_figure_come_from_stored_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = OutcomeLog(tmp_path / "sweeps" / "mine" / "outcomes.jsonl")
    for seed in range(2):
        points = (EvaluationPoint(1.0, 1300, 3.0, {"test/loss": 0.1, "training_set/loss": 0.05}),)
        log.add(Outcome(f"a-{seed}", "boston-mlp", "auto", seed=seed, points=points, steps=1300, operations=2e9))
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}")
    words = ["--runs", str(tmp_path), "--run-name", "mine", "--page", str(page), "--output", str(tmp_path / "out")]

    assert main(["benchmark", "suite", "--show", "--seeds", "2", "--tasks", "boston-mlp", *words]) == 0

    table = (tmp_path / "out" / "suite.md").read_text()
    assert "| auto | default | 1.00 | 1.00 | 0 | 1.00 |" in table
    assert page.read_text() == f"{BEGIN}\n\n{table}\n{END}"
    assert (tmp_path / "out" / "suite_profile.csv").read_text().splitlines()[1].startswith("auto,1.0000,1")
    assert (tmp_path / "out" / "suite_profile.svg").exists()
    assert "boston-mlp" in capsys.readouterr().out


def test_unknown_tasks_and_methods_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "suite", "--show", "--tasks", "dig", "--runs", str(tmp_path)])
    assert "task 'dig' is unknown; did you mean 'digits'" in capsys.readouterr().err
