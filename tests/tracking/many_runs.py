"""A store of many long runs, to measure how comparisons are read.

It is filled by SQL directly: what is measured is reading, and through MLflow's client a million values take an hour.

    python -m tests.tracking.many_runs FOLDER [RUNS] [POINTS] [EXPERIMENT]
"""

from __future__ import annotations

import itertools
import math
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from raycurv.service import Cluster
from raycurv.tracking.client import Tracking

EVERY = 50  # steps between two points
RECIPES = ("lenet", "vgg", "resnet", "autoencoder", "transformer")
OPTIMIZERS = ("sgd", "adam", "curveball", "red", "auto")
SEARCHED = {"sgd": (0.01, 0.1, 1.0), "adam": (1e-4, 1e-3, 1e-2)}
METRICS = (
    "train/loss", "train/epoch_loss", "test/loss", "test/accuracy", "optimizer/learning_rate", "optimizer/momentum",
    "optimizer/damping", "throughput/images_per_second",
)  # fmt: skip


def fill(data_base: Path, experiment: int, runs: int, points: int) -> None:
    """Insert `runs` runs with `points` values of every metric."""
    connection = sqlite3.connect(data_base)
    chosen = list(itertools.islice(_trials(runs), runs))
    for index, (recipe, optimizer, setting, seed, stage) in enumerate(chosen):
        run, start = f"{experiment:08x}{index:024x}", 1_700_000_000_000 + 1000 * index
        name = f"{recipe}-{optimizer}-{setting}-{seed}-{stage}"
        connection.execute(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, user_id, "
            "source_type, artifact_uri) VALUES (?, ?, 'FINISHED', ?, ?, 'active', ?, 'somebody', 'LOCAL', '')",
            (run, f"{recipe} · {optimizer} · seed {seed}", start, start + 1000 * points, experiment),
        )
        tags = {"run_name": name, "recipe": recipe, "optimizer": optimizer, "setting": setting, "seed": seed}
        tags |= {"stage": stage, "commit": "0" * 40, "version.torch": "2.14", "mlflow.runName": name}
        prefixed = ((k if k.startswith("mlflow.") else f"raycurv.{k}", str(v), run) for k, v in tags.items())
        connection.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", prefixed)
        params = {f"setting_{i}": str(i) for i in range(40)}
        params |= {"batch_size": str(64 * (1 + seed % 2)), "seed": str(seed)}
        own = ((key, value, run) for key, value in params.items())
        connection.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", own)
        rows = [
            (name, _value(name, index, point), start + 1000 * point, run, EVERY * point)
            for point in range(1, points + 1)
            for name in METRICS
        ]
        results = ("result/seconds", "result/operations")
        rows += [(result, 100.0 * points, start + 1000 * points, run, EVERY * points) for result in results]
        marks = "(key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
        connection.executemany(f"INSERT INTO metrics {marks}", rows)
        connection.executemany(f"INSERT INTO latest_metrics {marks}", rows[-len(METRICS) - 2 :])
    connection.commit()
    connection.close()


def _trials(runs: int) -> Iterator[tuple[str, str, str, int, str]]:
    cells = [(o, f"learning_rate={rate}") for o, rates in SEARCHED.items() for rate in rates]
    search = [(r, o, setting, 0, "search") for r in RECIPES for o, setting in cells]
    yield from search[: runs // 3]
    for seed in itertools.count():
        for recipe, optimizer in itertools.product(RECIPES, OPTIMIZERS):
            setting = f"learning_rate={SEARCHED[optimizer][1]}" if optimizer in SEARCHED else ""
            yield recipe, optimizer, setting, seed, "final"


def _value(name: str, run: int, point: int) -> float:
    falling = (1 + run % 7 / 10) / (1 + 0.05 * point) + 0.01 * math.sin(point + run)
    return 1 - falling / 2 if name == "test/accuracy" else falling + 0.02


def main(folder: str, runs: str = "500", points: str = "400", experiment: str = "many") -> None:
    """Make the data base FOLDER/mlflow.db with one experiment."""
    tracking = Tracking(Cluster(runs=folder, tracking_uri=None, experiment=experiment), print)
    tracking.finish()
    fill(Path(folder) / "mlflow.db", int(tracking.experiment), int(runs), int(points))


if __name__ == "__main__":
    main(*sys.argv[1:])
