import math
from functools import partial

import pytest
import torch

from raycurv.benchmarks import outcome_file, robustness
from raycurv.cli.benchmark import BenchmarkRobustness
from raycurv.models.mlp import mlp


def blobs(samples):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % 10
    return torch.randn(10, 4, generator=generator)[targets] + 0.3 * torch.randn(
        samples, 4, generator=generator
    ), targets


PROBLEM = robustness.JudgingProblem("blobs", partial(mlp, num_classes=10, input_shape=(4,), widths=(5,)), blobs)
CONDITION = robustness.Condition("batches of 8", batch_size=8, steps=12)


@pytest.fixture(autouse=True)
def _problems(monkeypatch):
    monkeypatch.setattr(robustness, "PROBLEMS", (PROBLEM,))
    monkeypatch.setattr(robustness, "CONDITIONS", (CONDITION,))


def test_a_stopped_campaign_goes_on_without_repeating_a_run(tmp_path):
    path = tmp_path / "runs" / "robustness.jsonl"
    campaign = robustness.campaign(path, [PROBLEM], [CONDITION], (0, 1))
    first = [next(campaign), next(campaign)]
    campaign.close()
    with path.open("a") as file:
        file.write('{"problem": "blobs", "cond')  # killed while it wrote
    others = list(robustness.campaign(path, [PROBLEM], [CONDITION], (0, 1)))
    methods = [method.name for method in robustness.METHODS]
    assert [(o.seed, o.method) for o in first + others] == [(seed, m) for seed in (0, 1) for m in methods]
    assert robustness.finished(path) == first + others
    assert first[0].loss == robustness.run(PROBLEM, CONDITION, robustness.JUDGED, 0)[0]


@pytest.mark.parametrize(
    "condition",
    [
        robustness.Condition("", 8, 4, loss_scale=1e6),
        robustness.Condition("", 8, 4, initial_scale=3.0),
        robustness.Condition("", 8, 4, label_noise=0.4),
        robustness.Condition("", 8, 4, l2=0.1),
        robustness.Condition("", 8, 4, bf16=True),
        robustness.Condition("", 8, 4, pretrained_steps=2),
    ],
)
def test_every_disturbance_changes_the_run(condition):
    plain, _ = robustness.run(PROBLEM, robustness.Condition("", 8, 4), robustness.REFERENCES[0], 0)
    disturbed, _ = robustness.run(PROBLEM, condition, robustness.REFERENCES[0], 0)
    assert math.isfinite(disturbed)
    assert disturbed != plain


def test_orders_have_whole_batches_of_every_epoch():
    rows = list(robustness._order(4, 7, 0, samples=10))
    assert [len(batch) for batch in rows] == [4] * 7
    assert len(set(torch.cat(rows[:2]).tolist())) == 8


def outcome(method, loss, seed=0, problem="blobs"):
    return robustness.RobustnessOutcome(problem, "batches of 8", method.name, seed, loss, 1.0)


def test_the_ratio_is_to_the_better_adam_by_the_geometric_mean_over_common_seeds():
    constant, one_cycle = robustness.REFERENCES
    outcomes = [outcome(robustness.JUDGED, 0.2), outcome(constant, 0.4), outcome(one_cycle, 0.1)]
    outcomes += [outcome(robustness.JUDGED, 0.8, 1), outcome(constant, 0.1, 1), outcome(one_cycle, 0.4, 1)]
    outcomes += [outcome(robustness.JUDGED, 9.0, 2)]
    assert robustness.ratios(outcomes) == {("batches of 8", "blobs"): pytest.approx(2.0)}
    table = robustness.to_markdown(outcomes)
    assert "| batches of 8 | 2.00 | 2.00 | 2.00 |" in table
    assert "| all | 2.00 | 2.00 |  |" in table


def test_missed_goals_are_named_and_end_the_command_with_a_failure(tmp_path):
    bad = [outcome(robustness.JUDGED, 0.5)] + [outcome(method, 0.1) for method in robustness.REFERENCES]
    good = [outcome(method, 0.1) for method in robustness.METHODS]
    assert robustness.missed(bad) == ["batches of 8, blobs: 5.00, above 1.25", "geometric mean of all: 5.00, above 1.0"]
    assert robustness.missed(good) == []
    for name, outcomes in (("bad", bad), ("good", good)):
        for one in outcomes:
            outcome_file.append(tmp_path / name, one)
    BenchmarkRobustness(output=tmp_path / "good", seeds=(0,), check=True).run()
    with pytest.raises(SystemExit, match=r"blobs: 5\.00"):
        BenchmarkRobustness(output=tmp_path / "bad", seeds=(0,), check=True).run()


def test_a_run_that_diverges_is_infinitely_worse():
    outcomes = [outcome(method, 1.0) for method in robustness.REFERENCES] + [outcome(robustness.JUDGED, math.inf)]
    assert math.isinf(robustness.ratios(outcomes)["batches of 8", "blobs"])


def test_constants_were_not_chosen_on_judging_problems():
    from raycurv.benchmarks import start_sensitivity

    chosen = {"MNIST, tanh MLP", "MNIST, ReLU MLP", "MNIST, logistic", "MNIST autoencoder"}
    assert chosen <= {problem.name for problem in start_sensitivity.PROBLEMS}
    chosen |= {problem.name for problem in robustness.FORMER_PROBLEMS}
    assert not chosen & {problem.name for problem in robustness.PROBLEMS}
