"""The first lines of a launch and of a sweep."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from raycurv.service.cluster import Cluster
from raycurv.service.launch_description import describe_launch, describe_sweep
from raycurv.service.plan import LaunchPlan, PlannedRun
from raycurv.train import Component, RunConfig

MODEL = Component("raycurv.models:mlp", {"widths": (784, 100, 10)})
DATA = Component("raycurv.data:parquet_images", {"path": "/data/mnist"})
CONFIG = RunConfig(name="mnist", model=MODEL, data=DATA, epochs=3, batch_size=128)


def planned(*configs: RunConfig) -> LaunchPlan:
    return LaunchPlan("mine", tuple(PlannedRun(config, "mnist", config.optimizer, "") for config in configs))


def test_a_launch_begins_with_what_it_trains_and_where_that_is_kept() -> None:
    lines = describe_launch(planned(CONFIG), Cluster(workers=2, storage="s3://bucket/runs")).splitlines()
    assert lines == [
        "training mine",
        "  recipe       mnist",
        "  network      mlp widths=[784, 100, 10]",
        "  data         /data/mnist",
        f"  optimizer    {CONFIG.optimizer}",
        "  length       3 epochs in batches of 128",
        "  workers      2 on the CPU",
        "  checkpoints  s3://bucket/runs",
    ]


def test_several_runs_show_what_differs_and_many_are_counted() -> None:
    runs = [
        dataclasses.replace(CONFIG, optimizer="sgd", optimizer_settings={"learning_rate": 10.0**-k}) for k in (1, 2)
    ]
    cluster = Cluster(use_gpu=True, workers="2-8", resume=True, run_name="mine")
    text = describe_launch(planned(*runs, dataclasses.replace(CONFIG, max_steps=50)), cluster)
    assert text.startswith("resuming mine, 3 runs\n")
    assert f"sgd learning_rate=0.1, sgd learning_rate=0.01, {CONFIG.optimizer}\n" in text
    assert "3 epochs in batches of 128, 3 epochs in batches of 128, at most 50 steps\n" in text
    assert "  workers      2-8 on the GPU\n" in text
    many = [dataclasses.replace(CONFIG, batch_size=size) for size in range(1, 7)]
    assert "3 epochs in batches of 1 and 5 others\n" in describe_launch(planned(*many), cluster)


def test_a_sweep_names_its_trials_and_the_folder_of_its_outcomes(tmp_path: Path) -> None:
    text = describe_sweep("grid", [CONFIG, CONFIG], Cluster(), tmp_path / "grid")
    assert text.startswith("starting sweep grid, 2 trials to begin with\n  recipes     mnist\n")
    assert text.endswith(f"  outcomes    {tmp_path}/grid")
