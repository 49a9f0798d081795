"""The report as people look at it: in Chromium at three widths, light and dark, printed, and without a script."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycurv.figures import report
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.results.palette import colour_of
from tests.tracking.browsing import Browser, missing, screenshots

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

WIDTHS = (420, 900, 1400)
WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT_OFF = """
return [...document.querySelectorAll('.scroll')]
  .filter(frame => frame.checkVisibility() && frame.scrollWidth > frame.clientWidth + 1)
  .map(frame => frame.innerText.slice(0, 60));
"""
OUTSIDE = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('h1, h2, p, figure, svg, summary, li, table')]
  .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 90));
"""
PLACE = """
const [figure] = arguments; figure.scrollIntoView({block: 'center'});
const svg = figure.querySelector('svg'), path = svg.querySelector('[id$="series-1-line"] path');
const [x, y] = path.getAttribute('d').match(/-?[\\d.]+/g).slice(4, 6).map(Number);
const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
return [Math.round(point.x), Math.round(point.y)];
"""
COLOURS = (
    "return [...document.querySelectorAll('tr')].map(r => [r.innerText, r.querySelector('.swatch')?.style.background])"
)


def run(recipe: str, optimizer: str, end: float, *, seed: int = 0, setting: str = "", **more: Any) -> Outcome:
    points = []
    for epoch in range(1, 31):
        loss = end + math.exp(-epoch / 6) * (2 + 0.1 * math.sin(seed + epoch))
        found = {"train/epoch_loss": loss, "test/loss": loss + 0.1, "test/accuracy": 1 / (1 + loss)}
        points.append(EvaluationPoint(epoch, 40 * epoch, 0.4 * epoch, found))
    status = more.get("status", "finished")
    return Outcome(
        f"{recipe}-{optimizer}-{setting}-{seed}-{more.get('stage', 'final')}", recipe, optimizer, setting, seed,
        points=tuple(points), steps=1200, seconds=12.0, operations=1e12, step_seconds=0.01, startup_seconds=1.0,
        reason="" if status == "finished" else "the training loss at step 41 was not finite", **more,
    )  # fmt: skip


def runs() -> list[Outcome]:
    """62 runs: a search with a tuned baseline, many settings, failures, and recipes that differ in one setting."""
    found = []
    for recipe in ("cifar10-basic-cnn-with-a-long-name", "mnist-lenet"):
        for rate in (0.001, 0.01, 0.1):
            found.append(run(recipe, "adam", rate, setting=f"learning_rate={rate} schedule=cosine", stage="search"))
        for seed in range(3):
            found += [
                run(recipe, "adam", 0.05, seed=seed, setting="learning_rate=0.01 schedule=cosine"),
                run(recipe, "auto", 0.02 + 0.001 * seed, seed=seed),
                run(recipe, "curveball", 0.04 + 0.002 * seed, seed=seed),
                run(recipe, "schedule_free_adamw_algoperf", 0.1, seed=seed),
                run(recipe, "red_rmsprop", 0.2, seed=seed, status="diverged" if seed == 2 else "finished"),
            ]
    for size in ("64", "256"):
        conditions = {"batch_size": size, "model.target": "raycurv.models.mlp:mlp"}
        for number, rate in enumerate((0.3, 0.1, 0.03, 0.01, 0.003, 0.001)):
            setting = f"learning_rate={rate}"
            found.append(run(f"digits-{size}", "sgd", 0.1 * number, setting=setting, conditions=conditions))
        found += [run(f"digits-{size}", "salera", 0.3, seed=seed, conditions=conditions) for seed in range(5)]
        lost = {"status": "failed", "conditions": conditions}
        found += [run(f"digits-{size}", "momentum", 0.3, seed=seed, **lost) for seed in range(2)]
    assert len(found) == 62
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcomes = runs()
    place = tmp_path_factory.mktemp("report") / "report.html"
    context = report.ReportContext(
        notes=["Left out: 2 runs that other programs wrote."],
        links={o.name: f"http://127.0.0.1:9/#/{number}" for number, o in enumerate(outcomes)},
        places={"the runs in MLflow": "http://127.0.0.1:9/#/experiments/1"},
        versions={"torch": "2.14"},
        commands={"raycurv sweep grid mnist-lenet": 62},
    )
    place.write_text(report.page("Experiment raycurv", outcomes, versions={}, command="raycurv compare", about=context))
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(screenshots(tmp_path_factory.mktemp("screenshots")), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def show(browser: Browser, page: Path, width: int, scheme: str = "light") -> None:
    """Open the page in a window of a width, in a light or dark colour scheme."""
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.open(page.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_every_width_with_all_columns(browser: Browser, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width, scheme)
    browser.screenshot(f"report-{width}-{scheme}")
    assert browser.driver.execute_script(WIDER) == 0
    assert browser.driver.execute_script(CUT_OFF) == []
    assert browser.driver.execute_script(OUTSIDE) == []
    for details in browser.all("details"):
        browser.driver.execute_script("arguments[0].open = true", details)
    assert browser.driver.execute_script(WIDER) == 0
    assert width < 1400 or browser.driver.execute_script(CUT_OFF) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out_from_the_paper(browser: Browser, page: Path, scheme: str) -> None:
    show(browser, page, 900, scheme)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/\\d+/g).map(Number)"

    def light(selector: str, name: str) -> float:
        parts = [v / 255 for v in browser.driver.execute_script(style, selector, name)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = light("body", "backgroundColor")
    assert (paper > 0.9) == (scheme == "light")
    texts = [
        ("h1", "color"),
        (".counts", "color"),
        ("figcaption", "color"),
        ("td", "color"),
        ("figure svg text", "fill"),
    ]
    for selector, name in texts:
        one, other = sorted((paper, light(selector, name)))
        assert (other + 0.05) / (one + 0.05) > 4.5, selector  # WCAG 2.2, level AA


def test_the_page_begins_with_the_answers_and_folds_what_has_none(browser: Browser, page: Path) -> None:
    show(browser, page, 1400)
    answers = [answer.text for answer in browser.all(".answer")]
    assert answers[0].startswith("Untuned auto reaches the training loss of tuned adam")
    first = browser.all("section")[0]
    order = "return [...arguments[0].querySelectorAll('.answer, figure, table')].map(e => e.tagName)"
    assert browser.driver.execute_script(order, first)[:3] == ["P", "FIGURE", "TABLE"]
    assert "no tuned baseline" not in browser.text()
    assert browser.all("section")[-1].find_element("tag name", "h2").text == "Behind the numbers"
    captions = [caption.text for caption in browser.all(".finding figcaption b")]
    assert captions[0] == ("auto ends with the lowest training loss, 0.0343, before curveball with 0.0553.")


def test_best_values_are_bold_numbers_right_aligned_and_failures_marked(browser: Browser, page: Path) -> None:
    show(browser, page, 1400)
    (table, *_) = browser.all("section table")
    assert table.find_element("css selector", "td b").text == "0.03429"
    numbers = table.find_elements("css selector", "td.number")
    assert numbers
    assert all(cell.value_of_css_property("text-align") == "right" for cell in numbers)
    assert "✕ 1 diverged" in table.text
    assert table.find_elements("css selector", "svg.strip circle")
    assert "best of 3 searched" in table.text


def test_recipes_that_differ_in_one_setting_share_a_table_with_it_as_a_column(browser: Browser, page: Path) -> None:
    show(browser, page, 1400)
    (section,) = [s for s in browser.all("section") if "digits-64, digits-256" in s.text]
    head, *rows = [
        [c.text for c in row.find_elements("css selector", "th, td")]
        for row in section.find_elements("css selector", ".scroll tr")[:12]
    ]
    assert head[:2] == ["method", "batch_size"]
    assert rows[0][1] == "64"


def test_an_optimizer_has_one_colour_on_the_whole_page(browser: Browser, page: Path) -> None:
    show(browser, page, 1400)
    text = page.read_text()
    for name in ("auto", "curveball", "salera"):
        colour = colour_of(name)
        swatches = {shade for row, shade in browser.driver.execute_script(COLOURS) if row.startswith(name) and shade}
        assert swatches == {f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"}
        assert f"stroke: {colour.lower()}" in text


def test_tables_sort_and_filter(browser: Browser, page: Path) -> None:
    show(browser, page, 1400)
    runs_list = next(d for d in browser.all("details") if d.text == "62 runs")
    runs_list.find_element("tag name", "summary").click()
    heads = runs_list.find_elements("tag name", "th")
    column = [head.text for head in heads].index("training loss")

    def values() -> list[float]:
        cells = runs_list.find_elements("css selector", f"td:nth-child({column + 1})")
        return [float(cell.text) for cell in cells if cell.is_displayed()]

    heads[column].click()
    ascending = values()
    heads[column].click()
    assert ascending == sorted(ascending)
    assert values() == sorted(values(), reverse=True) != ascending
    runs_list.find_element("css selector", "input.filter").send_keys("curveball mnist")
    shown = [row.text for row in runs_list.find_elements("css selector", "tbody tr") if row.is_displayed()]
    assert len(shown) == 3
    assert all("mnist-lenet-curveball" in row for row in shown)
    assert "127.0.0.1:9/#/" in str(runs_list.find_element("css selector", "td a").get_attribute("href"))


def test_values_show_under_the_pointer(browser: Browser, page: Path) -> None:
    show(browser, page, 1400)
    figure = browser.all(".finding figure")[0]
    browser.point(*browser.driver.execute_script(PLACE, figure))
    browser.wait(lambda: browser.all(".tip:not([hidden])"), "report-value")
    name, epoch, loss = browser.all(".tip")[0].text.splitlines()
    names = figure.get_attribute("data-series")
    assert name in str(names)
    assert epoch == "epochs 3"
    assert loss.startswith("training loss 1.")
    assert browser.errors() == []


def test_the_page_is_small_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    assert page.stat().st_size < 2_000_000
    browser.driver.execute_cdp_cmd("Network.enable", {})
    show(browser, page, 1400)
    asked = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert browser.driver.execute_script(asked) == []
    assert browser.errors() == []


def test_without_a_script_nothing_is_missing(browser: Browser, page: Path) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, page, 900)
        browser.screenshot("report-without-scripts")
        assert not browser.all("input.filter")
        assert len(browser.all("figure svg")) == len(browser.all("figure")) >= 10
        (summary,) = [s for s in browser.all("summary") if "did not finish" in s.text]
        summary.click()
        assert "the training loss at step 41 was not finite" in browser.text()
        hidden = next(row for row in browser.all("tr.more") if not row.is_displayed())
        label = hidden.find_element("xpath", "ancestor::div[@class='fold']").find_element("tag name", "label")
        if label.is_displayed():
            label.click()
            assert hidden.is_displayed()
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_page_prints(browser: Browser, page: Path, tmp_path: Path) -> None:
    show(browser, page, 1400)
    options = {"preferCSSPageSize": True, "printBackground": True}
    data = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", options)["data"])
    assert data.startswith(b"%PDF")
    assert 2 <= data.count(b"/Type /Page\n") <= 12
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert (
        browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
