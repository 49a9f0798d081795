"""Training on machines that share nothing but a network: what survives, in how many seconds, with which words."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycurv.train import RunConfig
from tests.cluster import elastic
from tests.cluster.elastic import RECIPE, losses_of_one_process
from tests.cluster.machines import HEAD, ROOT, Machines, needs_machines, note
from tests.service.problems import mine

pytestmark = [pytest.mark.cluster, needs_machines, pytest.mark.filterwarnings("ignore")]
slow = pytest.mark.skipif(not os.environ.get("RAYCURV_SLOW_MACHINES"), reason="minutes each: RAYCURV_SLOW_MACHINES=1")


def assert_same_curve(machines: Machines, run: str, config: RunConfig, folder: Path) -> None:
    """MLflow has every step once, with the loss of an undisturbed process up to rounding."""
    expected = losses_of_one_process(config, folder)
    found = machines.values(run, "train/loss")
    assert [step for step, _ in found] == list(range(1, len(expected) + 1))
    assert [loss for _, loss in found] == pytest.approx(expected, rel=2e-3)


@pytest.fixture
def both(machines: Machines) -> Iterator[Machines]:
    """The machines, with n1 and n2 in the cluster before and after."""
    machines.require("n1", "n2")
    yield machines
    machines.end_jobs()


def test_two_machines_train_as_one_process_does(both: Machines, tmp_path: Path) -> None:
    words = (*RECIPE, "--option", "epochs=2", "--workers", "2", "--run-name", "two")
    job = both.submit("python", str(ROOT / "jobs" / "train.py"), *words)
    assert job.finish() == 0, job.output
    assert "training on 2 workers on the CPU" in job.output
    assert_same_curve(both, "two", mine(epochs=2), tmp_path)
    there = "import boto3, json; found = boto3.client('s3').list_objects(Bucket='bucket')['Contents']; "
    keys = both.python(HEAD, there + "print(json.dumps([one['Key'] for one in found]))")
    assert any(key.endswith("manifest.json") for key in keys)


def test_checkpoints_that_only_one_machine_sees_are_refused_before_training(both: Machines) -> None:
    job = both.train(*RECIPE, "--workers", "2", "--run-name", "unshared", "--storage", "/home/ray/checkpoints")
    assert job.finish() == 1, job.output
    assert "which is another folder on n1 (" in job.output
    assert "RAYCURV_STORAGE" in job.output
    assert "starts:" not in job.output
    assert "Traceback" not in job.output


def test_a_run_goes_on_over_one_three_and_two_machines_along_the_same_curve(both: Machines, tmp_path: Path) -> None:
    run = elastic.run(both, tmp_path)
    note(f"grown {run.grown:.1f} s after the machines, shrunk {run.shrunk:.1f} s after the death of one")
    note(f"{run.repeated:.1f} s of training done again")

    words = [f"there is room for {count} workers: the workers write a checkpoint" for count in (2, 3)]
    assert any(text in run.output for text in words), run.output  # one machine may join before the other
    assert "n3 (" in run.output
    assert "does not answer: training goes on without it" in run.output
    assert "after a failure" not in run.output
    assert run.output.count("starts:") == 1
    assert [workers for _, workers in run.changes][-2:] == [3, 2]
    assert [step for step, _ in run.losses] == list(range(1, len(run.undisturbed) + 1))
    assert [loss for _, loss in run.losses] == pytest.approx(run.undisturbed, rel=0.05)
    assert max(run.grown, run.shrunk) < 90  # seconds on a loaded machine; docs/cluster.md has those of a quiet one


def test_a_machine_that_never_comes_back_ends_the_launch_with_what_to_do(both: Machines) -> None:
    words = ("--option", "epochs=400", "pause=0.2", "--workers", "2", "--worker-timeout", "15", "--run-name", "gone")
    job = both.train(*RECIPE, *words)
    job.wait_for("epoch 1 done")
    killed = both.kill("n2")
    assert job.finish() == 1, job.output
    took = time.monotonic() - killed
    note(f"ended {took:.1f} s after the death of a machine")
    assert "waiting for workers, up to 15 s (--worker-timeout): room for 1 of 2 workers" in job.output
    assert "go on with --run-name gone --resume" in job.output
    assert "Traceback" not in job.output
    assert took < 120


@slow
@pytest.mark.parametrize("seconds", [20, 60])
def test_a_cut_cable_is_waited_for_with_a_word(both: Machines, seconds: int, tmp_path: Path) -> None:
    name = f"cut-{seconds}"
    words = ("--option", "epochs=6", "pause=0.5", "--workers", "2", "--run-name", name)
    job = both.train(*RECIPE, *words)
    job.wait_for("epoch 2 done")
    began = time.monotonic()
    cable = both.partition("n2", seconds)
    job.wait_for("does not answer; waiting for it", since=began)
    cable.join()
    if seconds > 30:  # Ray has given the node up, and its processes have ended: it joins as a new one
        time.sleep(10)
        both.ray_up("n2")
    back = time.monotonic()
    again = job.wait_for("epoch 4 done", since=began) - back
    note(f"trained {again:.1f} s after the end of a cut of {seconds} s")
    assert job.finish() == 0, job.output
    assert "ActorUnavailableError" not in job.output
    assert_same_curve(both, name, mine(epochs=6), tmp_path)


@slow
def test_a_machine_is_replaced(both: Machines, tmp_path: Path) -> None:
    words = ("--option", "epochs=6", "pause=0.5", "--workers", "2", "--run-name", "replaced")
    job = both.train(*RECIPE, *words)
    job.wait_for("epoch 2 done")
    killed = both.kill("n2", silent=True)
    job.wait_for("n2 (", since=killed)
    job.wait_for("waiting for workers", since=killed)
    both.boot("n3")
    joined = time.monotonic()
    again = job.wait_for("training on 2 workers", since=joined) - joined
    note(f"trained {again:.1f} s after the new machine")
    assert job.finish() == 0, job.output
    both.kill("n3")
    assert_same_curve(both, "replaced", mine(epochs=6), tmp_path)


@slow
def test_the_only_worker_machine_is_replaced(both: Machines, tmp_path: Path) -> None:
    both.kill("n2")
    words = ("--option", "epochs=6", "pause=0.5", "--workers", "1-2", "--run-name", "only")
    job = both.train(*RECIPE, *words)
    job.wait_for("epoch 2 done")
    killed = both.kill("n1", silent=True)
    job.wait_for("waiting for workers", since=killed)
    both.boot("n2")
    job.wait_for("training on 1 worker ", since=killed)
    assert job.finish() == 0, job.output
    assert_same_curve(both, "only", mine(epochs=6), tmp_path)


@slow
def test_workers_leave_a_machine_that_is_about_to_go_behind_a_checkpoint(both: Machines, tmp_path: Path) -> None:
    words = ("--option", "epochs=6", "pause=0.5", "--workers", "1-2", "--run-name", "announced")
    job = both.train(*RECIPE, *words)
    job.wait_for("training on 2 workers")
    job.wait_for("epoch 2 done")
    noticed = time.monotonic()
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
    both.run("n2", "ray", "drain-node", *reason, "--deadline-remaining-seconds", "60")
    job.wait_for("is about to go away: the workers write a checkpoint", since=noticed)
    left = job.wait_for("training on 1 worker ", since=noticed) - noticed
    note(f"left {left:.1f} s after the notice")
    assert "no checkpoint came in time" not in job.output
    both.kill("n2")
    assert job.finish() == 0, job.output
    assert_same_curve(both, "announced", mine(epochs=6), tmp_path)


@slow
def test_a_machine_that_is_shut_down_without_notice_is_gone(both: Machines, tmp_path: Path) -> None:
    words = ("--option", "epochs=6", "pause=0.5", "--workers", "1-2", "--run-name", "shut-down")
    job = both.train(*RECIPE, *words)
    job.wait_for("training on 2 workers")
    job.wait_for("epoch 2 done")
    began = time.monotonic()
    both.run("n2", "ray", "stop")  # SIGTERM to all processes of Ray there
    left = job.wait_for("training on 1 worker ", since=began) - began
    note(f"went on {left:.1f} s after SIGTERM")
    both.kill("n2")
    assert job.finish() == 0, job.output
    assert "after a failure" not in job.output
    assert_same_curve(both, "shut-down", mine(epochs=6), tmp_path)


@slow
def test_a_stopped_job_names_its_checkpoint_and_gives_back_what_it_reserved(both: Machines) -> None:
    words = (*RECIPE, "--option", "epochs=400", "pause=0.2", "--workers", "1-2", "--run-name", "stopped")
    job = both.submit("python", str(ROOT / "jobs" / "train.py"), *words, RAY_JOB_STOP_WAIT_TIME_S="60")
    job.wait_for("epoch 1 done")
    (name,) = {word.strip("'") for word in job.output.split() if word.startswith("'raysubmit_")}
    both.run(HEAD, "ray", "job", "stop", "--address", "http://127.0.0.1:8265", name)
    began = time.monotonic()
    job.finish()
    (step,) = re.findall(r"the newest checkpoint of stopped has (\d+) steps", job.output)
    assert f"stopped as asked at step {step}" in job.output
    again = both.train(*words, "--resume")
    took = again.wait_for("training on 2 workers") - began
    note(f"the next elastic job trained after {took:.1f} s")
    again.wait_for(f"goes on at step {step},")
    assert took < 90


@slow
def test_a_sweep_goes_on_without_a_machine(both: Machines) -> None:
    words = ["--recipe", "digits", "--option", "data=s3://bucket/digits", "--epochs", "20", "--baselines", "sgd"]
    words += ["--rates", "0.01", "0.03", "0.1", "0.3", "1", "--free", "curveball", "--run-name", "sweep"]
    both.run(HEAD, "raycurv", "prepare", "digits", "--output", "s3://bucket/digits")
    job = both.start(HEAD, "raycurv", "sweep", "grid", *words)
    job.wait_for("trials done")
    killed = both.kill("n2", silent=True)
    assert job.finish() == 0, job.output
    note(f"the sweep ended {time.monotonic() - killed:.1f} s after the power cut")
    assert "Traceback" not in job.output
    path = "/home/ray/raycurv-runs/sweeps/sweep/outcomes.jsonl"
    lines = f"import json; print(json.dumps([json.loads(line) for line in open({path!r})]))"
    outcomes = both.python(HEAD, lines)
    assert len(outcomes) == 7, job.output  # five rates, the best again, and CurveBall
    assert {one["status"] for one in outcomes} <= {"finished", "diverged"}
