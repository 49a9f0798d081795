"""Saved views of an experiment in MLflow: columns, filter, order and charts, opened by one link.

MLflow 3 keeps a view that a user saves as a tag of the experiment, and lists it under "Views". Its page chooses between
the layouts for training and for generative AI by ``workflowType`` in the address alone, so that every link here has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

VIEW_TAG = "mlflow.sharedViewState."
NOTE_TAG, KIND_TAG = "mlflow.note.content", "mlflow.experimentKind"
KIND = "custom_model_development"  # the layout for training, in versions of MLflow that read it from the tag
CHARTS, SEARCH = "raycurv-charts", "raycurv-search"
_MEMBERS = "tags.`raycurv.optimizer` != ''"
_BY_NAME = {"orderByKey": "tags.`mlflow.runName`", "orderByAsc": True}
_SAVED_AT = 1767225600000  # milliseconds since 1970; the same in every process, as the views are

NOTE = """\
[**Open the charts of these runs**]({charts}): networks trained with optimizers of raycurv and others, for comparison.

- One row is one run, and one colour is one optimizer. The first four charts show training loss, test accuracy,
  learning rate and throughput over epochs. *Views → Charts* at the top right opens them again.
- A launch of several runs and a sweep have a run that gathers them. It has the best result as metrics, and the table,
  `report.html` and figures under *Artifacts*.
- Filter by tag: `tags.raycurv.optimizer = 'curveball'`, `raycurv.recipe`, `raycurv.seed`, `raycurv.stage`,
  `raycurv.status`.
- *Views → Search of settings* shows learning rate and loss of the runs that a sweep tried.
- If the page shows traces and judges, it is in the layout for generative AI: choose *Model training* at the top left.
"""


def experiment_tags(experiment: str, existing: Mapping[str, str]) -> dict[str, str]:
    """Tags that an experiment lacks: kind, note, and the saved views. What a user has changed stays.

    Args:
        experiment: id of the experiment.
        existing: tags that it has.
    """
    charts = runs_page(experiment).removeprefix("/")
    tags = {KIND_TAG: KIND, NOTE_TAG: NOTE.format(charts=charts)}
    tags |= {VIEW_TAG + key: _saved(name, view) for key, (name, view) in _views().items()}
    return {name: value for name, value in tags.items() if name not in existing}


def runs_page(experiment: str, view: str = CHARTS, *, charts: bool = True) -> str:
    """Page of an experiment's runs with a saved view, to be put behind the address of a server.

    Args:
        experiment: id of the experiment.
        view: key of the view, :data:`CHARTS` or :data:`SEARCH`.
        charts: show charts beside the names of the runs; otherwise a table.
    """
    mode = "CHART" if charts else "TABLE"
    query = {"workflowType": "machine_learning", "viewStateShareKey": view, "compareRunsMode": mode}
    return f"/#/experiments/{experiment}/runs?{urlencode(query, quote_via=quote)}"


def run_page(experiment: str, run: str) -> str:
    """Page of one run, to be put behind the address of a server."""
    return f"/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def _saved(name: str, view: Mapping[str, Any]) -> str:
    """A view as MLflow stores it."""
    return json.dumps({"name": name, "createdAt": _SAVED_AT, "updatedAt": _SAVED_AT, "state": json.dumps(view)})


def _views() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and state of every view, by key."""
    results = ("train/epoch_loss", "test/accuracy", "result/step_seconds")
    overview = [
        _line("overview", "train/loss", "training loss", scaleType="log"),
        _line("overview", "test/accuracy", "test accuracy"),
        _line("overview", "optimizer/learning_rate", "learning rate", scaleType="log"),
        _line("overview", "throughput/images_per_second", "images per second"),
    ]
    time = [
        _line("time", "train/loss", "training loss over time", scaleType="log", **_TIME),
        _line("time", "test/accuracy", "test accuracy over time", **_TIME),
    ]
    search = [_parallel("search", "optimizer_settings.learning_rate", "train/epoch_loss", "test/accuracy")]
    search += [_bar("search", "train/epoch_loss", "training loss"), _bar("search", "test/accuracy", "test accuracy")]
    columns = _columns(tags=("optimizer", "recipe", "seed", "status"), metrics=results)
    tried = _columns(tags=("optimizer", "stage"), metrics=results, params=("optimizer_settings.learning_rate",))
    sections = {"overview": "Overview, over epochs", "time": "Over time"}
    return {
        CHARTS: ("Charts", _state(_MEMBERS, columns, sections, [*overview, *time])),
        SEARCH: (
            "Search of settings",
            _state("tags.`raycurv.stage` = 'search'", tried, {"search": "Search of settings"}, search),
        ),
    }


def _state(
    filter: str, columns: list[str], sections: Mapping[str, str], charts: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "searchFilter": filter,
        **_BY_NAME,
        "selectedColumns": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": key,
                "name": name,
                "columns": 2,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for key, name in sections.items()
        ],
        "isAccordionReordered": True,  # keep these sections first; those of further metrics follow
        "hideEmptyCharts": True,
    }


def _columns(tags: tuple[str, ...] = (), metrics: tuple[str, ...] = (), params: tuple[str, ...] = ()) -> list[str]:
    return [
        *(f"tags.`raycurv.{name}`" for name in tags),
        *(f"params.`{name}`" for name in params),
        *(f"metrics.`{name}`" for name in metrics),
    ]


_EPOCHS = {"xAxisKey": "metric", "selectedXAxisMetricKey": "epoch", "useGlobalXaxisKey": False}
_TIME = {"xAxisKey": "time-relative", "selectedXAxisMetricKey": "", "useGlobalXaxisKey": False}


def _chart(kind: str, section: str, metric: str, title: str) -> dict[str, Any]:
    return {
        "uuid": f"{section}-{metric}",
        "type": kind,
        "metricSectionId": section,
        "displayName": title,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }


def _line(section: str, metric: str, title: str, **settings: Any) -> dict[str, Any]:
    look = {"lineSmoothness": 0, "scaleType": "linear", "xAxisScaleType": "linear", "useGlobalLineSmoothing": False}
    metrics = {"metricKey": metric, "selectedMetricKeys": [metric], "yAxisKey": "metric", "yAxisExpressions": []}
    return {**_chart("LINE", section, metric, title), **metrics, **look, **_EPOCHS, "range": {}, **settings}


def _bar(section: str, metric: str, title: str) -> dict[str, Any]:
    return {**_chart("BAR", section, metric, title), "metricKey": metric}


def _parallel(section: str, param: str, *metrics: str) -> dict[str, Any]:
    chart = _chart("PARALLEL", section, param, "learning rate and results")
    return {**chart, "selectedParams": [param], "selectedMetrics": list(metrics), "showAllRuns": True}
