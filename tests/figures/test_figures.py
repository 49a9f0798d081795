import csv
import dataclasses
import io
import itertools
import time
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

import numpy as np
import pytest

from raycurv.figures import curves, performance_profile, report, style
from raycurv.results.histories import MetricTrace, RunHistory
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.results.palette import colour_of
from raycurv.results.performance_profile import PerformanceProfile, performance_profiles


def run(optimizer, losses, *, seed=0, seconds=1.0, status="finished", setting="", network=""):
    points = tuple(
        EvaluationPoint(i + 1.0, i + 1, seconds * (i + 1), {"train/epoch_loss": loss, "test/accuracy": 1 / (1 + loss)})
        for i, loss in enumerate(losses)
    )
    labels = {"network": network} if network else {}
    return Outcome(
        f"{optimizer}-{network}-{seed}",
        "a & b",
        optimizer,
        setting,
        seed,
        status=status,
        points=points,
        reason="" if status == "finished" else "the loss was <infinite>",
        labels=labels,
    )


RUNS = [
    run("sgd", [1.0, 0.5, 0.3], setting="learning_rate=0.1"),
    run("sgd", [1.2, 0.7, 0.5], seed=1, seconds=3.0, setting="learning_rate=0.1"),
    run("anything", [0.9, 0.2]),
    run("anything", [float("nan")], seed=1, status="diverged"),
]


def test_a_line_is_the_mean_of_its_seeds_with_their_range():
    sgd, other = curves.method_curves(RUNS, "train/epoch_loss")
    assert sgd.name == "sgd learning_rate=0.1"
    assert sgd.mean == pytest.approx((1.1, 0.6, 0.4))
    assert sgd.low == pytest.approx((1.0, 0.5, 0.3))
    assert sgd.high == pytest.approx((1.2, 0.7, 0.5))
    assert curves.method_curves(RUNS, "train/epoch_loss", "seconds")[0].x == pytest.approx((2.0, 4.0, 6.0))
    assert (other.runs, other.failed, other.x) == (2, 1, (1.0, 2.0))
    assert curves.caption([sgd, other]) == (
        "Mean and range over the seeds; 4 runs, 1 of them did not come to their end."
    )


def test_figures_are_saved_as_pictures_with_their_data(tmp_path):
    png, svg, data = curves.save(curves.method_curves(RUNS, "train/epoch_loss"), "train/epoch_loss", tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = xml.parse(svg).getroot()
    ids = {element.get("id") for element in text.iter()}
    assert {"series-0-line", "series-0-band", "series-1-line"} <= ids
    rows = list(csv.DictReader(io.StringIO(data.read_text())))
    assert float(rows[0]["mean"]) == pytest.approx(1.1)
    assert list(rows[0]) == ["series", "epoch", "mean", "low", "high"]
    assert len(rows) == 5


def test_names_of_metrics_settings_and_runs_may_have_any_characters(tmp_path):
    odd = r"test/$\frac$ <b>\"&' ü"
    points = tuple(EvaluationPoint(e, e, e, {"train/epoch_loss": 1.0 / e, odd: 0.5 * e}) for e in (1, 2))
    setting = r"path=$a_{b$<script>"
    runs = [Outcome(f"<i>{seed}", "re<c>ipe", "m&m", setting, seed, points=points) for seed in range(2)]
    text = report.page("<title>", runs, versions={}, command="a < b")
    page = Page()
    page.feed(text)
    assert odd.removeprefix("test/") in page.text
    assert setting in page.text
    assert "<i>" not in text
    assert "<c>" not in text
    for path in curves.save(curves.method_curves(runs, odd), "odd", tmp_path):
        assert path.stat().st_size


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="no run has a finite value of 'test/loss'"):
        curves.draw(curves.method_curves(RUNS, "test/loss"), "test/loss")
    with pytest.raises(ValueError, match="no run to draw"):
        performance_profile.draw([])
    with pytest.raises(ValueError, match="no run to report on"):
        report.page("x", [], versions={}, command="")


def test_more_profiles_than_colours_are_drawn():
    found = [PerformanceProfile(f"method {i}", (1.0, 1.0 + i)) for i in range(15)]
    lines = performance_profile.draw(found).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle(), str(line._dash_pattern)) for line in lines}) == 15


def test_a_profile_has_the_colour_of_its_optimizer():
    found = [PerformanceProfile(name, (1.0,)) for name in ("adam, tuned", "schedule-free SGD", "adam, one cycle")]
    optimizers = {"adam, tuned": "adam", "adam, one cycle": "adam", "schedule-free SGD": "schedule_free_sgd"}
    tuned, free, cycle = performance_profile.draw(found, optimizers=optimizers).axes[0].lines
    assert free.get_color() == colour_of("schedule_free_sgd")
    assert tuned.get_color() != cycle.get_color()
    assert tuned.get_label() == "adam, tuned"


class Page(HTMLParser):
    """Collects what a page refers to, and its ids."""

    def __init__(self):
        super().__init__()
        self.ids, self.outside, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href") and value and value.startswith("http") and tag != "a":
                self.outside.append(value)

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_that_needs_no_network_and_hides_nothing():
    links = {RUNS[0].name: "http://127.0.0.1:5000/#/run"}
    text = report.page(
        "Mine",
        RUNS,
        versions={"torch": "2.14"},
        command="python jobs/compare.py",
        about=report.ReportContext(links=links),
    )
    page = Page()
    page.feed(text)
    assert not page.outside
    assert len(page.ids) == len(set(page.ids))
    assert "r0-f0-series-1-line" in page.ids
    assert "the loss was <infinite>" in page.text
    assert "a & b" in page.text
    assert 'href="http://127.0.0.1:5000/#/run"' in text
    assert "python jobs/compare.py" in page.text
    assert "2.14" in page.text


def test_more_methods_than_colours_are_drawn_with_a_legend_that_hides_nothing():
    runs = [run(f"method{i}", [0.5, 0.1 + i], network="one") for i in range(12)]
    figure = performance_profile.draw(performance_profiles(runs))
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    assert len(legend.get_texts()) == 12
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


@pytest.mark.parametrize("count", [1, 5, 24])
def test_names_stand_beside_the_ends_of_lines_and_on_nothing(count):
    runs = [run(f"a_method_with_a_name_{i}", [0.5, 0.5 + 1e-4 * i], setting="learning_rate=0.1") for i in range(count)]
    figure = curves.draw(curves.method_curves(runs, "test/accuracy"), "test/accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == count
    assert all(box.x0 > axes.bbox.x1 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    colours = {text.get_text().split()[0]: text.get_color() for text in axes.texts}
    assert len(set(colours.values())) == count


def test_labels_move_as_little_as_they_need():
    assert style.spread_out([0.9, 0.1], [0.1, 0.1]) == pytest.approx([0.9, 0.1])
    assert style.spread_out([0.5, 0.5], [0.1, 0.1]) == pytest.approx([0.55, 0.45])
    assert style.spread_out([0.0, 0.0, 1.0], [0.2, 0.2, 0.2], 0.0, 1.0) == pytest.approx([0.3, 0.1, 0.9])


def test_a_moving_average_follows_the_loss_of_a_short_run():
    steps = np.arange(1.0, 65)
    short = MetricTrace(steps, steps / 16, steps, 1.1 + np.exp(-steps / 16))
    history = RunHistory(RUNS[0], {"train/loss": short})
    (line,) = curves.metric_curves("any", [history], curves.MetricPanel("train/loss", reduction="moving average"))
    assert line.mean[-1] == pytest.approx(short.values[-1], rel=0.02)
    steps = np.arange(1.0, 2001)
    assert curves.decay_of(MetricTrace(steps, steps, steps, steps)) == curves.DECAY


@pytest.mark.slow
def test_five_thousand_runs_make_a_page_in_seconds_and_a_few_megabytes():
    rng = np.random.default_rng(0)
    runs = []
    for number in range(5000):
        recipe, optimizer = f"recipe {number % 10}", ("adam", "sgd", "auto", "curveball", "salera")[number // 10 % 5]
        setting = f"learning_rate={10 ** -float(number // 50 % 20):g}" if optimizer in ("adam", "sgd") else ""
        losses = 0.01 + rng.random() * np.exp(-np.arange(50) / 10)
        values = [{"train/epoch_loss": loss, "test/loss": loss, "test/accuracy": 1 / (1 + loss)} for loss in losses]
        points = tuple(EvaluationPoint(e + 1.0, e + 1, e + 1.0, found) for e, found in enumerate(values))
        labels = {"network": str(number % 3)} if number % 10 == 9 else {}
        runs.append(Outcome(f"run {number}", recipe, optimizer, setting, number, points=points, labels=labels))
    began = time.process_time()
    text = report.page("Many", runs, versions={}, command="")
    assert time.process_time() - began < 30  # 8 on a core of 2024
    assert len(text) < 5_000_000
    assert "5,000 runs, the first 1,000 listed" in text


def test_thousands_of_seconds_are_shown_without_a_power_of_ten():
    runs = [run("auto", [1.0, 0.1], seconds=4567.0), run("sgd", [1.0, 0.2], seconds=1.0)]
    text = report.page("x", runs, versions={}, command="")
    assert ">9,134<" in text.replace("<b>", "").replace("</b>", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 seconds"), (41.3, "41 seconds"), (600.0, "10 minutes"), (9e4, "25 hours")]
)
def test_the_time_of_training_is_in_a_unit_that_fits(seconds, text):
    runs = [dataclasses.replace(run("auto", [1.0]), seconds=seconds)]
    assert f"{text} of training" in report.page("x", runs, versions={}, command="")


def test_time_in_a_report_leaves_out_the_start_up():
    slow = dataclasses.replace(run("first", [1.0, 0.1], seconds=50.0), step_seconds=0.5, steps=2)
    other = dataclasses.replace(run("second", [1.0, 0.1], seconds=2.0), step_seconds=1.0, steps=2)
    text = report.page("x", [slow, other], versions={}, command="")
    assert "first comes within a tenth of the lowest training loss first, after 1 s, before second after 2 s." in text
    assert "step time in seconds" in text
    assert "wall-clock time in seconds" not in text
