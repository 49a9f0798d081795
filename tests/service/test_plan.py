from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raycurv.service import Cluster
from raycurv.service.plan import begin_stores, plan
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
    store = CheckpointStore(str(tmp_path / "checkpoints" / "trial"))
    store.begin(dataclasses.replace(wanted, name="trial"))
    again = dataclasses.replace(cluster, run_name="trial", resume=True)
    with pytest.raises(ValueError, match=r"there is no file and no checkpoint at .*removed\.pt"):
        plan([wanted], again)
    store.save({"step": 1})
    assert plan([wanted], again).name == "trial"


def test_resuming_what_is_not_there_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ResumeError, match=r"nothing to resume .*or give --resume auto"):
        plan([mine()], dataclasses.replace(cluster, run_name="trial", resume=True))


def test_one_command_starts_and_resumes(cluster: Cluster, tmp_path: Path) -> None:
    auto = dataclasses.replace(cluster, run_name="trial", resume="auto")
    store, lines = CheckpointStore(str(tmp_path / "checkpoints" / "trial")), list[str]()
    for _ in range(2):  # the second time as after a death before the first checkpoint
        begin_stores(plan([mine()], auto), auto, lines.append)
        assert store.exists()
    assert lines == 2 * ["trial has no checkpoint yet: it begins at step 0"]

    store.save({"step": 1})
    begin_stores(plan([mine()], auto), auto, lines.append)
    assert len(lines) == 2
    with pytest.raises(ResumeError, match="seed: 0 → 1"):
        plan([dataclasses.replace(mine(), seed=1)], auto)


def test_a_run_that_died_before_its_first_checkpoint_can_be_resumed(cluster: Cluster) -> None:
    named = dataclasses.replace(cluster, run_name="trial")
    begin_stores(plan([mine()], named), named, print)
    with pytest.raises(ResumeError, match="go on with it by --resume"):
        plan([mine()], named)
    lines: list[str] = []
    again = dataclasses.replace(named, resume=True)
    begin_stores(plan([mine()], again), again, lines.append)
    assert lines == ["trial has no checkpoint yet: it begins at step 0"]


def test_resume_takes_no_other_words(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match=r"Cluster.resume is 'maybe'; it must be True, False or 'auto'"):
        dataclasses.replace(cluster, run_name="trial", resume="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which run should go on"):
        dataclasses.replace(cluster, resume="auto")


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


def test_statistics_of_the_workers_own_shares_need_a_fixed_number_of_workers(cluster: Cluster) -> None:
    local = dataclasses.replace(mine(), batch_norm="local")
    plan([local], dataclasses.replace(cluster, workers="2-2"))
    with pytest.raises(ValueError, match=r"--workers 1-2 changes the number of workers, and --batch-norm local"):
        plan([local], dataclasses.replace(cluster, workers="1-2"))
