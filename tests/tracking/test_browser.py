"""What people look at, in a real browser: MLflow's pages of our runs, and the report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.figures import curves, report
from raycurv.results.comparison import compare_methods
from raycurv.results.comparison_text import write_comparison
from raycurv.results.palette import colour_of
from raycurv.service import Cluster
from raycurv.service.artifacts import ArtifactWriter
from raycurv.tracking import views
from raycurv.tracking.client import Tracking, open_command
from raycurv.tracking.messages import LogRun
from raycurv.tracking.stored_runs import ExperimentRuns
from raycurv.train import Record
from tests.service.problems import mine
from tests.service.serving import Server
from tests.tracking.browsing import Browser, missing, screenshots

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(bool(missing()), reason=missing())]

# The place on the screen of the third point of the second line.
WHERE = """
const [figure] = arguments; figure.scrollIntoView({block: 'center'});
const svg = figure.querySelector('svg'), path = svg.querySelector('[id$="series-1-line"] path');
const [x, y] = path.getAttribute('d').match(/-?[\\d.]+/g).slice(4, 6).map(Number);
const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
return [Math.round(point.x), Math.round(point.y)];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(screenshots(tmp_path_factory.mktemp("screenshots")), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def tracked(server: Server, tmp_path_factory: pytest.TempPathFactory) -> ExperimentRuns:
    """A launch of three runs, one of which diverged, as a driver writes it."""
    folder = tmp_path_factory.mktemp("runs")
    cluster = Cluster(runs=str(folder), tracking_uri=server.uri, experiment="looked at", system_metrics_every=0)
    tracking = Tracking(cluster, print)
    parent = tracking.parent("launch", {}, False, "points · curveball, sgd · 3 runs")
    for optimizer, seed, worst in (("curveball", 0, 0.0), ("curveball", 1, 0.1), ("sgd", 0, 0.3)):
        tags = {"recipe": "points", "optimizer": optimizer, "seed": str(seed)}
        config = replace(mine(optimizer=optimizer, seed=seed), name=f"{optimizer}-{seed}")
        run = tracking.open(config, tags, parent.id, False)
        for step in range(1, 41):
            loss = worst + 1 / step
            values = {"train/loss": loss, "optimizer/learning_rate": 0.1, "throughput/images_per_second": 900.0}
            run.log([Record("step", step, step / 8, time.time(), values)])
            if step % 8 == 0:
                found = {"train/epoch_loss": loss, "test/loss": loss + 0.1, "test/accuracy": 1 - loss / 2}
                run.log([Record("evaluation", step, step / 8, time.time(), found)])
        failed = optimizer == "sgd"
        run.tags({"status": "diverged", "reason": "step 41 was not finite"} if failed else {"status": "finished"})
        run.close("FAILED" if failed else "FINISHED")
    parent.close("FINISHED")
    tracking.finish()
    tracked = ExperimentRuns(server.uri, "looked at")
    tracking = Tracking(cluster, print)
    parent = tracking.parent("launch", {}, True)
    artifacts = ArtifactWriter("launch", folder / "artifacts", parent, print)
    lines = curves.method_curves(tracked.outcomes, "test/accuracy")
    for path in curves.save(lines, "test/accuracy", artifacts.folder / "figures"):
        if path.suffix == ".svg":
            artifacts.write("figures/accuracy.svg", path.read_text())
    artifacts.write(
        "report.html", report.page("launch", tracked.outcomes, versions={}, command="", about=tracked.about())
    )
    parent.close("FINISHED")
    tracking.finish()
    return tracked


def test_the_list_of_runs_reads_by_itself(browser: Browser, tracked: ExperimentRuns) -> None:
    browser.open(tracked.about().places["the runs in MLflow"])
    names = ["points · curveball · seed 0", "points · curveball · seed 1", "points · sgd · seed 0"]
    browser.wait(lambda: all(name in browser.text() for name in names), "mlflow-runs")
    shown = browser.text()
    assert sorted(names, key=shown.index) == names


def test_charts_open_with_the_four_that_matter_first_in_the_colours_of_the_optimizers(
    browser: Browser, tracked: ExperimentRuns
) -> None:
    browser.open(tracked.about().places["their charts"])
    browser.wait(lambda: len(browser.all(".js-plotly-plot .scatterlayer .trace")) >= 4, "mlflow-charts")
    shown = browser.text()
    assert "Overview, over epochs" in shown
    assert "No charts in this section" not in shown.partition("System metrics")[0]
    assert shown.index("train/loss") < shown.index("test/accuracy") < shown.index("learning_rate")
    drawn = browser.driver.execute_script(
        "return [...document.querySelectorAll('.js-plotly-plot .scatterlayer .js-line')].map(l => l.style.stroke)"
    )
    assert {_rgb(colour_of("curveball")), _rgb(colour_of("sgd"))} <= set(drawn)


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_the_link_of_a_launch_opens_its_runs_and_says_what_they_are(
    browser: Browser, server: Server, tracked: ExperimentRuns
) -> None:
    browser.open(open_command(server.uri, tracked.id))
    browser.wait(lambda: "points · sgd · seed 0" in browser.text(), "mlflow-landing")
    shown = browser.text()
    assert "Open the charts of these runs" in shown
    assert "Judges" not in shown  # the layout for generative AI


def test_runs_are_compared_by_settings_and_results(browser: Browser, tracked: ExperimentRuns) -> None:
    browser.open(tracked.about().places["side by side"])
    browser.wait(lambda: "test/accuracy" in browser.text() and "train/loss" in browser.text(), "mlflow-compare")
    assert "points · curveball · seed 0" in browser.text()


def test_a_figure_among_the_artifacts_is_shown(browser: Browser, server: Server, tracked: ExperimentRuns) -> None:
    (parent,) = MlflowClient(server.uri).search_runs([tracked.id], "tags.`raycurv.run_name` = 'launch'")
    place = f"{server.uri}/#/experiments/{tracked.id}/runs/{parent.info.run_id}/artifacts"
    browser.open(f"{place}/figures/accuracy.svg")
    drawn = "return [...document.images].some(i => i.src.startsWith('blob:') && i.clientWidth > 300)"
    browser.wait(lambda: browser.driver.execute_script(drawn), "mlflow-figure")
    browser.open(f"{place}/report.html")
    browser.wait(lambda: browser.all("iframe[src^='blob:']"), "mlflow-report")


@pytest.fixture(scope="module")
def sweep(server: Server, tmp_path_factory: pytest.TempPathFactory) -> ExperimentRuns:
    """A sweep of three learning rates with one final run, as a driver writes it."""
    folder = tmp_path_factory.mktemp("sweeps")
    cluster = Cluster(runs=str(folder), tracking_uri=server.uri, experiment="searched", system_metrics_every=0)
    tracking = Tracking(cluster, print)
    parent = tracking.parent("search", {"sweep": "search"}, False, "points · sgd · sweep search")
    for number, (rate, stage) in enumerate(((0.01, "search"), (0.1, "search"), (1.0, "search"), (0.1, "final"))):
        settings = {"learning_rate": rate}
        config = replace(mine(optimizer="sgd", optimizer_settings=settings), name=f"search-{number}")
        tags = {"recipe": "points", "optimizer": "sgd", "seed": "0", "stage": stage, "sweep": "search"}
        tags |= {"setting": f"learning_rate={rate:g}", "status": "finished"}
        values = {"train/epoch_loss": abs(rate - 0.1) + 0.1, "test/loss": 0.5, "test/accuracy": 0.9 - rate / 2}
        records = (Record("evaluation", 8, 1.0, 1005.0, values),)
        tracking.put(LogRun(config.name, config.to_json(), tags, parent.id, records, "FINISHED", 1010.0, 1000.0))
    tracking.save()
    tracking.finish()
    tracked = ExperimentRuns(server.uri, "searched")
    tracking = Tracking(cluster, print)
    parent = tracking.parent("search", {}, True)
    artifacts = ArtifactWriter("search", folder / "artifacts", parent, print)
    write_comparison(compare_methods(tracked.outcomes), artifacts.write)
    parent.close("FINISHED")
    tracking.finish()
    return tracked


def test_the_view_of_a_search_has_its_trials_and_charts_of_rate_loss_and_accuracy(
    browser: Browser, server: Server, sweep: ExperimentRuns
) -> None:
    browser.open(server.uri + views.runs_page(sweep.id, views.SEARCH))
    # Charts below the window are drawn when they are scrolled to.
    drawn = ("Search of settings", "Parallel Coordinates", "train/epoch_loss", "test/accuracy", "3 matching runs")
    browser.wait(
        lambda: browser.all(".js-plotly-plot") and all(name in browser.text() for name in drawn), "mlflow-search"
    )
    browser.wait(lambda: browser.all("[class*=parcoords] canvas, .parcoords"), "mlflow-search-lines")
    browser.open(server.uri + views.runs_page(sweep.id, views.SEARCH, charts=False))
    browser.wait(lambda: browser.text().count("points · sgd") >= 3, "mlflow-search-table")
    assert browser.text().count("points · sgd") == 3  # neither the final run nor the one that gathers all


def test_the_table_of_a_sweep_is_shown_as_a_table_among_the_artifacts(
    browser: Browser, server: Server, sweep: ExperimentRuns
) -> None:
    (parent,) = MlflowClient(server.uri).search_runs([sweep.id], "tags.`raycurv.run_name` = 'search'")
    browser.open(
        f"{server.uri}/#/experiments/{sweep.id}/runs/{parent.info.run_id}/artifacts/decision.md"
        "?workflowType=machine_learning"
    )
    cells = (
        "no untuned optimizer reached the training loss",
        "found by search",
        "learning_rate=0.1 (3 trials)",
        "85.00%",
    )
    browser.wait(lambda: all(cell in browser.text() for cell in cells), "mlflow-decision")
    assert "|" not in browser.text()  # the text of the file, before it is a table


def test_the_report_says_values_and_needs_neither_network_nor_scripts(
    browser: Browser, tracked: ExperimentRuns, tmp_path: Path
) -> None:
    place = tmp_path / "report.html"
    place.write_text(report.page("Looked at", tracked.outcomes, versions={}, command="", about=tracked.about()))
    browser.open(place.as_uri())
    browser.screenshot("report")
    middle = browser.driver.execute_script(WHERE, browser.all("figure")[0])
    browser.point(*middle)
    browser.wait(lambda: browser.all(".tip:not([hidden])"), "report-value")
    assert browser.all(".tip")[0].text.splitlines() == ["sgd", "epochs 3", "training loss 0.342"]
    assert browser.errors() == []

    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(place.as_uri())
        browser.screenshot("report-without-scripts")
        assert not browser.all("input")
        browser.driver.find_element("xpath", "//summary[contains(., 'did not finish')]").click()
        assert len(browser.all("figure svg")) == len(browser.all("figure")) >= 4
        assert "step 41 was not finite" in browser.text()
        assert "sgd-0" in {link.text for link in browser.all("td a")}
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
