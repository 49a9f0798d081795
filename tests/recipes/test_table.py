"""The papers' tables: that every one can be made, and how runs become entries."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from raycurv.benchmarks import alarm_factor as halving
from raycurv.benchmarks import paper_tables as papers
from raycurv.benchmarks.paper_tables import ComputedTable
from raycurv.cli.sweep import Networks
from raycurv.data.digits import write_digits
from raycurv.objective.collectives import Local
from raycurv.recipes import registry, table_files
from raycurv.recipes.printed_table import parse_table
from raycurv.recipes.study import Study, StudyRun
from raycurv.recipes.table import Table, TableEntry, train_and_fill
from raycurv.results import statistics
from raycurv.results.outcomes import EvaluationPoint, Outcome, Status
from raycurv.results.statistics import FAILED, TEST_ERROR, TRAINING_LOSS, Statistic
from raycurv.train import CheckpointStore, check, train

TABLES = [table for table in papers.TABLES.values() if isinstance(table, Table)]


@pytest.fixture
def empty_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the sets' names, enough to make configurations."""
    for name in ("mnist", "cifar10", "cifar100", "imagenet", "multi30k", "boston_housing.csv"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path))


def ended(member: StudyRun, loss: float = 0.5, status: Status = "finished", accuracy: float = 0.9) -> Outcome:
    values = {
        "train/epoch_loss": loss,
        "test/loss": loss,
        "test/accuracy": accuracy,
        "training_set/accuracy": accuracy,
        "optimizer/learning_rate": 0.1,
        "optimizer/descent_share": 1.0,
    }
    points = tuple(EvaluationPoint(float(epoch), epoch, epoch, values) for epoch in (1, 2, 3, 4))
    return Outcome(member.trial.name, "r", member.config.optimizer, status=status, points=points, seconds=4.0)


def by_digest(members: Sequence[StudyRun], **fields: object) -> dict[str, Outcome]:
    return {m.config.digest: ended(m, **fields) for m in members}  # type: ignore[arg-type]


def smaller(table: Table) -> Table:
    """One seed, and one value of all that names neither a row nor a column."""
    shown = {*table.rows, *table.columns}
    studies = []
    for study in table.studies:
        every = (*study.optimizers.values(), *study.tuned.values(), study.run, study.options)
        first = {name: values[:1] for axes in every for name, values in axes.items() if name not in shown}
        studies.append(study.restrict(axes=first, seeds=1))
    return dataclasses.replace(table, studies=tuple(studies))


@pytest.mark.usefixtures("empty_data")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_is_filled_by_its_runs(table: Table) -> None:
    small = smaller(table)
    first = small.first(scale=0.05)
    assert len({member.trial.name for member in first}) == len(first)
    for _, same in itertools.groupby(first, key=lambda m: (m.keys["recipe"], m.config.optimizer)):
        check(next(same).config)
    entries, outcomes = train_and_fill(small, {}, lambda members: [ended(m) for m in members], scale=0.05)

    assert len(outcomes) >= len(first)
    assert all(entry.tried and not entry.missing for entry in entries)
    assert {entry.row for entry in entries} >= set(table.printed)
    assert all(math.isfinite(entry.value) for entry in entries)
    shown = sum(len(cells) for cells in table.printed.values())
    assert sum(bool(entry.printed) for entry in entries) == shown


@pytest.mark.usefixtures("empty_data")
def test_a_table_has_as_many_runs_as_it_says() -> None:
    for name in ("ntlr_table1", "red_fig8", "llr_fig13", "curveball_table2"):
        table = papers.get(name)
        assert isinstance(table, Table)
        trained: list[StudyRun] = []

        def note(members: Sequence[StudyRun], trained: list[StudyRun] = trained) -> list[Outcome]:
            trained += members
            return [ended(m) for m in members]

        train_and_fill(table, {}, note, scale=0.05)
        assert len(trained) == len(table)


STUDY = Study(
    "s",
    "p",
    "Fig. 0",
    ("red_mnist_lenet",),
    {"sgd": {"learning_rate": (0.1, 0.01)}, "adam": {}},
    {"batch_size": (64, 128)},
    seeds=2,
)
TABLE = Table(
    "t",
    "p",
    "Fig. 0",
    (STUDY,),
    (TRAINING_LOSS,),
    ("optimizer",),
    ("batch_size",),
    best_of=("learning_rate",),
    printed={"sgd": {"batch_size=128": "", "batch_size=64": "0.7"}},
)


@pytest.mark.usefixtures("empty_data")
def test_seeds_are_pooled_and_the_best_setting_is_taken() -> None:
    outcomes = {}
    for member in STUDY.members(scale=0.1):
        loss = {0.1: 0.3, 0.01: 0.2, None: 0.5}[member.keys.get("learning_rate")]  # type: ignore[index]
        outcomes[member.config.digest] = ended(member, loss + 0.1 * int(str(member.keys["seed"])))
    found = {(e.row, e.column): e for e in TABLE.entries(outcomes, scale=0.1)}

    best = found["sgd", "batch_size=64"]
    assert (best.value, best.low) == pytest.approx((0.25, 0.25 - 0.1 / math.sqrt(2)))
    assert (best.chosen, best.runs, best.tried, best.printed) == ("learning_rate=0.01", 2, 4, "0.7")
    assert found["adam", "batch_size=128"].value == pytest.approx(0.55)
    assert [column for _, column in found] == ["batch_size=128", "batch_size=64"] * 2


@pytest.mark.usefixtures("empty_data")
def test_failed_and_missing_runs_are_counted_and_a_setting_without_failures_goes_first() -> None:
    members = [m for m in STUDY.members(scale=0.1) if m.config.optimizer == "sgd"]
    outcomes = by_digest(members)
    for member in members:
        if member.keys["learning_rate"] == 0.01 and member.keys["seed"] == 1:
            outcomes[member.config.digest] = ended(member, 1e-3, "diverged")
        elif member.keys["learning_rate"] == 0.01:
            outcomes[member.config.digest] = ended(member, 1e-3)
    sgd, adam = (next(e for e in TABLE.entries(outcomes, scale=0.1) if e.row == name) for name in ("sgd", "adam"))

    assert (sgd.chosen, sgd.value, sgd.failed, sgd.missing) == ("learning_rate=0.1", 0.5, 1, 0)
    assert (adam.missing, adam.runs) == (2, 0)
    assert math.isnan(adam.value)


@pytest.mark.usefixtures("empty_data")
def test_the_rate_of_failed_runs_counts_ends_and_bad_ends() -> None:
    table = dataclasses.replace(TABLE, statistics=(FAILED,), columns=("statistic",), best_of=(), printed={})
    members = STUDY.members(scale=0.1)
    outcomes = by_digest(members)
    outcomes[members[0].config.digest] = ended(members[0], status="failed")
    outcomes[members[1].config.digest] = ended(members[1], accuracy=0.1)
    rates = {entry.row: entry for entry in table.entries(outcomes, scale=0.1)}
    assert (rates["sgd"].value, rates["sgd"].runs) == (25.0, 8)
    assert rates["adam"].value == 0.0


@pytest.mark.usefixtures("empty_data")
def test_only_what_is_missing_is_trained_and_searches_come_first() -> None:
    study = dataclasses.replace(STUDY, optimizers={"red_sgd": {}}, tuned={"sgd": {"learning_rate": (0.1, 0.01)}})
    table = dataclasses.replace(TABLE, studies=(study,), printed={})
    asked: list[list[StudyRun]] = []

    def note(members: Sequence[StudyRun]) -> list[Outcome]:
        asked.append(list(members))
        return [ended(m, 0.1 if m.keys.get("learning_rate") == 0.01 else 0.9) for m in members]

    members = study.members(scale=0.1)
    entries, outcomes = train_and_fill(table, by_digest(members[:1]), note, scale=0.1)
    first, second = asked
    searched = [member for member in first if member.stage == "search"]
    assert len(first) == len(members) - 1 + len(searched) == 3 + 4
    assert {member.config.epochs for member in searched} == {4}  # a fifth of 20
    assert [(m.keys["learning_rate"], m.keys["seed"], m.config.epochs) for m in second] == [
        (0.01, seed, 20) for _ in (64, 128) for seed in (0, 1)
    ]
    assert len(outcomes) == len(table)
    assert {entry.row for entry in entries} == {"red_sgd", "sgd"}


@pytest.mark.usefixtures("empty_data")
def test_runs_of_another_name_and_log_interval_are_the_same_runs() -> None:
    config = STUDY.members(scale=0.1)[0].config
    assert dataclasses.replace(config, name="other", log_every=3).digest == config.digest
    assert dataclasses.replace(config, seed=5).digest != config.digest


@pytest.mark.usefixtures("empty_data")
def test_random_networks_are_told_apart_by_their_label() -> None:
    table = papers.get("curveball_fig3_random").restrict(optimizers=("curveball",), axes={"architecture": (3, 7)})
    assert isinstance(table, Table)
    trials = [member.trial for member in table.first(scale=0.1)]
    assert [(trial.labels, trial.setting_text) for trial in trials] == [
        ({"network": "net3"}, ""),
        ({"network": "net7"}, ""),
    ]
    assert len({trial.name for trial in trials}) == 2


@pytest.mark.usefixtures("empty_data")
def test_llrs_boston_figure_is_of_raw_features_and_the_papers_rates() -> None:
    table = papers.get("llr_fig1")
    assert isinstance(table, Table)
    members = table.first()
    assert all(member.config.data.settings["standardise"] is False for member in members)
    rates = {member.config.optimizer: member.config.optimizer_settings["learning_rate"] for member in members}
    assert rates == {"sgd": 1e-6, "llr_first_order": 1e-7, "llr_second_order": 1e-2}


@pytest.mark.usefixtures("empty_data")
def test_llrs_step_of_the_differences_is_studied_around_the_papers() -> None:
    table = papers.get("llr_difference")
    assert isinstance(table, Table)
    settings = [member.config.optimizer_settings for member in table.first()]
    assert {s["derivatives"] for s in settings} == {"differences"}
    assert [s["difference"] for s in settings] == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    rows = {entry.row for entry in table.entries({})}
    assert rows == {f"second order, ε = 1e-{n}" for n in range(2, 8)}


@pytest.mark.usefixtures("empty_data")
def test_the_robust_setting_has_the_lowest_sum_of_ranks_over_the_rows() -> None:
    """Setting 0.1 is the best on average, by far on one problem; 0.01 is first on the two others."""
    losses = {64: {0.1: 0.1, 0.01: 0.9}, 128: {0.1: 0.3, 0.01: 0.2}, 256: {0.1: 0.3, 0.01: 0.2}}
    study = dataclasses.replace(
        STUDY, optimizers={"sgd": {"learning_rate": (0.1, 0.01)}}, run={"batch_size": (64, 128, 256)}
    )
    table = dataclasses.replace(
        TABLE, studies=(study,), rows=("batch_size",), columns=("optimizer",), best_of=(), robust=("learning_rate",)
    )
    table = dataclasses.replace(table, printed={})
    outcomes = {
        m.config.digest: ended(m, losses[m.keys["batch_size"]][m.keys["learning_rate"]])  # type: ignore[index]
        for m in study.members(scale=0.1)
    }
    entries = table.entries(outcomes, scale=0.1)
    assert [(e.row, e.value, e.robust) for e in entries] == [
        ("batch_size=64", pytest.approx(0.9), "learning_rate=0.01"),
        ("batch_size=128", pytest.approx(0.2), "learning_rate=0.01"),
        ("batch_size=256", pytest.approx(0.2), "learning_rate=0.01"),
    ]
    text = table_files.write_table("t", "Title", entries, lambda name, content: None)
    assert "Settings with the lowest sum of ranks over the rows: sgd: learning_rate=0.01." in text
    assert {entry.robust for entry in table.entries({}, scale=0.1)} == {""}


def test_settings_without_a_number_come_last_and_equal_ones_share_their_rank() -> None:
    assert statistics.lowest_rank_sum([{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}]) == "b"
    assert statistics.lowest_rank_sum([{"a": math.nan, "b": 9.0}, {"a": 0.0, "b": math.inf}, {"b": 1.0}]) == "b"
    assert statistics.lowest_rank_sum([{"a": math.nan}]) == statistics.lowest_rank_sum([]) == ""


@pytest.mark.usefixtures("empty_data")
def test_saleras_second_table_chooses_among_the_runs_of_the_first() -> None:
    first, second = (papers.get(f"salera_table{n}").restrict(("salera_mnist_m0",), seeds=1) for n in (1, 2))
    assert isinstance(first, Table)
    assert isinstance(second, Table)
    members = second.first(scale=0.1)
    assert {m.config.digest for m in members} < {m.config.digest for m in first.first(scale=0.1)}
    printed = {"momentum": 0.9, "beta1": 0.8, "beta2": 0.9999, "memory": 0.1, "gain": 3e-8}
    outcomes = {
        m.config.digest: ended(
            m, accuracy=0.9 if all(m.keys[k] == v for k, v in printed.items() if k in m.keys) else 0.8
        )
        for m in members
    }
    chosen = {entry.column: entry.robust for entry in second.entries(outcomes, scale=0.1)}
    assert chosen["NAG"] == "momentum=0.9"
    assert chosen["ADAM"] == "beta1=0.8 beta2=0.9999"
    assert chosen["SPALeRA"] == "memory=0.1 gain=3e-08"


@pytest.mark.usefixtures("empty_data")
def test_ntlr_is_studied_on_wide_resnets_of_several_depths_and_widths() -> None:
    table = papers.get("ntlr_wide_resnets")
    assert isinstance(table, Table)
    sizes = {(m.config.model.settings["depth"], m.config.model.settings["widen"]) for m in table.first(scale=0.05)}
    assert sizes == {(depth, widen) for depth in (10, 16, 28) for widen in (1, 2, 4)}
    assert "CIFAR-100, depth=28, widen=4, TLR, α₀ = 1e-2" in {entry.row for entry in table.entries({}, scale=0.05)}


@pytest.mark.usefixtures("empty_data")
def test_curveballs_second_table_has_one_rate_of_each_baseline_chosen_on_the_training_set() -> None:
    """The rate 1e-3 has the best validation error, 1e-2 the best training error."""
    table = papers.get("curveball_table2").restrict(("cifar10_basic_cnn", "cifar10_basic_cnn_bn"), ("adam",))
    assert isinstance(table, Table)
    outcomes = {}
    for member in table.first(scale=0.1):
        rate = member.keys["learning_rate"]
        training, validation = {1e-3: (0.8, 0.7), 1e-2: (0.9, 0.6)}.get(float(str(rate)), (0.5, 0.5))
        values = {"training_set/accuracy": training, "test/accuracy": validation}
        found = dataclasses.replace(ended(member), points=(EvaluationPoint(1.0, 1, 1, values),))
        outcomes[member.config.digest] = found
    entries = table.entries(outcomes, scale=0.1)
    assert [(entry.chosen, round(entry.value)) for entry in entries] == 2 * [
        ("learning_rate=0.01", 10),
        ("learning_rate=0.01", 40),
    ]
    assert table_files.entry_text(entries[1]) == "40.00 at learning_rate=0.01 (1 run) [19.7]"


@pytest.mark.usefixtures("empty_data")
def test_a_setting_that_is_chosen_once_has_a_row_or_column_of_its_own() -> None:
    with pytest.raises(ValueError, match="chooses a setting for recipe, optimizer: rows or columns must name each"):
        dataclasses.replace(TABLE, chosen_by=TRAINING_LOSS)


@pytest.mark.usefixtures("empty_data")
def test_the_comparison_with_kfac_has_martens_and_grosses_start_and_pixels() -> None:
    table = papers.get("curveball_fig2").restrict(("mnist_tanh_mlp",))
    assert isinstance(table, Table)
    for config in {member.config.digest: member.config for member in table.first(scale=0.1)}.values():
        assert config.model.settings["initialisation"] == "sparse"
        assert (config.data.settings["mean"], config.data.settings["std"]) == ((0.0,), (1.0,))
    plain = registry.build("mnist_tanh_mlp", {})
    assert not {"initialisation", "mean"} & {*plain.model.settings, *plain.data.settings}


@pytest.mark.usefixtures("empty_data")
def test_vgg_f_is_trained_on_crops_of_one_scale() -> None:
    for recipe in ("imagenet_curveball", "imagenet100_curveball"):
        settings = registry.build(recipe, {}).data.settings
        assert (settings["image_size"], settings["augmentation"]) == (224, "short_side_crop_flip")


@pytest.mark.usefixtures("empty_data")
def test_random_networks_are_trained_on_the_papers_batches_by_default() -> None:
    assert registry.build(Networks().recipe, {}).batch_size == 256


@pytest.mark.usefixtures("empty_data")
def test_a_part_of_a_table_is_taken_by_name() -> None:
    whole = papers.get("salera_table2_printed")
    table = whole.restrict(("salera_mnist_m2",), ("alera", "salera"), {"portion": (0.01,)}, 2)
    assert isinstance(table, Table)
    assert len(table) == len(table.first(scale=0.1)) == 2 * 6 * 2
    with pytest.raises(ValueError, match="has no recipe 'mnist'; it has salera_mnist_m2"):
        table.restrict(recipes=("mnist",))
    with pytest.raises(ValueError, match="has no axis 'rate'; it has gain, learning_rate, memory, portion"):
        table.restrict(axes={"rate": (0.1,)})
    with pytest.raises(ValueError, match="has no run"):
        papers.get("curveball_table2").restrict(("cifar10_resnet18_dropout",), ("adam",))
    with pytest.raises(ValueError, match="'salera_appendix_c' is computed as a whole"):
        papers.get("salera_appendix_c").restrict(seeds=3)


def test_unknown_and_empty_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'ntlr_table1'"):
        papers.get("ntlr_table2")
    with pytest.raises(ValueError, match="table 't' has several statistics"):
        dataclasses.replace(TABLE, statistics=(TRAINING_LOSS, TEST_ERROR))
    with pytest.raises(ValueError, match="no study or no statistic"):
        dataclasses.replace(TABLE, studies=())
    with pytest.raises(ValueError, match="the printed row 'a' has 1 entries for 2 columns"):
        parse_table(" | x | y\na | 1\n")


def test_every_table_is_listed() -> None:
    text = papers.listing()
    assert len(text.splitlines()) == 1 + len(papers.TABLES)
    assert "salera_table1" in text
    assert "112 entries" in text


# --- numbers of a run -------------------------------------------------------------------------------------------------

RUN = Outcome(
    "a",
    "r",
    "sgd",
    seconds=7.0,
    points=tuple(
        EvaluationPoint(epoch, epoch, epoch, {"test/accuracy": value, "train/epoch_loss": 1 - value})
        for epoch, value in ((1, 0.1), (2, 0.5), (3, 0.8), (4, 0.7))
    ),
)


def test_numbers_of_a_run() -> None:
    assert statistics.last("train/epoch_loss")(RUN) == pytest.approx(0.3)
    assert statistics.error(statistics.last("test/accuracy", 0.5))(RUN) == pytest.approx(50)
    assert statistics.error(statistics.last("test/accuracy", 0.01))(RUN) == pytest.approx(90)
    assert statistics.largest("test/accuracy")(RUN) == 0.8
    assert statistics.smallest("train/epoch_loss")(RUN) == pytest.approx(0.2)
    assert statistics.epochs_to("test/accuracy", 0.5, above=True)(RUN) == 2
    assert statistics.epochs_to("train/epoch_loss", 0.25)(RUN) == 3
    assert math.isnan(statistics.epochs_to("train/epoch_loss", 0.1)(RUN))
    assert statistics.epochs_to_share("test/accuracy", 0.6)(RUN) == 2
    assert statistics.seconds(RUN) == 7.0
    assert math.isnan(statistics.last("test/loss")(RUN))


def test_medians_come_with_quartiles() -> None:
    statistic = Statistic("s", statistics.seconds, gather="median")
    runs = [dataclasses.replace(RUN, seconds=float(s)) for s in (1, 2, 3, 4, 100)]
    assert statistic.summary(runs) == (3.0, 2.0, 4.0)


def test_the_best_dividing_factor_of_appendix_c_is_between_3_and_5() -> None:
    best = [entry.value for entry in halving.entries(1.0) if entry.column == "best ζ"]
    assert all(3 < factor < 5 for factor in best)
    assert halving.total_cost(2, 0.01) > halving.total_cost(best[1], 0.01)
    with pytest.raises(ValueError, match=r"eq\. 12 holds from 2 on"):
        halving.total_cost(1.5, 0.1)


# --- the table as text ------------------------------------------------------------------------------------------------


def test_ours_and_the_papers_entry_stand_side_by_side() -> None:
    entries = [
        TableEntry("a_b", "x", 0.481, 0.411, 0.551, runs=4, failed=1, tried=5, printed="0.48 ± 0.07"),
        TableEntry("a_b", "y %", 3.0, 2.0, 4.0, runs=50, tried=50, quartiles=True, form="{:.1f}"),
        TableEntry("c", "x", printed="9"),
    ]
    kept: dict[str, str] = {}
    text = table_files.write_table("t", "Title", entries, kept.__setitem__)

    assert "| a_b | 0.481 ± 0.07 (4 runs, 1 of 5 failed) [0.48 ± 0.07] | 3.0 (2.0 to 4.0) (50 runs) |" in text
    assert "| c | – [9] |  |" in text
    assert set(kept) == {"t.md", "t.csv", "t.tex"}
    rows = list(csv.DictReader(io.StringIO(kept["t.csv"])))
    assert (rows[0]["row"], float(rows[0]["value"]), rows[0]["printed"]) == ("a_b", 0.481, "0.48 ± 0.07")
    assert r"a\_b & 0.481 $\pm$ 0.07" in kept["t.tex"]
    assert r"y \%" in kept["t.tex"]


def test_the_small_problems_fill_curveballs_first_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from raycurv.benchmarks import curveball_table1

    monkeypatch.setattr(curveball_table1, "ROWS", curveball_table1.select(["curveball"]))
    monkeypatch.setattr(curveball_table1.cells, "__defaults__", (curveball_table1.ROWS,))
    measured = papers.get("curveball_table1")
    assert isinstance(measured, ComputedTable)
    entries = measured.measure(0.02)
    assert [entry.printed for entry in entries] == ["13 ± 0.5", "12 ± 1", "13 ± 1", "35 ± 11"]
    assert {entry.tried for entry in entries} == {2}


# --- end to end, in this process --------------------------------------------------------------------------------------


def test_a_table_is_made_by_training(tmp_path: Path) -> None:
    table = papers.get("llr_fig3").restrict(optimizers=("sgd", "llr_second_order"))
    assert isinstance(table, Table)

    def trained(members: Sequence[StudyRun]) -> list[Outcome]:
        return [outcome_of(member, tmp_path) for member in members]

    digits = str(write_digits(tmp_path / "digits"))
    entries, outcomes = train_and_fill(table, {}, trained, data=digits, scale=(0.02, 0.1, 1.0))
    assert len(outcomes) == 2
    loss = {entry.row: entry.value for entry in entries if entry.column == TRAINING_LOSS.title}
    assert 0 < loss["second order"] < loss["basic"] < 3


def outcome_of(member: StudyRun, folder: Path) -> Outcome:
    store = CheckpointStore(str(folder / member.trial.name))
    result = train(member.config, collectives=Local(), store=store, emit=lambda records: None)
    points = tuple(EvaluationPoint(r.epoch, r.step, 0.0, dict(r.values)) for r in result.evaluations)
    return Outcome(member.trial.name, member.config.name, member.config.optimizer, points=points, steps=result.steps)
