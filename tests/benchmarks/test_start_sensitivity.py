import dataclasses
import math
from functools import partial

import pytest
import torch

from raycurv.benchmarks import start_sensitivity
from raycurv.models.mlp import mlp


def blobs(samples):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % 3
    return torch.randn(3, 4, generator=generator)[targets] + 0.3 * torch.randn(samples, 4, generator=generator), targets


PROBLEM = start_sensitivity.TrainingProblem(
    "blobs", partial(mlp, num_classes=3, input_shape=(4,), widths=(5,)), blobs, samples=48, batch_size=8, epochs=3
)
ENTRIES = (
    start_sensitivity.Method("SGD", "sgd", "learning_rate", (0.01, 0.1), tuned=True),
    start_sensitivity.Method("`auto`", "auto", "start", (0.5, 1.0, 10.0)),
)


def test_a_stopped_campaign_goes_on_without_repeating_a_run(tmp_path):
    path = tmp_path / "runs" / "free.jsonl"
    campaign = start_sensitivity.campaign(path, [PROBLEM], ENTRIES)
    first = [next(campaign), next(campaign)]
    campaign.close()
    with path.open("a") as file:
        file.write('{"problem": "blobs", "opt')  # killed while it wrote
    others = list(start_sensitivity.campaign(path, [PROBLEM], ENTRIES))
    assert [outcome.value for outcome in first + others] == [0.01, 0.1, 0.5, 1.0, 10.0]
    assert start_sensitivity.finished(path) == first + others
    assert not list(start_sensitivity.campaign(path, [PROBLEM], ENTRIES))
    assert first[0].raw == pytest.approx(start_sensitivity.run(PROBLEM, "sgd", {"learning_rate": 0.01})[0])
    table = start_sensitivity.to_markdown(start_sensitivity.finished(path), [PROBLEM], ENTRIES)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["SGD", "`auto`"]


def test_slow_problems_try_the_ends_and_the_default():
    slow = dataclasses.replace(PROBLEM, slow=True)
    entry = start_sensitivity.Method("", "auto", "start", (1e-5, 1e-2, 1.0, 10.0))
    assert entry.values_for(slow) == (1e-5, 1.0, 10.0)
    assert entry.values_for(PROBLEM) == entry.values
    assert ENTRIES[0].values_for(slow) == ENTRIES[0].values


def test_the_table_counts_small_losses_as_the_floor_and_names_divergence():
    def outcomes(*losses):
        return [start_sensitivity.StartOutcome("blobs", "auto", v, 0, loss, loss, 1.0) for v, loss in enumerate(losses)]

    assert "| 0.01–0.02 / 0.02 (×2.00) |" in start_sensitivity.to_markdown(outcomes(1e-5, 0.02), [PROBLEM], ENTRIES)
    assert "| 0.5–∞ / ∞ (diverges) |" in start_sensitivity.to_markdown(outcomes(0.5, math.inf), [PROBLEM], ENTRIES)


def test_a_sentence_is_at_most_as_long_as_the_rest(tmp_path):
    for split in ("train", "val"):
        for language in ("de", "en"):
            (tmp_path / f"{split}.{language}").write_text("a b c\nd e\n")
    inputs, targets = start_sensitivity.sentences(str(tmp_path), 2)
    assert inputs.shape == (2, 2, 4)
    assert targets.shape == (2, 4)
