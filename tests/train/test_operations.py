from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from raycurv.objective.collectives import Local
from raycurv.objective.operations import WATCHED_STEPS, OperationCounter
from raycurv.train import CheckpointStore, Result, RunConfig, evaluation, loop, train
from tests.train.problems import Kept, config

METHODS: dict[str, dict[str, Any]] = {
    "auto": {"optimizer": "auto"},
    "curveball, λ checked": {"optimizer": "curveball"},
    "curveball, a fraction": {"optimizer": "curveball", "optimizer_settings": {"curvature_fraction": 0.5}},
    "red along rmsprop": {"optimizer": "red_rmsprop"},
    "ntlr_sgd_free, handed over": {"optimizer": "ntlr_sgd_free"},
    "alera_free, handed over": {"optimizer": "alera_free"},
    "salera, steps taken back": {"optimizer": "salera", "optimizer_settings": {"learning_rate": 10.0}},
    "llr, second order": {"optimizer": "llr_second_order"},
    "llr, differences": {"optimizer": "llr_second_order", "optimizer_settings": {"derivatives": "differences"}},
    "llr, on validation": {
        "optimizer": "llr_second_order", "optimizer_settings": {"on_validation": True}, "validation": 0.25,
    },
    "sgd": {"optimizer": "sgd"},
    "sls, searches": {"optimizer": "sls"},
    "hessian_free, inner steps": {"optimizer": "hessian_free"},
}  # fmt: skip


class Counted(FlopCounterMode):
    """Torch's own count of everything but evaluation and the check of the model at the first batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(display=False)
        self.evaluation, self.evaluating = 0, False
        monkeypatch.setattr(loop, "evaluate_run", self._evaluate)
        uncounted = OperationCounter.uncounted

        @contextlib.contextmanager
        def check(counter: OperationCounter) -> Iterator[None]:
            with FlopCounterMode(display=False) as flops, uncounted(counter):
                yield
            if not self.evaluating:
                self.evaluation += flops.get_total_flops()

        monkeypatch.setattr(OperationCounter, "uncounted", check)

    def _evaluate(self, run: Any) -> dict[str, float]:
        self.evaluating = True
        with FlopCounterMode(display=False) as counter:
            values = evaluation.evaluate_run(run)
        self.evaluating = False
        self.evaluation += counter.get_total_flops()
        return values

    @property
    def of_steps(self) -> int:
        return self.get_total_flops() - self.evaluation


def go(folder: Path, wanted: RunConfig, **options: Any) -> Result:
    return train(wanted, collectives=Local(), store=CheckpointStore(str(folder)), **({"emit": Kept()} | options))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_counts_what_torch_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    # Batches of 8 and a last one of 4; checks of λ, line searches and curvature as each method asks for them.
    wanted = config(samples=84, epochs=5, norm=True, **METHODS[method])
    with Counted(monkeypatch) as counter:
        result = go(tmp_path, wanted)
    assert result.steps > 1.5 * WATCHED_STEPS
    assert result.operations == counter.of_steps > 0


def test_metrics_that_the_configuration_asks_for_do_not_count(tmp_path: Path) -> None:
    plain = go(tmp_path / "plain", config(max_steps=6))
    measured = go(tmp_path / "measured", config(max_steps=6, gradient_norm=True, batch_error=True))
    assert measured.operations == plain.operations > 0


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    wanted = config(optimizer="auto", epochs=10)
    whole = go(tmp_path / "whole", wanted)
    first = go(tmp_path / "resumed", replace(wanted, stop_after=23))
    second = go(tmp_path / "resumed", wanted, resume="must")
    assert first.stopped
    assert 0 < first.operations < second.operations == whole.operations


def test_a_run_that_an_earlier_version_began_has_an_unknown_number(tmp_path: Path) -> None:
    wanted, store = config(epochs=2), CheckpointStore(str(tmp_path))
    go(tmp_path, replace(wanted, stop_after=4))
    state = store.load()
    assert state is not None
    del state["progress"]["operations"]
    store.save({**state, "step": state["step"]})
    records = Kept()
    assert go(tmp_path, wanted, resume="must", emit=records).operations == 0
    assert not any("progress/operations" in record.values for record in records)


def test_operations_so_far_come_with_every_log_interval(tmp_path: Path) -> None:
    records = Kept()
    result = go(tmp_path, config(log_every=2), emit=records)
    counted = [record.values["progress/operations"] for record in records.of("progress")]
    assert counted == sorted(counted)
    assert counted[-1] == result.operations
