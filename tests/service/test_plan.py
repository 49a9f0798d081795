from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raycurv.service import Cluster
from raycurv.service.plan import plan
from raycurv.train import CheckpointStore, ResumeError
from tests.service.problems import mine


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(runs=str(tmp_path))


def test_a_launch_without_a_name_gets_a_new_one_every_time(cluster: Cluster) -> None:
    first, second = plan([mine()], cluster), plan([mine()], cluster)

    assert first.name != second.name
    assert first.name.startswith("points-curveball-")
    assert first.runs[0].config.name == first.name


def test_the_runs_of_one_launch_are_told_apart(cluster: Cluster) -> None:
    runs = [mine(), dataclasses.replace(mine(), optimizer="sgd"), dataclasses.replace(mine(), optimizer="sgd", seed=1)]
    planned = plan(runs, dataclasses.replace(cluster, run_name="trial"))

    assert [run.config.name for run in planned.runs] == ["trial-curveball-0", "trial-sgd-0", "trial-sgd-1"]
    assert [run.recipe for run in planned.runs] == ["points"] * 3


def test_equal_runs_are_numbered(cluster: Cluster) -> None:
    planned = plan([mine(), mine()], dataclasses.replace(cluster, run_name="trial"))

    assert len({run.config.name for run in planned.runs}) == 2


def test_a_run_that_exists_is_not_touched_unless_it_is_to_go_on(cluster: Cluster, tmp_path: Path) -> None:
    named = dataclasses.replace(cluster, run_name="trial")
    CheckpointStore(str(tmp_path / "checkpoints" / "trial")).begin(dataclasses.replace(mine(), name="trial"))

    with pytest.raises(ResumeError, match="--resume"):
        plan([mine()], named)
    assert plan([mine()], dataclasses.replace(named, resume=True)).name == "trial"


def test_weights_that_do_not_fit_are_refused_before_anything_starts(cluster: Cluster, tmp_path: Path) -> None:
    wanted = dataclasses.replace(mine(), start_from=str(tmp_path / "weights.pt"))
    with pytest.raises(ValueError, match=r"there is no file and no checkpoint at .*weights\.pt"):
        plan([wanted], cluster)
    with pytest.raises(ValueError, match=r"'features\.\*' matches no parameter"):
        plan([dataclasses.replace(mine(), freeze=("features.*",))], cluster)


def test_a_run_that_goes_on_needs_its_start_no_more(cluster: Cluster, tmp_path: Path) -> None:
    wanted = dataclasses.replace(mine(), start_from=str(tmp_path / "removed.pt"))
    CheckpointStore(str(tmp_path / "checkpoints" / "trial")).begin(dataclasses.replace(wanted, name="trial"))
    assert plan([wanted], dataclasses.replace(cluster, run_name="trial", resume=True)).name == "trial"


def test_resuming_what_is_not_there_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ResumeError, match="nothing to resume"):
        plan([mine()], dataclasses.replace(cluster, run_name="trial", resume=True))


def test_resuming_with_another_configuration_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    CheckpointStore(str(tmp_path / "checkpoints" / "trial")).begin(dataclasses.replace(mine(), name="trial", seed=5))

    with pytest.raises(ResumeError, match="seed: 5 → 0"):
        plan([mine()], dataclasses.replace(cluster, run_name="trial", resume=True))


def test_a_configuration_that_cannot_work_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="clip_gradient has no meaning"):
        plan([dataclasses.replace(mine(), optimizer="levenberg_marquardt", clip_gradient=1.0)], cluster)


def test_a_launch_of_nothing_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="no runs"):
        plan([], cluster)
