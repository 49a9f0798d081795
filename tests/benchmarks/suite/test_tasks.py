from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from raycurv import optim, recipes
from raycurv.benchmarks.suite import methods, tasks
from raycurv.benchmarks.suite.plan import SuitePlan, trials
from raycurv.data.digits import write_digits
from raycurv.objective.collectives import Local
from raycurv.train import check
from raycurv.train.training_run import TrainingRun

DATA = Path(os.environ.get("RAYCURV_DATA", "/nowhere"))
EVERY = pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of all data sets."""
    if not DATA.exists():
        pytest.skip("RAYCURV_DATA is not set")
    for found in DATA.iterdir():
        (tmp_path / found.name).symlink_to(found)
    if not (tmp_path / "digits").exists():
        write_digits(tmp_path / "digits")
    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path))
    return tmp_path


@EVERY
def test_a_run_of_a_task_has_its_number_of_steps_and_metrics(task: tasks.SuiteTask, data: Path) -> None:
    config = task.config()
    check(config)
    run = TrainingRun(config, Local(), torch.device("cpu"))
    assert run.total_steps == task.steps
    assert task.steps // task.every >= 5
    assert task.rises == (config.loss == "cross_entropy")


def test_every_method_can_be_built_on_every_task(data: Path) -> None:
    plan = SuitePlan(tasks.select(["boston-mlp"]), methods.METHODS, seeds=1)
    for trial in trials(plan.tasks[0], plan.first(plan.tasks[0])):
        check(trial.config)


def test_names_are_unique() -> None:
    for table in (tasks.TASKS, methods.METHODS):
        assert len({entry.name for entry in table}) == len(table)
    assert {method.optimizer for method in methods.METHODS} <= set(optim.names())
    assert {task.recipe for task in tasks.TASKS} <= set(recipes.names())


def test_the_expected_operations_of_a_task_need_no_data() -> None:
    (task,) = tasks.select(["mnist-algoperf"])
    assert task.operations == pytest.approx(3 * 203e3 * 64 * 7813, rel=0.01)


def test_costly_tasks_are_left_out_unless_they_are_asked_for() -> None:
    assert not any(task.costly for task in tasks.select([]))
    assert tasks.select([], costly=True) == tasks.TASKS
    assert [task.name for task in tasks.select(["cifar10-airbench", "digits"])] == ["digits", "cifar10-airbench"]


def test_methods_are_chosen_by_name_or_group() -> None:
    assert methods.select([]) == methods.METHODS
    assert methods.select(["own"]) == methods.OWN
    assert [m.name for m in methods.select(["auto", "adam"])] == ["adam", "auto"]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="task 'digit' is unknown; did you mean 'digits'"):
        tasks.select(["digit"])
    with pytest.raises(ValueError, match="method 'prodigi' is unknown; did you mean 'prodigy'"):
        methods.select(["prodigi"])


def test_bad_plans_and_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SuitePlan\.seeds is 0"):
        SuitePlan(tasks.TASKS, methods.METHODS, seeds=0)
    with pytest.raises(ValueError, match="at least one task"):
        SuitePlan((), methods.METHODS)
    with pytest.raises(ValueError, match=r"SuiteTask.every is 9; it must be at most the 5 steps"):
        tasks.SuiteTask("a", "A", "digits", 5, 9, "test/loss", 1.0)
