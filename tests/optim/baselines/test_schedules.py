"""Schedules of torch's own optimizers: the printed rates, what they need of the run, and mid-run states."""

import copy
import math

import pytest
import torch

import raycurv
from raycurv import optim
from tests.cases import BY_NAME

CASE = BY_NAME["mlp"]
HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=120)
STEPS = 20
BASELINES = ("sgd", "momentum", "nesterov", "rmsprop", "rmsprop_bias_corrected", "adam", "adagrad", "adadelta")
BASELINES += ("adamw", "nadamw", "prodigy", "muon", "ademamix")
# Names with a schedule of their own, and the share of the run in which their rate grows.
SCHEDULED = {"adamw_cosine": 0.05, "nadamw_algoperf": 0.02, "prodigy_cosine": 0.0}
ALGOPERF = {
    "learning_rate": 0.0017486387539278373,
    "beta1": 1 - 0.06733926164,
    "beta2": 0.9955159689799007,
    "weight_decay": 0.08121616522670176,
}


def one_cycle(k, warmup=0.3):
    """Rates over the peak: a cosine from 1/25 to 1 at step warmup·T − 1, and one from there to 1/250,000."""
    top, last = warmup * STEPS - 1, STEPS - 1
    start, end, share = (1 / 25, 1, k / top) if k <= top else (1, 1 / 250_000, (k - top) / (last - top))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def warmed(decay, warmup=1):
    """(k + 1)/(W + 1) up to step W, then `decay` of the share of what is left."""
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else decay((k - warmup) / (STEPS - warmup))


def half_cosine(share):
    return math.cos(math.pi * share / 2) ** 2


def line(share):
    return 1 - share


FACTORS = [
    ("constant", {}, lambda k: 1.0),
    ("exponential", {}, lambda k: 0.99 ** (k // 5)),
    ("exponential", {"schedule_decay": 0.5}, lambda k: 0.5 ** (k // 5)),
    ("multi_step", {}, lambda k: 0.1 ** ((k >= 10) + (k >= 15))),
    ("multi_step", {"milestones": (0.25,), "schedule_decay": 0.3}, lambda k: 0.3 ** (k >= 5)),
    ("one_cycle", {}, one_cycle),
    ("one_cycle", {"warmup": 0.5}, lambda k: one_cycle(k, 0.5)),
    ("one_cycle", {"warmup": 0.0}, lambda k: one_cycle(k, 0.0)),
    ("cosine", {}, warmed(half_cosine)),
    ("cosine", {"warmup": 0.3}, warmed(half_cosine, 6)),
    ("cosine", {"warmup": 0.0}, warmed(half_cosine, 0)),
    ("linear", {}, warmed(line)),
    ("linear", {"warmup": 0.5}, warmed(line, 10)),
    ("robbins_monro", {}, lambda k: 1 / (1 + k / 5)),
    ("robbins_monro", {"half_life": 2.0}, lambda k: 1 / (1 + k / 10)),
]
NAMES = sorted({name for name, _, _ in FACTORS})


def made(name="sgd", model=None, horizon=HORIZON, **settings):
    model = CASE.model() if model is None else model
    return model, raycurv.Objective(model, CASE.loss), optim.create(name, model, horizon=horizon, **settings)


def rates(objective, optimizer, steps=STEPS):
    batch = objective.batch(CASE.inputs, CASE.targets)
    return [float(optimizer.step(batch).scalars["learning_rate"]) for _ in range(steps)]


@pytest.mark.parametrize(("schedule", "numbers", "factor"), FACTORS)
def test_rates_follow_the_printed_rule(schedule, numbers, factor):
    _, objective, optimizer = made(schedule=schedule, learning_rate=0.3, **numbers)
    assert rates(objective, optimizer) == pytest.approx([0.3 * factor(k) for k in range(STEPS)], rel=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_moves_by_the_scheduled_rate(name):
    """A step at the rate of a schedule is the step of a constant optimizer whose rate is set by hand."""
    model, objective, optimizer = made(name, schedule="robbins_monro")
    other, others, constant = made(name)
    first = [group["lr"] for group in constant.param_groups]
    for k in range(8):
        for group, rate in zip(constant.param_groups, first, strict=True):
            group["lr"] = rate / (1 + k / 5)
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
        constant.step(others.batch(CASE.inputs, CASE.targets))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("schedule", NAMES)
def test_a_state_saved_in_mid_run_continues_identically(schedule):
    model, objective, optimizer = made("momentum", schedule=schedule)
    rates(objective, optimizer, 7)
    state = copy.deepcopy(optimizer.state_dict())
    twin, twins, other = made("momentum", copy.deepcopy(model), schedule=schedule)
    other.load_state_dict(state)
    assert rates(objective, optimizer, 10) == rates(twins, other, 10)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("schedule", NAMES)
def test_a_copy_goes_on_alone(schedule):
    model, objective, optimizer = made("momentum", schedule=schedule)
    rates(objective, optimizer, 3)
    twin, copied = copy.deepcopy((model, optimizer))
    assert rates(raycurv.Objective(twin, CASE.loss), copied, 9) == rates(objective, optimizer, 9)


@pytest.mark.parametrize("schedule", [name for name in NAMES if name != "constant"])
def test_the_last_rate_stays_after_the_end_and_a_longer_run_goes_on(schedule):
    _, objective, optimizer = made(schedule=schedule)
    found = rates(objective, optimizer, STEPS + 3)
    assert found[STEPS - 1 :] == [found[STEPS - 1]] * 4
    longer = optim.Horizon(epochs=8, steps_per_epoch=5, training_samples=120)
    _, others, other = made(schedule=schedule, horizon=longer)
    other.load_state_dict(optimizer.state_dict())
    assert len(rates(others, other, 5)) == 5


def test_parameter_groups_keep_their_ratio():
    model = CASE.model()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    groups = [{"params": first, "lr": 0.1}, {"params": second, "lr": 0.4}]
    optimizer = optim.create("sgd", groups, horizon=HORIZON, schedule="one_cycle")
    rates(raycurv.Objective(model, CASE.loss), optimizer, 8)
    low, high = (group["lr"] for group in optimizer.param_groups)
    assert high == pytest.approx(4 * low)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("schedule", NAMES)
def test_the_shortest_runs_have_finite_rates(schedule, length):
    _, objective, optimizer = made(schedule=schedule, horizon=optim.Horizon(length, 1, 24))
    assert all(0 < rate <= 0.01 for rate in rates(objective, optimizer, length))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "one of constant, exponential"),
        ({"schedule": "exponential", "schedule_decay": 1.5}, "schedule_decay is 1.5"),
        ({"schedule": "multi_step", "milestones": (0.7, 0.5)}, "increasing shares"),
        ({"schedule": "one_cycle", "warmup": 1.0}, "warmup is 1.0"),
        ({"schedule": "cosine", "warmup": -0.1}, "warmup is -0.1"),
        ({"schedule": "linear", "milestones": (0.5,)}, "left out: the numbers of this schedule are warmup"),
        ({"schedule": "robbins_monro", "half_life": 0.0}, "half_life is 0.0"),
        ({"schedule": "one_cycle", "schedule_decay": 0.9}, "left out: the numbers of this schedule are warmup"),
        ({"warmup": 0.1}, "left out: the numbers of this schedule are none"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


@pytest.mark.parametrize("schedule", [name for name in NAMES if name != "constant"])
def test_a_schedule_without_a_horizon_is_refused(schedule):
    with pytest.raises(ValueError, match="length of the run"):
        made(schedule=schedule, horizon=None)


@pytest.mark.parametrize(("name", "warmup"), SCHEDULED.items())
def test_a_name_with_a_schedule_is_the_plain_method_with_a_cosine(name, warmup):
    horizon = optim.Horizon(epochs=10, steps_per_epoch=10, training_samples=240)
    plain = name.rpartition("_")[0]
    settings = ALGOPERF if plain == "nadamw" else {}
    model, objective, optimizer = made(name, horizon=horizon)
    other, others, same = made(plain, horizon=horizon, schedule="cosine", warmup=warmup, **settings)
    assert rates(objective, optimizer, 12) == rates(others, same, 12)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert optimizer.follows_horizon
    with pytest.raises(ValueError, match="schedule"):
        made(name, horizon=horizon, schedule="linear")


@pytest.mark.parametrize("name", [*SCHEDULED, "schedule_free_adamw_algoperf"])
def test_a_name_with_a_schedule_needs_the_length_of_the_run(name):
    with pytest.raises(ValueError, match=r"horizon=Horizon\(epochs"):
        made(name, horizon=None)


def test_a_state_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match="another schedule"):
        made(schedule="exponential")[2].load_state_dict(made()[2].state_dict())
