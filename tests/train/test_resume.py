from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from raycurv.data import DataError
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, Result, ResumeError, RunConfig, check, load_trained_model, train
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.resume import UnusableState, first_step
from tests.train.problems import Kept, config


def go(folder: Path, wanted: RunConfig, **options: Any) -> Result:
    return train(wanted, collectives=Local(), store=CheckpointStore(str(folder)), **({"emit": Kept()} | options))


def after(calls: int) -> Callable[[], bool]:
    left = iter(range(1, 10**9))
    return lambda: next(left) >= calls


def final(folder: Path) -> dict[str, Any]:
    """The newest checkpoint without times and messages."""
    loaded = CheckpointStore(str(folder)).load()
    assert loaded is not None
    return {name: loaded[name] for name in ("step", "model", "optimizer", "average", "random", "epoch_sums")}


def assert_same(a: Any, b: Any) -> None:
    (found, structure), (expected, same) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    assert structure == same
    words = [[x for x in leaves if isinstance(x, str)] for leaves in (found, expected)]
    assert words[0] == words[1]
    numbers = [[x for x in leaves if not isinstance(x, str)] for leaves in (found, expected)]
    torch.testing.assert_close(*numbers, rtol=0, atol=0, equal_nan=True)


# 5 steps an epoch, 30 steps, with everything that a checkpoint must hold.
WHOLE = config(
    epochs=6, precision="fp32", dropout=0.2, norm=True, average_weights=0.8, l2=1e-3, checkpoint_every=17, log_every=4
)


# Baselines whose state is more than what torch keeps for each parameter.
BASELINES = ["nadamw_algoperf", "muon", "soap", "ademamix", "momo_adam", "mechanic_adam", "prodigy_cosine", "gen_adam"]
BASELINES += ["cdat_adam", "schedule_free_plus", "schedule_free_normuon"]


@pytest.mark.parametrize("optimizer", ["curveball", "adam", "momentum", *BASELINES])
def test_interrupted_run_equals_uninterrupted_one_bit_by_bit(tmp_path: Path, optimizer: str) -> None:
    wanted = dataclasses.replace(WHOLE, optimizer=optimizer)
    uninterrupted = go(tmp_path / "a", wanted)
    stopped = go(tmp_path / "b", wanted, stop=after(17))
    assert stopped.stopped
    assert stopped.steps == 17
    resumed = go(tmp_path / "b", wanted, resume="must")
    assert resumed.steps == 30
    assert resumed.values == uninterrupted.values
    assert [r.values for r in resumed.evaluations] == [r.values for r in uninterrupted.evaluations]
    assert_same(final(tmp_path / "b"), final(tmp_path / "a"))


def test_killed_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    go(tmp_path / "a", WHOLE)
    command = [sys.executable, "-m", "tests.train.killed", str(tmp_path / "b"), "19", WHOLE.to_json()]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    records = Kept()
    assert go(tmp_path / "b", WHOLE, resume="must", emit=records).steps == 30
    assert "goes on at step 17, epoch 3.400" in records[0].message
    assert [record.step for record in records.of("step")] == list(range(18, 31))
    assert_same(final(tmp_path / "b"), final(tmp_path / "a"))


def test_damaged_newest_checkpoint_costs_steps_but_no_bit(tmp_path: Path) -> None:
    go(tmp_path / "a", WHOLE)
    go(tmp_path / "b", WHOLE, stop=after(17))
    newest = Path(CheckpointStore(str(tmp_path / "b")).newest() or "")
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match=r"Falling back to .*step-000000015.pt"):
        go(tmp_path / "b", WHOLE, resume="must")
    assert_same(final(tmp_path / "b"), final(tmp_path / "a"))


def _without(*path: str) -> Callable[[dict[str, Any]], None]:
    def remove(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return remove


@pytest.mark.parametrize(
    "spoil",
    [
        _without("progress", "epoch"),
        _without("progress", "evaluations"),
        _without("model", "0.weight"),
        _without("optimizer", "param_groups"),
        lambda state: state["progress"].update(step_in_epoch=-1),
        lambda state: state["progress"].update(step="17"),
        lambda state: state["progress"].update(evaluations=[{}]),
        lambda state: state.update(random=None),
        lambda state: state.update(horizon=[]),
    ],
)
def test_a_checkpoint_of_unusable_content_costs_steps_but_no_bit(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    wanted = config(epochs=1, checkpoint_every=2, log_every=1)
    go(tmp_path / "a", wanted)
    go(tmp_path / "b", wanted, stop=after(4))
    store = CheckpointStore(str(tmp_path / "b"))
    state = store.load()
    assert state is not None
    spoil(state)
    store.save(state)
    with pytest.warns(RuntimeWarning, match=r"step-000000004.pt cannot be restored \(.*Falling back to .*step 2"):
        go(tmp_path / "b", wanted, resume="must")
    one, other = CheckpointStore(str(tmp_path / "a")).load(), store.load()
    assert one is not None
    assert other is not None
    assert_same(other["model"], one["model"])


def _state_of_last_parameter(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        states = state["optimizer"]["state"]
        last = states[max(key for key in states if isinstance(key, int))]
        last.update(values)

    return change


def _of_shared(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["optimizer"]["state"]["global"].update({name: value})


@pytest.mark.parametrize(
    ("optimizer", "spoil"),
    [
        ("adam", _state_of_last_parameter(exp_avg=None)),
        ("adam", _state_of_last_parameter(exp_avg=torch.zeros(7, 5))),
        ("adam", _state_of_last_parameter(step="a")),
        ("momentum", _state_of_last_parameter(momentum_buffer=[])),
        ("curveball", _of_shared("direction", torch.zeros(3))),
        ("curveball", _of_shared("damping", "a")),
    ],
)
def test_an_optimizer_state_that_no_step_can_use_costs_steps_but_no_bit(
    tmp_path: Path, optimizer: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    wanted = config(epochs=1, checkpoint_every=2, log_every=1, optimizer=optimizer, optimizer_settings={})
    whole = go(tmp_path / "a", wanted)
    go(tmp_path / "b", wanted, stop=after(4))
    store = CheckpointStore(str(tmp_path / "b"))
    state = store.load()
    assert state is not None
    spoil(state)
    store.save(state)
    with pytest.warns(RuntimeWarning, match=r"step-000000004.pt cannot be restored \(.*Falling back to .*step 2"):
        again = go(tmp_path / "b", wanted, resume="must")
    one, other = CheckpointStore(str(tmp_path / "a")).load(), store.load()
    assert one is not None
    assert other is not None
    assert_same(other["model"], one["model"])
    assert again.operations == whole.operations


def test_the_checkpoint_is_not_blamed_for_memory_data_or_workers() -> None:
    with pytest.raises(DataError, match="row 3"), first_step():
        raise DataError("row 3")
    with pytest.raises(RuntimeError, match="can't allocate memory"), first_step():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UnusableState, match="TypeError: a"), first_step():
        raise TypeError("a")


def test_a_run_whose_checkpoints_are_all_unusable_is_refused(tmp_path: Path) -> None:
    go(tmp_path, WHOLE, stop=after(3))
    store = CheckpointStore(str(tmp_path))
    state = store.load()
    assert state is not None
    store.save({**state, "random": None})
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read: .* cannot be restored \(TypeError"):
        go(tmp_path, WHOLE, resume="must")


def test_new_run_refuses_to_touch_an_old_one(tmp_path: Path) -> None:
    go(tmp_path, config(max_steps=2))
    before = CheckpointStore(str(tmp_path)).newest()
    with pytest.raises(ResumeError, match=r"already holds a run: go on with it by --resume, or .*--run-name"):
        go(tmp_path, config(max_steps=3))
    assert CheckpointStore(str(tmp_path)).newest() == before


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"nothing to resume in .*nowhere"):
        go(tmp_path / "nowhere", config(), resume="must")


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path, resume: str) -> None:
    CheckpointStore(str(tmp_path)).begin(config())
    assert go(tmp_path, config(), resume=resume).steps == 10


def test_changed_configuration_is_refused_by_field(tmp_path: Path) -> None:
    go(tmp_path, config(max_steps=2))
    changed = config(max_steps=2, seed=3, optimizer="adam", optimizer_settings={"beta1": 0.8}, dropout=0.5)
    with pytest.raises(ResumeError) as refused:
        go(tmp_path, changed, resume="must")
    for field in (
        "seed: 0 → 3",
        "optimizer: 'curveball' → 'adam'",
        "optimizer_settings.beta1: unset → 0.8",
        "model.settings.dropout: 0.0 → 0.5",
    ):
        assert field in str(refused.value)


@pytest.mark.parametrize("optimizer", ["curveball", "auto", "red_sgd"])
def test_a_sitting_that_ends_early_never_touches_the_schedule(tmp_path: Path, optimizer: str) -> None:
    wanted = config(epochs=3, optimizer=optimizer)
    go(tmp_path / "a", wanted)
    sittings = [go(tmp_path / "b", dataclasses.replace(wanted, stop_after=4), resume="auto") for _ in range(4)]
    assert [(result.steps, result.stopped) for result in sittings] == [(4, True), (8, True), (12, True), (15, False)]
    a, b = (load_trained_model(CheckpointStore(str(tmp_path / name))) for name in "ab")
    assert_same(dict(a.model.state_dict()), dict(b.model.state_dict()))


def test_the_scale_of_float16_goes_on_where_it_was(tmp_path: Path) -> None:
    wanted = config(epochs=3, optimizer="curveball", precision="fp16", loss="tests.train.problems:steep", log_every=1)
    records = Kept()
    go(tmp_path / "a", wanted, emit=records)
    scales = [record.values["optimizer/loss_scale"] for record in records.of("step")]
    assert scales[0] == 2.0**15  # the first gradient has overflowed
    assert scales == sorted(scales, reverse=True)
    for _ in range(4):
        go(tmp_path / "b", dataclasses.replace(wanted, stop_after=4), resume="auto")
    a, b = (CheckpointStore(str(tmp_path / name)).load() for name in "ab")
    assert a is not None
    assert b is not None
    assert a["loss_scale"]["scale"] == scales[-1] < scales[0]
    for part in ("model", "optimizer", "loss_scale"):
        assert_same(a[part], b[part])


@pytest.mark.parametrize(("optimizer", "settings"), [("auto", {}), ("red_sgd", {}), ("sgd", {"schedule": "one_cycle"})])
def test_the_horizon_is_what_will_be_done(tmp_path: Path, optimizer: str, settings: dict[str, Any]) -> None:
    wanted = config(epochs=3, optimizer=optimizer, optimizer_settings=settings)
    go(tmp_path / "a", wanted)
    go(tmp_path / "b", dataclasses.replace(wanted, epochs=100, max_steps=15))
    a, b = (load_trained_model(CheckpointStore(str(tmp_path / name))) for name in "ab")
    assert_same(dict(a.model.state_dict()), dict(b.model.state_dict()))


@pytest.mark.parametrize("optimizer", ["red_adam_free", "red_sgd"])
def test_another_length_of_a_scheduled_run_is_refused_unless_asked_for(tmp_path: Path, optimizer: str) -> None:
    wanted = config(epochs=3, optimizer=optimizer, stop_after=7)
    go(tmp_path, wanted)
    longer = dataclasses.replace(wanted, epochs=4, stop_after=None)
    with pytest.raises(CheckpointError, match=r"was 15 steps and is now 20: .* change_horizon"):
        go(tmp_path, longer, resume="must")
    assert go(tmp_path, dataclasses.replace(longer, change_horizon=True), resume="must").steps == 20


def test_more_epochs_and_other_intervals_are_not_another_run(tmp_path: Path) -> None:
    go(tmp_path / "a", config(epochs=3))
    go(tmp_path / "b", config(max_steps=7))
    longer = config(epochs=3, log_every=5, checkpoint_every=2, keep_checkpoints=5, gradient_norm=True)
    assert go(tmp_path / "b", longer, resume="must").steps == 15
    a, b = (load_trained_model(CheckpointStore(str(tmp_path / name))) for name in "ab")
    assert_same(dict(a.model.state_dict()), dict(b.model.state_dict()))


def test_finished_run_answers_at_once(tmp_path: Path) -> None:
    result, records = go(tmp_path, config()), Kept()
    assert go(tmp_path, config(), resume="auto", emit=records) == result
    assert not records


def test_stopped_run_is_not_finished(tmp_path: Path) -> None:
    go(tmp_path, config(), stop=after(3))
    assert CheckpointStore(str(tmp_path)).finished() is None


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(max_steps=2, samples=40)
    go(tmp_path, wanted)
    store = CheckpointStore(str(tmp_path))
    state = store.load()
    assert state is not None
    store.save(state | {"step": 3, "data": state["data"] | {"training_samples": 50}})
    with pytest.raises(RuntimeError, match=r"'training_samples': 40.*was .*'training_samples': 50"):
        go(tmp_path, dataclasses.replace(wanted, max_steps=4), resume="must")


def test_trained_network_comes_out_of_its_checkpoint(tmp_path: Path) -> None:
    check(WHOLE)
    go(tmp_path, WHOLE)
    raw, averaged = (
        load_trained_model(CheckpointStore(str(tmp_path))),
        load_trained_model(CheckpointStore(str(tmp_path)), averaged=True),
    )
    assert (raw.step, raw.input_shape, raw.num_classes, raw.config) == (30, (4,), 3, WHOLE)
    assert not raw.model.training
    state = final(tmp_path)
    assert_same(dict(raw.model.state_dict()), dict(state["model"]))
    assert_same([p.detach() for p in averaged.model.parameters()], state["average"]["weights"])
    assert not torch.equal(raw.model[1].running_mean, averaged.model[1].running_mean)


def test_run_goes_on_from_an_object_store(s3_server: Callable[[], str], tmp_path: Path) -> None:
    store = CheckpointStore(f"{s3_server()}/runs/one")
    options = {"collectives": Local(), "store": store, "emit": Kept()}
    go(tmp_path, WHOLE)
    assert train(WHOLE, stop=after(17), **options).stopped
    with pytest.raises(ResumeError, match=r"s3://.*already holds a run"):
        train(WHOLE, **options)
    assert train(WHOLE, resume="must", **options).steps == 30
    one, other = load_trained_model(store), load_trained_model(CheckpointStore(str(tmp_path)))
    assert_same(dict(one.model.state_dict()), dict(other.model.state_dict()))
