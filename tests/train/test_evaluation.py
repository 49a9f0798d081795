from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raycurv.data import TensorSource
from raycurv.train import evaluate
from raycurv.train.evaluation import evaluation_mode
from tests.train import problems, threads


def trained_looking() -> nn.Module:
    torch.manual_seed(0)
    return problems.network((4,), 3, dropout=0.5, norm=True).double()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_sample_counts_once(workers: int) -> None:
    source, model = problems.blobs().evaluation, trained_looking()
    assert isinstance(source, TensorSource)
    with evaluation_mode(model), torch.no_grad():
        outputs = model(source.inputs)
    expected = {
        "test/loss": nn.functional.cross_entropy(outputs, source.targets).item(),
        "test/accuracy": (outputs.argmax(1) == source.targets).double().mean().item(),
    }

    def worker(collectives: threads.Threads) -> dict[str, float]:
        return evaluate(
            copy.deepcopy(model), source, loss="cross_entropy", batch_size=5, collectives=collectives, precision="fp64"
        )

    for values in threads.run(workers, worker):
        assert values == pytest.approx(expected, rel=1e-12)


def test_regression_has_no_accuracy() -> None:
    inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    values = evaluate(nn.Identity(), TensorSource(inputs, inputs + 1), loss="squared_error", prefix="held out ")
    assert values == pytest.approx({"held out loss": 4.0})


def test_loss_may_be_a_function_and_compute_in_bfloat16() -> None:
    source = problems.blobs().train
    model = trained_looking().float()
    options = {"loss": problems.absolute_error, "prefix": ""}
    wide, narrow = evaluate(model, source, **options), evaluate(model, source, precision="bf16", **options)
    assert narrow["loss"] == pytest.approx(wide["loss"], rel=0.02)
    assert narrow["loss"] != wide["loss"]


def test_modules_are_left_as_they_were() -> None:
    model = trained_looking()
    model[1].eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    evaluate(model, problems.blobs().train, loss="cross_entropy", precision="fp64")
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_weighted_samples_count_by_their_weight() -> None:
    inputs = torch.tensor([[1.0], [2.0], [5.0]])
    targets = torch.tensor([[1.0], [3.0], [3.0]])
    source = TensorSource(inputs, targets)
    values = evaluate(nn.Identity(), source, loss="squared_error", weights=lambda t: t[:, 0], batch_size=2, prefix="")
    assert values == pytest.approx({"loss": (1 * 0 + 3 * 1 + 3 * 4) / 7})
