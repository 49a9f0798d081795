from __future__ import annotations

import math
from pathlib import Path

import pytest

from raycurv.service import Cluster


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("workers", 1.5),
        ("threads", 0),
        ("cpus_per_worker", 0.0),
        ("worker_timeout", math.inf),
        ("max_failures", -1),
        ("runs", "s3://bucket/runs"),
        ("runs", ""),
        ("experiment", ""),
        ("tracking_patience", -1.0),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Cluster.{name} is {value!r}; it must be"):
        Cluster(**{name: value})  # type: ignore[arg-type]


def test_resuming_needs_the_name_of_the_run() -> None:
    with pytest.raises(ValueError, match="--run-name NAME --resume"):
        Cluster(resume=True)


def test_the_default_folder_comes_from_the_environment_and_is_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYCURV_RUNS", "here")
    cluster = Cluster()

    assert cluster.runs == str(tmp_path / "here")
    assert cluster.checkpoints == str(tmp_path / "here" / "checkpoints")


def test_checkpoints_may_lie_in_an_object_store(tmp_path: Path) -> None:
    assert Cluster(runs=str(tmp_path), storage="s3://bucket/a").checkpoints == "s3://bucket/a"


def test_a_gpu_is_reserved_only_when_asked_for() -> None:
    assert Cluster(cpus_per_worker=2).resources == {"CPU": 2}
    assert Cluster(use_gpu=True).resources == {"CPU": 1.0, "GPU": 1.0}
