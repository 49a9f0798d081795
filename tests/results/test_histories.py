import math

import numpy as np
import pytest

from raycurv.results import binning, histories
from raycurv.results.histories import MetricTrace, RunHistory, separate_conditions
from raycurv.results.outcomes import Outcome
from raycurv.train.records import Record


def trace(values, steps=None, per_epoch=10):
    steps = np.arange(1.0, len(values) + 1) if steps is None else np.asarray(steps, dtype=float)
    return MetricTrace(steps, steps / per_epoch, 2 * steps, np.asarray(values, dtype=float))


def naive_average(steps, values, decay):
    return [
        sum(decay ** (s - t) * v for t, v in zip(steps[: i + 1], values, strict=False))
        / sum(decay ** (s - t) for t in steps[: i + 1])
        for i, s in enumerate(steps)
    ]


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_moving_average_is_that_of_the_definition_also_over_gaps(decay):
    random = np.random.default_rng(0)
    steps = np.cumsum(random.integers(1, 60, 300))
    values = random.normal(size=300)
    smooth = trace(values, steps).smoothed(decay)
    np.testing.assert_allclose(smooth.values, naive_average(steps.astype(float), values, decay), atol=1e-12)


def test_the_moving_average_leaves_out_what_is_not_finite():
    smooth = trace([1.0, math.nan, 3.0, math.inf]).smoothed(0.5)
    np.testing.assert_allclose(smooth.values, [1.0, (0.25 * 1 + 3) / 1.25])
    assert smooth.steps.tolist() == [1, 3]
    assert len(trace([math.nan]).smoothed(0.5)) == 0


def test_wrong_traces_are_refused():
    with pytest.raises(ValueError, match="decay is 1; it must be between 0 and 1"):
        trace([1.0]).smoothed(1)
    with pytest.raises(ValueError, match="four arrays of one length"):
        MetricTrace(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(3))


def test_rises_are_where_a_number_goes_up():
    assert trace([1, 1, 0.5, 2, 2, 1, 3]).rises().tolist() == pytest.approx([0.4, 0.7])


def test_records_of_a_run_become_traces():
    records = [
        Record("event", 0, 0.0, 100.0, message="starts"),
        Record("step", 1, 0.5, 101.0, {"train/loss": 2.0}),
        Record("step", 2, 1.0, 103.0, {"train/loss": 1.0, "optimizer/learning_rate/a": 0.1}),
        Record("step", 2, 1.0, 104.0, {"train/loss": 0.9}),  # a second time, after a crash
        Record("evaluation", 2, 1.0, 105.0, {"test/accuracy": 0.5}),
    ]
    run = histories.history_of_records(Outcome("run", "recipe", "anything", "rate=0.1"), records)
    loss = run.traces["train/loss"]
    assert (loss.steps.tolist(), loss.seconds.tolist(), loss.values.tolist()) == ([1, 2], [1, 4], [2.0, 0.9])
    assert run.method == "anything rate=0.1"
    assert run.matching("optimizer/learning_rate/*") == ["optimizer/learning_rate/a"]
    assert run.matching("test/*") == ["test/accuracy"]
    assert run.matching("test/loss") == []
    assert RunHistory(run.outcome, {"a": trace([math.nan])}).matching("a") == []


def test_epochs_are_summed_up_by_quantiles_mean_and_end():
    values = np.random.default_rng(1).normal(size=30)
    run = trace(values)
    ends = binning.bin_ends([run], "epoch quantiles")
    assert ends.tolist() == [1, 2, 3]
    seconds, five = binning.bin_run(run, ends, "epoch quantiles", 0.99)
    for epoch in range(3):
        wanted = np.quantile(values[10 * epoch : 10 * epoch + 10], (0.05, 0.25, 0.5, 0.75, 0.95))
        np.testing.assert_allclose(five[:, epoch], wanted)
    assert seconds.tolist() == [20, 40, 60]
    means, last = (binning.bin_run(run, ends, how, 0.99)[1] for how in ("epoch mean", "epoch end"))
    np.testing.assert_allclose(means[2], values.reshape(3, 10).mean(1))
    np.testing.assert_allclose(last[2], values[9::10])


def test_a_long_run_becomes_few_points_with_the_range_of_what_they_stand_for():
    run = trace(np.sin(np.arange(20_000)))
    ends = binning.bin_ends([run], "values")
    assert len(ends) == binning.MOST
    _, (_, low, middle, high, _) = binning.bin_run(run, ends, "values", 0.99)
    assert np.all((low < middle) & (middle < high))
    assert (low.min(), high.max()) == (run.values.min(), run.values.max())


def test_runs_that_know_other_moments_keep_their_own():
    runs = [trace([1.0, 2.0], [10, 20]), trace([3.0], [15])]
    ends = binning.bin_ends(runs, "values")
    assert ends.tolist() == [1.0, 1.5, 2.0]
    middles = [binning.bin_run(run, ends, "values", 0.99)[1][2] for run in runs]
    np.testing.assert_array_equal(middles, [[1, math.nan, 2], [math.nan, 3, math.nan]])


def test_quartiles_put_infinite_runs_last():
    levels = np.empty((4, 5, 2))
    levels[:] = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, np.inf], [4.0, np.inf]])[:, None, :]
    _, low, middle, high, _ = binning.combine_runs(levels, "quartiles")
    assert low.tolist() == [1.75, 1.75]
    assert middle.tolist() == [2.5, np.inf]
    assert high.tolist() == [3.25, np.inf]
    _, low, middle, high, _ = binning.combine_runs(levels[:, :, :1], "range")
    assert (low[0], middle[0], high[0]) == (1.0, 2.5, 4.0)


def test_runs_of_other_conditions_are_other_lines():
    short, long = (Outcome("a", "r", "auto", conditions={"epochs": epochs}) for epochs in ("1", "3"))
    runs = separate_conditions([RunHistory(short), RunHistory(long)])
    assert [run.method for run in runs] == ["auto epochs=1", "auto epochs=3"]
    networks = [
        Outcome(name, "r", "auto", labels={"network": name}, conditions={"model.settings.seed": name}) for name in "ab"
    ]
    assert {run.method for run in separate_conditions([RunHistory(o) for o in networks])} == {"auto"}
