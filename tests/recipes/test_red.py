"""RED's recipes, studies and tables: the paper's baselines, seeds and losses."""

from __future__ import annotations

import pytest

from raycurv.benchmarks import paper_tables
from raycurv.recipes import studies
from raycurv.recipes.table import Table


def test_the_tuned_rmsprop_of_every_table_is_the_papers_own() -> None:
    tables = [table for table in paper_tables.TABLES.values() if isinstance(table, Table) and table.paper == "RED"]
    searched = {name: {o for study in table.studies for o in study.tuned} for table in tables for name in [table.name]}
    assert not [name for name, tuned in searched.items() if "rmsprop" in tuned]
    assert {"red_fig1", "red_fig8", "red_fig9"} == {n for n, o in searched.items() if "rmsprop_bias_corrected" in o}


@pytest.mark.parametrize("name", ["red_scale_decay", "red_annealing", "red_beta3"])
def test_every_curve_is_that_of_three_seeds(name: str) -> None:
    assert studies.get(name).seeds == 3


@pytest.mark.parametrize("name", ["red_fig2", "red_fig3", "red_fig4"])
def test_every_entry_is_that_of_three_seeds(name: str) -> None:
    table = paper_tables.get(name)
    assert isinstance(table, Table)
    assert {study.seeds for study in table.studies} == {3}
