"""The figure of an elastic run, without machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import elastic

OUTPUT = """training on 1 worker on the CPU
elastic: starts: 1600 steps, 800 an epoch
training on 3 workers on the CPU
elastic: goes on at step 40, epoch 0.050
training on 2 workers on the CPU
elastic: goes on at step 75, epoch 0.094; the workers are 2 on cpu and were 3 on cpu
"""


def test_groups_of_workers_are_read_from_the_output() -> None:
    assert elastic.changes_in(OUTPUT) == [(1, 1), (41, 3), (76, 2)]


def test_the_figure_has_a_line_for_each_number_of_workers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    losses = [1 / step for step in range(1, 101)]
    measured = elastic.ElasticRun(
        OUTPUT, 9.0, 10.0, 4.0, list(enumerate(losses, 1)), losses, elastic.changes_in(OUTPUT)
    )
    elastic.draw(measured, tmp_path)
    text = (tmp_path / "elastic_run.svg").read_text()
    for label in ("one process, undisturbed", "1 worker", "3 workers", "2 workers"):
        assert f"<!-- {label} -->" in text
