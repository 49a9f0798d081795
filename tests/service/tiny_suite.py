"""A suite of two tiny tasks, as a script that tests can kill."""

from __future__ import annotations

import argparse

from raycurv.benchmarks.suite.methods import SuiteMethod
from raycurv.benchmarks.suite.plan import SuitePlan
from raycurv.benchmarks.suite.tasks import SuiteTask
from raycurv.service import suite
from raycurv.service.cluster import Cluster
from raycurv.service.errors import reported
from raycurv.service.limits import Limits

RECIPE = "tests.service.problems:mine"
TASKS = (
    SuiteTask("first", "First", RECIPE, 10, 2, "test/accuracy", 0.6),
    SuiteTask("second", "Second", RECIPE, 8, 4, "test/loss", 1e-9, options={"pause": 0.02}, start=RECIPE),
)
METHODS = (
    SuiteMethod("sgd, tuned", "sgd", kind="tuned", grid=({"learning_rate": 0.1}, {"learning_rate": 3e38})),
    SuiteMethod("adam", "adam"),
)
PLAN = SuitePlan(TASKS, METHODS, seeds=2)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--run-name")
    parser.add_argument("--runs")
    given = parser.parse_args()
    cluster = Cluster(runs=given.runs, run_name=given.run_name, resume=given.resume, system_metrics_every=0)
    with reported(given.runs):
        suite.run(PLAN, cluster, Limits())


if __name__ == "__main__":
    main()
