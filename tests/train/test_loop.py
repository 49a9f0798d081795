from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raycurv import Objective, optim
from raycurv.data import Loader, csv_table
from raycurv.models import mlp
from raycurv.objective.collectives import Local
from raycurv.train import (
    CheckpointError,
    CheckpointStore,
    Component,
    NonFiniteLoss,
    Result,
    RunConfig,
    load_trained_model,
    train,
)
from tests.train.problems import Kept, blobs, class_numbers, config, network
from tests.train.test_checkpoint import small_files


def go(folder: Path, wanted: RunConfig, **options: Any) -> Result:
    return train(wanted, collectives=Local(), store=CheckpointStore(str(folder)), **({"emit": Kept()} | options))


def by_hand(wanted: RunConfig, losses: list[float] | None = None) -> nn.Module:
    """The same training in plain PyTorch, without anything of this room; `losses` gets the cross-entropy per step."""
    torch.manual_seed(wanted.seed)
    data, model = blobs(), network((4,), 3).double()
    loader = Loader(data.train, batch_size=wanted.batch_size, seed=wanted.seed, dtype=torch.float64)
    objective = Objective(model, wanted.loss, wanted.l2)
    horizon = optim.Horizon(wanted.epochs, loader.steps_per_epoch, len(data.train))
    optimizer = optim.create(wanted.optimizer, model, horizon=horizon, **wanted.optimizer_settings)
    for epoch in range(wanted.epochs):
        for inputs, targets in loader.epoch(epoch):
            if losses is not None:
                losses.append(nn.functional.cross_entropy(model(inputs), targets).item())
            optimizer.step(objective.batch(inputs, targets))
    with optimizer.evaluation_weights():
        return copy.deepcopy(model)


@pytest.mark.parametrize("optimizer", optim.names())
def test_every_optimizer_trains_as_in_plain_pytorch(tmp_path: Path, optimizer: str) -> None:
    wanted = config(optimizer=optimizer, l2=1e-2)
    result = go(tmp_path, wanted)
    assert (result.steps, result.epochs) == (10, 2.0)
    trained = load_trained_model(CheckpointStore(str(tmp_path))).model
    for mine, expected in zip(trained.parameters(), by_hand(wanted).parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", optim.names())
def test_losses_of_steps_and_epochs_are_those_of_the_data(tmp_path: Path, optimizer: str) -> None:
    wanted, records, expected = config(optimizer=optimizer, l2=0.3), Kept(), []
    go(tmp_path, wanted, emit=records)
    by_hand(wanted, expected)
    found = [r.values["train/loss"] for r in records.of("step")]
    assert found == pytest.approx(expected, rel=1e-6)
    epochs = [r.values["train/epoch_loss"] for r in records.of("evaluation")]
    assert epochs == pytest.approx([sum(expected[:5]) / 5, sum(expected[5:]) / 5], rel=1e-6)


def test_the_l2_term_stands_beside_every_loss(tmp_path: Path) -> None:
    still = {"optimizer": "sgd", "optimizer_settings": {"learning_rate": 1e-30}, "average_weights": 0.5}
    records = Kept()
    values = go(tmp_path, config(l2=0.3, evaluate_training=True, **still), emit=records).values
    model = load_trained_model(CheckpointStore(str(tmp_path))).model
    expected = 0.15 * float(sum(p.detach().square().sum() for p in model.parameters()))
    terms = {name: value for name, value in values.items() if name.endswith("l2_term")}
    sets = ("test/", "training_set/", "averaged/test/", "averaged/training_set/", "train/epoch_")
    assert terms == pytest.approx({f"{name}l2_term": expected for name in sets})
    assert {round(r.values["train/l2_term"], 12) for r in records.of("step")} == {round(expected, 12)}
    assert values["train/epoch_loss"] == pytest.approx(values["training_set/loss"], rel=1e-12)
    assert not [name for name in go(tmp_path / "0", config(**still)).values if name.endswith("l2_term")]


def test_records_tell_every_step_and_every_evaluation(tmp_path: Path) -> None:
    records = Kept()
    result = go(tmp_path, config(gradient_norm=True, batch_error=True, evaluate_every=2, samples=42), emit=records)
    steps = records.of("step")
    assert [(r.step, round(r.epoch * 6)) for r in steps] == [(i, i) for i in range(1, 13)]
    assert all(math.isfinite(value) for r in steps for value in r.values.values())
    assert {"train/loss", "optimizer/momentum", "optimizer/learning_rate", "optimizer/damping"} <= steps[
        0
    ].values.keys()
    for name in ("train/gradient_norm", "train/batch_error"):
        assert [r.step for r in steps if name in r.values] == [3, 6, 9, 12]
    assert all(8 * r.values["train/batch_error"] % 1 == 0 for r in steps[2:5] if "train/batch_error" in r.values)
    assert [r.step for r in records.of("progress")] == [3, 6, 9, 12]
    assert all(r.values["throughput/images_per_second"] > 0 for r in records.of("progress"))
    first, second = records.of("evaluation")
    assert set(first.values) == {"train/epoch_loss"}
    assert set(second.values) == {"train/epoch_loss", "test/loss", "test/accuracy"}
    assert result.values == second.values
    assert result.evaluations == (first, second)
    # The epoch's loss weighs each batch by its samples: five of 8 and one of 2.
    weights = [8, 8, 8, 8, 8, 2]
    expected = sum(w * r.values["train/loss"] for w, r in zip(weights, steps, strict=False)) / 42
    assert first.values["train/epoch_loss"] == pytest.approx(expected, rel=1e-12)


def test_evaluations_come_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    wanted = config(evaluate_every_steps=4, samples=42, log_every=5)
    result = go(tmp_path, wanted)
    at = {record.step: set(record.values) for record in result.evaluations}
    measured = {"test/loss", "test/accuracy"}
    assert at == {4: measured, 6: {"train/epoch_loss"}, 8: measured, 12: {"train/epoch_loss", *measured}}
    assert [record.epoch for record in result.evaluations] == [4 / 6, 1.0, 8 / 6, 2.0]


@pytest.mark.parametrize("optimizer", ["auto", "schedule_free_adamw"])
def test_evaluations_within_an_epoch_leave_the_run_as_it_is(tmp_path: Path, optimizer: str) -> None:
    plain = config(optimizer=optimizer, norm=True, dropout=0.3)
    often = replace(plain, evaluate_every_steps=1, evaluate_training=True, evaluate_training_samples=9)
    parts = (replace(often, stop_after=3), often)

    expected = go(tmp_path / "plain", plain)
    result = go(tmp_path / "often", often)
    for part, resume in zip(parts, ("never", "must"), strict=True):
        resumed = go(tmp_path / "resumed", part, resume=resume)

    assert dict(result.values) | dict(expected.values) == dict(result.values)
    assert [(r.step, r.values) for r in resumed.evaluations] == [(r.step, r.values) for r in result.evaluations]


def test_the_first_training_samples_are_measured_without_augmentation(tmp_path: Path) -> None:
    wanted = config(evaluate_training=True, evaluate_training_samples=9)
    result = go(tmp_path, wanted)
    trained = load_trained_model(CheckpointStore(str(tmp_path))).model.eval()
    inputs, targets = wanted.data.build().train.read(np.arange(9), seed=0, epoch=0, training=False)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(trained(inputs), targets)
    assert result.values["training_set/loss"] == pytest.approx(float(expected), rel=1e-12)


def test_epoch_loss_weighs_batches_by_what_their_samples_count_for(tmp_path: Path) -> None:
    still = {"optimizer": "sgd", "optimizer_settings": {"learning_rate": 1e-30}}
    weighted = config(samples=42, epochs=1, weights="tests.train.problems:by_class", evaluate_training=True, **still)
    values = go(tmp_path, weighted).values
    assert values["train/epoch_loss"] == pytest.approx(values["training_set/loss"], rel=1e-12)
    assert 0 < values["training_set/accuracy"] < 1


def test_max_steps_ends_within_an_epoch_with_an_evaluation(tmp_path: Path) -> None:
    result = go(tmp_path, config(max_steps=7))
    assert (result.steps, result.epochs) == (7, 1.4)
    assert result.evaluations[-1].step == 7
    assert "test/accuracy" in result.values


@pytest.mark.parametrize(("share", "expected"), [(0, [2, 4, 5, 6, 8, 10]), (1e9, [2, 5, 10])])
def test_the_clock_asks_for_checkpoints_at_log_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, expected: list[int]
) -> None:
    monkeypatch.setattr("raycurv.train.loop.SAVE_SHARE", share)  # of the time that writing may take
    kept = Kept()
    go(tmp_path, config(log_every=2, checkpoint_every=1000), emit=kept, checkpoint_seconds=1e-9)
    written = [re.search(r"step-0*(\d+)", record.message) for record in kept if record.message.startswith("wrote")]
    assert [int(step[1]) for step in written if step] == expected  # told when the write is complete, steps later


def test_run_without_evaluation_set_reports_the_training_loss(tmp_path: Path) -> None:
    assert set(go(tmp_path, config(held_out=0)).values) == {"train/epoch_loss"}


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(1, 1), (100, 2), (2, 100), (100, 100)])
@pytest.mark.parametrize("optimizer", ["curveball", "adam"])
def test_nan_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, log_every: int, checkpoint_every: int, optimizer: str
) -> None:
    records = Kept()
    wanted = config(
        broken_row=1,
        optimizer=optimizer,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        batch_size=4,
        norm=True,
    )
    with pytest.raises(
        NonFiniteLoss, match=r"step \d+ of 'test' was not finite \(loss nan\), and was not applied"
    ) as e:
        go(tmp_path, wanted, emit=records)
    broken = next(r.step for r in records.of("step") if math.isnan(r.values["train/loss"]))
    assert f"step {broken} " in str(e.value)
    state = CheckpointStore(str(tmp_path)).load()
    if state is None:
        assert checkpoint_every >= broken
        assert "No checkpoint had been written yet" in str(e.value)
        return
    assert state["step"] == (broken - 1) // checkpoint_every * checkpoint_every
    assert str(tmp_path / f"step-{state['step']:09d}.pt") in str(e.value)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


SALERA = {"optimizer": "salera", "optimizer_settings": {"learning_rate": 0.1}, "batch_size": 4}


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_salera_does_not_take_a_sample_that_is_nan_for_an_explosion(tmp_path: Path, log_every: int) -> None:
    records = Kept()
    with pytest.raises(NonFiniteLoss, match=r"step \d+ of 'test' was not finite \(loss nan\), since 1 of its samples"):
        go(tmp_path, config(broken_row=30, log_every=log_every, **SALERA), emit=records)
    broken = next(r.step for r in records.of("step") if math.isnan(r.values["train/loss"]))
    assert broken > 1


def test_an_explosion_that_salera_recovers_from_is_an_event_and_no_nan_in_the_epochs_loss(tmp_path: Path) -> None:
    records = Kept()
    explosive = {**SALERA, "optimizer_settings": {"learning_rate": 1e156}}
    result = go(tmp_path, config(epochs=4, l2=0.01, **explosive), emit=records)  # ‖Θ‖² overflows
    lost = [r.step for r in records.of("step") if not math.isfinite(r.values["train/loss"])]
    assert lost
    assert any(f"the first of them step {lost[0]};" in record.message for record in records.of("event"))
    assert all(math.isfinite(r.values["train/epoch_loss"]) for r in result.evaluations)


def test_full_disk_stops_the_run_and_leaves_it_resumable(tmp_path: Path) -> None:
    wanted = config(samples=1600, epochs=1, checkpoint_every=20, precision="fp32")
    go(tmp_path, wanted, stop=lambda: (tmp_path / "manifest.json").exists())
    state = CheckpointStore(str(tmp_path)).load()
    assert state is not None
    following = (state["step"] // 20 + 1) * 20  # the first one is complete some steps after it was begun
    with small_files(4096), pytest.raises(CheckpointError, match=rf"cannot write .*step-{following:09d}.pt.*--resume"):
        go(tmp_path, wanted, resume="must")
    assert go(tmp_path, wanted, resume="must").steps == 200


def test_average_of_the_weights_is_the_exponential_one(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=100)
    wanted = config(average_weights=0.7, checkpoint_every=1, keep_checkpoints=100, norm=True)
    result = train(wanted, collectives=Local(), store=store, emit=Kept())
    average = None
    for entry in store._entries():
        weights = store._load(entry)["model"]["4.weight"]
        average = weights if average is None else 0.7 * average + 0.3 * weights
    averaged, raw = load_trained_model(store, averaged=True).model, load_trained_model(store).model
    torch.testing.assert_close(averaged[4].weight.detach(), average, rtol=1e-12, atol=1e-14)
    assert {"averaged/test/loss", "averaged/test/accuracy", "test/loss", "test/accuracy"} <= result.values.keys()
    # Its running statistics are plain means over the batches of an epoch, which see every row here.
    hidden = averaged[0](blobs().train.inputs)
    torch.testing.assert_close(averaged[1].running_mean, hidden.mean(0).detach(), rtol=1e-12, atol=1e-14)
    assert not torch.equal(averaged[1].running_mean, raw[1].running_mean)


@pytest.mark.parametrize("settings", [{}, {"curvature_fraction": 0.5}])
def test_averaging_evaluating_and_observing_change_no_step(tmp_path: Path, settings: dict[str, float]) -> None:
    plain = config(dropout=0.3, norm=True, optimizer="curveball", optimizer_settings=settings)
    watched = {"gradient_norm": True, "batch_error": True, "log_every": 1, "checkpoint_every": 1}
    go(tmp_path / "a", plain)
    go(tmp_path / "b", replace(plain, average_weights=0.9, **watched))
    a, b = (load_trained_model(CheckpointStore(str(tmp_path / name))).model.state_dict() for name in "ab")
    torch.testing.assert_close(dict(a), dict(b), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["curveball", "adam"])
def test_bfloat16_trains_with_weights_in_float32(tmp_path: Path, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "epochs": 6}
    wide = go(tmp_path / "a", config(precision="fp32", **settings))
    narrow = go(tmp_path / "b", config(precision="bf16", **settings))
    assert narrow.values["train/epoch_loss"] == pytest.approx(wide.values["train/epoch_loss"], rel=0.1)
    assert narrow.values != wide.values
    assert {p.dtype for p in load_trained_model(CheckpointStore(str(tmp_path / "b"))).model.parameters()} == {
        torch.float32
    }


class Transfers(TorchFunctionMode):
    """Counts what makes the host wait for the device, as Tensor methods and as operators."""

    METHODS = frozenset(["item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"])

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.operators = _Operators(self.seen)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.METHODS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("optimizer", ["curveball", "momentum"])
def test_no_step_waits_for_the_device(tmp_path: Path, optimizer: str, l2: float) -> None:
    def transfers(samples: int) -> Counter[str]:
        wanted = config(
            samples=samples,
            held_out=0,
            epochs=1,
            log_every=1000,
            optimizer=optimizer,
            l2=l2,
            average_weights=0.9,
            dropout=0.1,
        )
        with Transfers() as mode, mode.operators:
            assert go(tmp_path / str(samples), wanted).steps == samples // 8
        return mode.seen

    few = transfers(80)
    assert sum(few.values()) > 0
    assert transfers(240) == few


def test_room_needs_neither_ray_nor_mlflow() -> None:
    code = "import sys, raycurv.train; print({'ray', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_classifiers_default_outputs_are_refused_where_the_targets_are_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 3},{i * 0.5}\n" for i in range(20))
    (tmp_path / "table.csv").write_text(f"a,b,price\n{rows}")
    data = Component.of(csv_table, path=str(tmp_path / "table.csv"), target="price", held_out=4)
    wanted = RunConfig("regression", Component.of(mlp), data, loss="squared_error", epochs=1)
    with pytest.raises(ValueError, match=r"mlp:mlp' would keep its default of 10 outputs: set num_classes=1 in"):
        train(wanted, collectives=Local(), store=CheckpointStore(str(tmp_path / "a")), emit=Kept())
    right = replace(wanted, model=Component.of(mlp, num_classes=1))
    result = train(right, collectives=Local(), store=CheckpointStore(str(tmp_path / "b")), emit=Kept())
    assert result.steps == 1


def test_class_numbers_without_names_leave_the_number_of_outputs_to_the_model(tmp_path: Path) -> None:
    wanted = RunConfig("numbers", Component.of(mlp, widths=()), Component.of(class_numbers), epochs=1)
    result = train(wanted, collectives=Local(), store=CheckpointStore(str(tmp_path)), emit=Kept())
    assert result.steps == 1
