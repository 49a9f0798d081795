import math

from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.results.performance_profile import performance_profiles


def run(optimizer, losses, *, seconds=1.0, network):
    """One evaluation of the training loss every so many seconds."""
    points = tuple(
        EvaluationPoint(i + 1.0, i + 1, seconds * (i + 1), {"train/epoch_loss": loss}) for i, loss in enumerate(losses)
    )
    return Outcome(f"{optimizer}-{network}", "recipe", optimizer, points=points, labels={"network": network})


def test_a_profile_counts_problems_within_a_factor_of_the_fastest():
    outcomes = [
        run("fast", [0.5, 0.1], network="one"),
        run("slow", [0.5, 0.1], seconds=2.0, network="one"),
        run("fast", [0.5, 0.4], network="two"),
        run("slow", [0.3, 0.1], network="two"),
    ]
    fast, slow = performance_profiles(outcomes)
    assert fast.ratios == (1.0, math.inf)
    assert slow.ratios == (1.0, 2.0)
    assert (fast.solved(1.0), fast.solved(100.0), slow.solved(1.5), slow.solved(2.0)) == (0.5, 0.5, 0.5, 1.0)
