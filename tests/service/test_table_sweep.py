"""A paper's table made by its job, on a real Ray Tune and into a real MLflow."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from raycurv.benchmarks import paper_tables as papers
from raycurv.data.digits import write_digits
from raycurv.service.cluster import Cluster
from raycurv.service.table_sweep import show
from tests.service.driving import Driver

AXES = {"learning_rate": (0.1, 0.01), "portion": (0.005,)}
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]


def test_a_table_is_trained_and_kept_and_comes_back_from_mlflow(driver: Driver) -> None:
    digits = write_digits(driver.runs / "digits")
    what = (
        "jobs/papers.py", "--table", "salera_table2", "--recipes", "salera_mnist_m0", "--optimizers", "alera", "salera",
        "--axis", "learning_rate=[0.1,0.01]", "portion=0.005", "--seeds", "1", "--scale", "0.02", "0.1", "1",
        "--option", f"data={digits}",
    )  # fmt: skip
    finished = driver.run(*what, "--run-name", "table")
    assert finished.code == 0, finished.output
    assert "|  | ALeRA | SALeRA |\n" in finished.output
    (row,) = [line for line in finished.output.splitlines() if line.startswith("| MNIST M0, 20 ep. |")]
    assert "(1 run) [7.53 (.10)]" in row

    folder = driver.runs / "sweeps" / "table"
    client = MlflowClient(f"sqlite:///{driver.runs}/mlflow.db")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`raycurv.run_name` = 'table'")
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"salera_table2.md", "salera_table2.csv", "salera_table2.tex", "report.html", "figures"}
    (recipe,) = client.list_artifacts(parent.info.run_id, "figures")
    curves = {file.path.rsplit("/", 1)[1] for file in client.list_artifacts(parent.info.run_id, recipe.path)}
    assert {"test-accuracy-by-epoch.svg", "train-epoch_loss-by-seconds.svg"} <= curves
    assert "<svg" in (folder / "report.html").read_text()

    cluster = Cluster(runs=str(driver.runs), experiment="test", tracking_uri=None)
    table = papers.get("salera_table2").restrict(("salera_mnist_m0",), ("alera", "salera"), AXES, 1)
    assert row in show(table, cluster, {"data": str(digits), "scale": (0.02, 0.1, 1)})
