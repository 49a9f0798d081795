"""The papers' figures, of runs that are trained here on MNIST and of recorded ones."""

import csv
import dataclasses
import io
import itertools
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from raycurv import recipes
from raycurv.figures import curves, panels, paper_figures, report, style
from raycurv.figures.curves import Curve, MetricPanel
from raycurv.objective.collectives import Local
from raycurv.results import histories
from raycurv.results.histories import MetricTrace, RunHistory
from raycurv.results.outcomes import Outcome
from raycurv.train import CheckpointStore, NonFiniteLoss, train

PLATES = {plate.name: plate for plate in paper_figures.FIGURES}
METHODS = (
    ("sgd", {"learning_rate": 0.1}, 2),
    ("sgd", {"learning_rate": 1e30}, 1),  # its loss overflows
    ("ran_sgd", {"phases": (1, 1, 1)}, 2),
    ("curveball", {}, 1),
    ("salera", {"rates_by_tensor": True, "gain": 1e-3, "learning_rate": 1.0}, 1),
)


def recorded(optimizer, setting="", *, seed=0, status="finished", stage="final", network="", epochs=4, **metrics):
    """A history with ten steps an epoch; each metric is a function of the epoch."""
    steps = np.arange(1.0, 10 * epochs + 1)
    labels = {"network": network} if network else {}
    outcome = Outcome(
        f"{optimizer}{setting}{seed}{network}", "recorded", optimizer, setting, seed, stage, status, labels=labels
    )
    found = {}
    for name, function in metrics.items():
        at = steps[9::10] if name.startswith("test") or "epoch" in name else steps
        values = np.array([function(epoch) for epoch in at / 10])
        found[name.replace("__", "/")] = MetricTrace(at, at / 10, at * 0.1, values)
    return RunHistory(outcome, found)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_folder):
    found = []
    base = recipes.build("red_mnist_lenet", {"scale": (0.005, 1, 0.2), "data": str(data_folder / "mnist")})
    for optimizer, settings, seeds in METHODS:
        for seed in range(seeds):
            config = dataclasses.replace(
                base,
                optimizer=optimizer,
                optimizer_settings=settings,
                seed=seed,
                epochs=4,
                batch_size=50,
                gradient_norm=True,
                batch_error=True,
                log_every=2,
            )
            records, status = [], "finished"
            store = CheckpointStore(str(tmp_path_factory.mktemp("store")))
            try:
                train(config, collectives=Local(), store=store, emit=records.extend)
            except NonFiniteLoss:
                status = "diverged"
            setting = " ".join(f"{name}={value}" for name, value in settings.items())
            outcome = Outcome(f"{optimizer}-{seed}", "mnist", optimizer, setting, seed, status=status)
            found.append(histories.history_of_records(outcome, records))
    return found


def test_trained_runs_give_every_figure_that_they_have_the_data_for(trained, tmp_path):
    found = paper_figures.draw(trained)
    paths = paper_figures.write(found, tmp_path)
    drawn = {path.stem for path in paths if path.suffix == ".png"}
    expected = {"training", "quantiles", "annealing", "descent", "time", "hyperparameters", "gradient", "alarms"}
    assert drawn == expected | {"batch_error"}
    for name in drawn:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ids = {element.get("id") for element in xml.parse(tmp_path / f"{name}.svg").getroot().iter()}
        assert "series-0-p0-line" in ids
        assert len(rows((tmp_path / f"{name}.csv").read_text())) > 1
    index = (tmp_path / "figures.md").read_text()
    assert "7 runs, 1 of them did not come to their end (1 diverged)" in index
    assert "Random networks (after CurveBall, Fig. 3 (left)): needs runs on random networks" in index
    alarms = rows((tmp_path / "alarms.csv").read_text())
    assert any(row["metric"] == "mini-batch error" and 0 <= float(row["middle"]) <= 100 for row in alarms)
    tensors = {row["series"] for row in alarms if row["metric"].startswith("learning rate")}
    assert len(tensors) >= 6
    assert all("weight" in name or "bias" in name for name in tensors - {"mark"})


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="no run has a metric that a figure shows"):
        paper_figures.draw([recorded("anything")])


def test_a_report_takes_figures_in():
    run = recorded("any", train__loss=lambda e: 1 / e, train__gradient_norm=lambda e: 2 / e)
    drawn = paper_figures.draw([run], [PLATES["gradient"]])
    text = report.page("Mine", [run.outcome], versions={}, command="", drawn=drawn)
    assert f"<summary>{drawn[0].title}</summary>" in text
    assert 'id="more0-series-0-p0-line"' in text
    assert "1 run, all came to their end" in text


def test_hyper_exploration_and_alarms_are_marked_where_they_begin():
    def loss(epoch):
        return 1 / epoch

    cycling = recorded("any", train__loss=loss, optimizer__scale=lambda e: 2.0 if 2 < e <= 3 else 0.5)
    steady = recorded("other", train__loss=loss, optimizer__scale=lambda e: 0.5**e)
    (drawn,) = panels.draw(PLATES["annealing"], [cycling, steady])
    marks = {row["x"] for row in rows(drawn.data) if row["series"] == "mark"}
    assert marks == {"2.1"}
    assert drawn.names == ("any", "other")
    assert list(panels.draw(PLATES["annealing"], [steady])) == []
    alarmed = recorded("any", train__loss=loss, optimizer__alarms=lambda e: float(e > 1.25) + float(e > 3))
    (drawn,) = panels.draw(PLATES["alarms"], [alarmed])
    assert {row["x"] for row in rows(drawn.data) if row["series"] == "mark"} == {"1.3", "3.1"}
    assert "alarm (2)" in drawn.caption


def test_training_and_test_accuracy_are_drawn_for_each_epoch():
    run = recorded("any", train__epoch_loss=lambda e: 1 / e, training_set__accuracy=lambda e: e / 5)
    (drawn,) = panels.draw(PLATES["epochs"], [run, recorded("other", train__epoch_loss=lambda e: 1 / e)])
    assert drawn.names == ("any",)
    assert {row["metric"] for row in rows(drawn.data)} == {"training loss", "training accuracy"}


def test_training_error_is_drawn_in_per_cent_for_each_epoch():
    run = recorded("any", training_set__epoch_accuracy=lambda e: 0)
    trace = run.traces.pop("training_set/epoch_accuracy")
    run.traces["training_set/accuracy"] = dataclasses.replace(trace, values=np.array([0.6, 0.7, 0.8, 0.9]))
    (drawn,) = panels.draw(PLATES["training_error"], [run, recorded("other", train__epoch_loss=lambda e: 1 / e)])
    assert drawn.names == ("any",)
    found = {float(row["x"]): float(row["middle"]) for row in rows(drawn.data) if row["metric"] == "training error"}
    assert found == pytest.approx({1: 40, 2: 30, 3: 20, 4: 10})
    assert list(panels.draw(PLATES["fixed_momentum"], [run])) == []


def test_training_with_a_momentum_of_one_is_drawn_beside_the_other_runs_of_its_recipe():
    def run(name, momentum):
        return recorded(
            name,
            training_set__accuracy=lambda e: e / 5,
            train__epoch_loss=lambda e: 1 / e,
            optimizer__momentum=lambda e: momentum,
        )

    plain = recorded("other", training_set__accuracy=lambda e: e / 6)
    (drawn,) = panels.draw(PLATES["fixed_momentum"], [run("any", 1.0), run("any free", 0.9), plain])
    assert drawn.names == ("any", "any free", "other")
    assert list(panels.draw(PLATES["fixed_momentum"], [run("any free", 0.9), plain])) == []


def test_networks_are_shown_by_median_and_quartiles_and_failures_count_as_worst():
    runs = [
        recorded("any", network=f"net{i}", train__epoch_loss=lambda e, i=i: i / e, test__accuracy=lambda e: 0.9)
        for i in range(1, 4)
    ]
    runs.append(
        recorded(
            "any",
            network="net9",
            status="diverged",
            epochs=2,
            train__epoch_loss=lambda e: 1 / e,
            test__accuracy=lambda e: 0.2,
        )
    )
    (drawn,) = panels.draw(PLATES["networks"], runs)
    losses = [row for row in rows(drawn.data) if row["metric"] == "training loss"]
    assert [float(row["middle"]) for row in losses] == pytest.approx([1.5, 0.75, 2.5 / 3, 2.5 / 4])
    assert losses[-1]["high"] == "inf"
    errors = [row for row in rows(drawn.data) if row["metric"] == "test error"]
    assert float(errors[-1]["middle"]) == pytest.approx(10.0)
    assert float(errors[-1]["high"]) == pytest.approx(0.75 * 10 + 0.25 * 100)
    assert "4 runs, 1 of them did not come to their end (1 diverged)" in drawn.caption
    assert "a run that failed counts as the worst" in drawn.caption


def test_damping_is_divided_by_its_first_value_and_averaged_by_epoch():
    run = recorded(
        "any",
        optimizer__momentum=lambda e: 0.9,
        optimizer__damping=lambda e: 10 / (1 + e),
        optimizer__learning_rate=lambda e: 0.1,
    )
    (drawn,) = panels.draw(PLATES["hyperparameters"], [run, recorded("other", train__loss=lambda e: 1.0)])
    found = [float(row["middle"]) for row in rows(drawn.data) if row["metric"].startswith("damping")]
    wanted = 10 / (1 + np.arange(0.1, 4.05, 0.1))
    assert found == pytest.approx((wanted / wanted[0]).reshape(4, 10).mean(1).tolist())
    assert drawn.names == ("any",)


def test_many_initial_rates_are_one_study_in_the_order_of_their_numbers():
    rates = ("1", "1e-06", "0.01")
    runs = [
        recorded(
            "any",
            f"learning_rate={rate} portion=0.2",
            stage="search",
            train__loss=lambda e: 1 / e,
            optimizer__learning_rate=lambda e, rate=rate: float(rate),
        )
        for rate in rates
    ]
    (drawn,) = panels.draw(PLATES["rates"], [*runs, recorded("lone", train__loss=lambda e: 1.0)])
    assert drawn.names == ("learning_rate=1e-06", "learning_rate=0.01", "learning_rate=1")
    assert drawn.title.endswith("recorded · any")


def test_more_methods_than_can_be_told_apart_are_cut_to_the_best_and_said_so():
    runs = [recorded("any", f"rate={i}", train__loss=lambda e, i=i: i / e) for i in range(1, panels.MOST_METHODS + 4)]
    (drawn,) = panels.draw(PLATES["training"], runs)
    assert set(drawn.names) == {f"any rate={i}" for i in range(1, panels.MOST_METHODS + 1)}
    assert "3 more runs are not" in drawn.caption


def test_recipes_that_do_not_fit_beside_each_other_make_several_files():
    runs = [recorded("any", train__loss=lambda e: 1 / e) for _ in range(panels.WIDEST + 1)]
    runs = [
        dataclasses.replace(run, outcome=dataclasses.replace(run.outcome, recipe=f"recipe{i}"))
        for i, run in enumerate(runs)
    ]
    assert [drawn.name for drawn in panels.draw(PLATES["training"], runs)] == ["training-1", "training-2"]


def line(values, failed=0):
    numbers = tuple(map(float, values))
    return Curve("any", tuple(range(len(numbers))), numbers, numbers, numbers, 1, failed)


def test_a_run_that_diverged_does_not_flatten_the_others():
    sound, gone = line([2.0, 1.0, 0.1]), line([2.0, 50.0, 1e30], failed=1)
    bottom, top = curves.limits([sound, gone], log=True, above=0.7)
    assert 0.05 < bottom < 0.1
    assert 2.0 < top < 50.0
    rates = curves.limits([line([0.01] * 3), line([5.0] * 3, failed=1)], log=True)
    assert rates[0] < 0.01 < 5.0 < rates[1]
    bottom, top = curves.limits([gone], log=True)
    assert 1.0 < bottom < 2.0 < top < 1e7
    assert curves.limits([line([0.5, 0.5])], log=False)[0] < 0.5


def test_an_axis_is_logarithmic_only_where_that_shows_something():
    figure = style.figure_of(4, 3)
    one, other, third = figure.subplots(1, 3)
    looks = {"any": style.line(0)}
    curves.plot(one, [line([1.0, 0.1])], MetricPanel("train/loss"), looks)
    curves.plot(other, [line([1.0, 0.99])], MetricPanel("train/loss"), looks)
    curves.plot(third, [line([1.0, -0.5])], MetricPanel("train/loss"), looks)
    assert [axes.get_yscale() for axes in (one, other, third)] == ["log", "linear", "linear"]


def test_nothing_in_a_figure_lies_on_something_else(tmp_path):
    long = "with_a_rather_long_name momentum=0.9 weight_decay=0.0001"
    runs = [
        recorded(
            "any",
            f"{long} learning_rate={rate}",
            train__loss=lambda e: 1 / e,
            test__accuracy=lambda e: 0.5,
            optimizer__learning_rate=lambda e: 0.1,
            test__loss=lambda e: 2 / e,
        )
        for rate in (0.1, 0.2, 0.3, 0.4)
    ]
    (drawn,) = panels.draw(PLATES["training"], runs)
    assert drawn.names[0] == "any with_a_rather_long_name learning_rate=0.1" or "learning_rate=0.1" in drawn.names[0]
    drawn.save(tmp_path)
    figure = drawn.figure
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [artist.get_window_extent() for artist in (*figure.legends, *figure.texts)]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = figure.bbox
    for box in boxes:
        assert inside.x0 <= box.x0 + 1
        assert box.x1 <= inside.x1 + 1


def test_lines_differ_without_colours_and_files_are_the_same_every_time(tmp_path):
    looks = [style.line(index) for index in range(30)]
    grey = {(str(look["linestyle"]), look["marker"]) for look in looks}
    assert len(grey) == 30
    runs = [recorded("any", train__loss=lambda e: 1 / e)]
    files = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        (drawn,) = panels.draw(PLATES["quantiles"], runs)
        files.append([path.read_bytes() for path in drawn.save(folder)])
    assert files[0] == files[1]
