import math

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim.salera import page_hinkley, paper_deviation, random_walk_mean, random_walk_variance
from tests.cases import BY_NAME
from tests.reference.salera import Agnostic

NAMES = ("alera", "salera", "spalera", "ag_adam")
CASES = ("mlp", "mlp-l2", "batch-norm", "dropout")
# Gains that move the rates within twenty steps, and for the tests rates that end in alarms.
SETTINGS = {
    "alera": {"learning_rate": 0.3, "memory": 0.1, "gain": 0.01},
    "salera": {"learning_rate": 12.0, "memory": 0.1, "gain": 0.01, "batch_ratio": 0.5},
    "spalera": {"learning_rate": 12.0, "memory": 0.1, "gain": 0.003, "batch_ratio": 0.5},
    # Adam's usual ε of 1e-8 makes steps of the rounding in gradients that are zero (biases before batch norm).
    "ag_adam": {"learning_rate": 0.01, "memory": 0.1, "gain": 0.01, "epsilon": 1e-3},
}


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[: 5 if step % 4 == 3 else 12]


def made(name, case_name="mlp", **settings):
    case = BY_NAME[case_name]
    model = case.model()
    return case, model, raycurv.Objective(model, case.loss, case.l2), optim.create(name, model, **settings)


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model, expected, **tolerances):
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=lambda m, key=key: f"{key}: {m}", **tolerances)


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_equal_the_naive_reference(name, case_name):
    settings = SETTINGS[name]
    case, model, objective, optimizer = made(name, case_name, **settings)
    reference_model = case.model()
    reference = Agnostic(
        reference_model,
        cross_entropy,
        case.l2,
        rate=settings["learning_rate"],
        alpha=settings["memory"],
        c=settings["gain"],
        rho=settings.get("batch_ratio"),
        each=name == "spalera",
        adam=name == "ag_adam",
        epsilon=1e-3,
    )
    for t in range(20):
        rows = rows_of(t)
        expected = reference.step(case.inputs[rows], case.targets[rows], seed=t)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        found = {"loss": report.loss, **report.scalars}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(value, rel=1e-10, abs=1e-10), (t, key)
        assert_same_state(model, reference_model.state_dict(), rtol=1e-10, atol=1e-10)
    if name in ("salera", "spalera"):
        assert reference.alarms > 0


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("alera", lambda p: torch.optim.SGD(p, lr=0.05)),
        ("salera", lambda p: torch.optim.SGD(p, lr=0.05)),
        ("spalera", lambda p: torch.optim.SGD(p, lr=0.05)),
        ("ag_adam", lambda p: torch.optim.Adam(p, lr=0.05, eps=1e-3)),
    ],
)
def test_without_gain_it_is_the_plain_optimizer(name, plain):
    case, model, objective, optimizer = made(
        name, "batch-norm", learning_rate=0.05, gain=0.0, **({"epsilon": 1e-3} if name == "ag_adam" else {})
    )
    other = case.model()
    reference = plain(other.parameters())
    for t in range(20):
        rows = rows_of(t)
        optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        reference.zero_grad()
        cross_entropy(other(case.inputs[rows]), case.targets[rows]).mean().backward()
        reference.step()
    assert_same_state(model, other.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("memory", "dimension", "steps"), [(0.1, 3, 7), (0.2, 20, 30), (0.4, 8, 4), (0.7, 2, 20)])
def test_mean_and_variance_are_those_of_random_walks(memory, dimension, steps):
    generator = torch.Generator().manual_seed(0)
    walks = 40_000
    r = torch.zeros(walks, dimension)
    for _ in range(steps):
        r = memory * nn.functional.normalize(torch.randn(walks, dimension, generator=generator)) + (1 - memory) * r
    squares = r.double().square().sum(1)
    assert squares.mean().item() == pytest.approx(random_walk_mean(memory, steps), rel=0.01)
    assert squares.var().item() == pytest.approx(random_walk_variance(memory, dimension, steps), rel=0.04)


def test_the_printed_variance_is_half_the_right_one():
    assert random_walk_variance(0.1, 50, 10_000) == pytest.approx(2 * paper_deviation(0.1, 50) ** 2)


def run_test(losses, ratio, **settings):
    test = torch.tensor([0.0, 0, 0, 0, 0, math.nan], dtype=torch.float64)
    fired = []
    for loss in losses:
        test, fires = page_hinkley(test, torch.tensor(loss, dtype=torch.float64), ratio, **settings)
        fired.append(bool(fires))
    return fired


def test_page_hinkley_keeps_quiet_on_a_falling_or_constant_loss():
    assert not any(run_test([2.0] * 500, 0.01))
    assert not any(run_test([2 * 0.99**t for t in range(500)], 0.01))


def test_a_first_loss_of_zero_does_not_set_off_the_test_for_ever():
    fired = run_test([0.0] * 5 + [1.0] + [0.9] * 300, 0.01)
    assert not any(fired[:6])
    assert not any(fired[-100:])


def test_page_hinkley_fires_soon_after_a_jump():
    fired = run_test([2.0] * 100 + [20.0] * 5, 0.01)
    assert not any(fired[:100])
    assert any(fired[100:103])


def test_a_more_sensitive_test_fires_sooner():
    losses = [2.0] * 100 + [4.0] * 200
    soonest = [run_test(losses, 0.01, sensitivity=s).index(True) for s in (1000.0, 100.0, 10.0)]
    assert 100 <= soonest[0] < soonest[1] < soonest[2]


@pytest.mark.parametrize("name", ["salera", "spalera"])
def test_an_explosion_brings_parameters_and_buffers_back_and_halves_the_rates(name):
    case, model, objective, optimizer = made(name, "batch-norm", learning_rate=0.1, batch_ratio=0.5)
    batches = [objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]) for t in range(12)]
    for batch in batches[:10]:
        optimizer.step(batch)
    good = state_of(model)
    optimizer.shared["growth"] += math.log(1e4)
    report = optimizer.step(batches[10])
    assert report.scalars["alarm"] == 0
    for buffer in ("1.running_mean", "1.num_batches_tracked"):
        good[buffer] = model.state_dict()[buffer].clone()  # what the last sound forward pass left
        assert not torch.equal(good[buffer], torch.zeros_like(good[buffer]))
    good |= {key: value.clone() for key, value in model.state_dict().items() if "running" in key or "tracked" in key}
    rate = float(report.scalars["learning_rate"])
    report = optimizer.step(batches[11])
    assert report.scalars["alarm"] == 1
    assert bool(report.finite)
    assert report.loss > 10
    assert_same_state(model, good, rtol=0, atol=0)
    assert float(report.scalars["learning_rate"]) == pytest.approx(rate / 2)


def steep(outputs, targets):
    """Infinite where an output is 30 off, with a gradient of NaN."""
    return (outputs - targets).square().exp().sum(1) * 0.01


@pytest.mark.parametrize("name", ["salera", "spalera"])
@pytest.mark.parametrize("loss", ["squared_error", steep], ids=["finite", "overflow"])
def test_a_run_with_a_forced_explosion_recovers(name, loss):
    case = BY_NAME["regression"]
    model = case.model()
    optimizer = optim.create(name, model, learning_rate=1e-3)
    batch = raycurv.Objective(model, loss).batch(case.inputs, case.targets)
    before = optimizer.step(batch).loss
    optimizer.shared["growth"] += math.log(1e5)
    reports = [optimizer.step(batch) for _ in range(100)]
    assert all(report.finite for report in reports)
    assert all(torch.isfinite(report.loss) for report in reports) == (loss == "squared_error")
    assert reports[-1].scalars["alarms"] >= 3
    assert batch.value() < before


@pytest.mark.parametrize("name", ["salera", "spalera"])
def test_rates_that_overflow_are_halved_until_they_do_not(name):
    case, model, objective, optimizer = made(name)
    batch = objective.batch(case.inputs, case.targets)
    optimizer.shared.update(optimizer._initial(objective))
    optimizer.shared["growth"] += math.log(1e300) + math.log(1e12)
    before = state_of(model)
    for _ in range(3):
        report = optimizer.step(batch)
        assert bool(report.finite)
        assert report.scalars["alarm"] == 1
    assert_same_state(model, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["salera", "spalera"])
def test_a_loss_that_is_nan_where_going_back_cures_nothing_is_reported(name):
    case, model, objective, optimizer = made(name, "batch-norm")
    good, bad = (objective.batch(case.inputs * factor, case.targets) for factor in (1.0, math.nan))
    before = state_of(model)
    assert not bool(optimizer.step(bad).finite)
    assert_same_state(model, before, rtol=0, atol=0)
    assert bool(optimizer.step(good).finite)
    cured = optimizer.step(bad)
    assert bool(cured.finite)
    assert cured.scalars["alarm"] == 1
    assert not bool(optimizer.step(bad).finite)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert bool(optimizer.step(good).finite)


@pytest.mark.parametrize("name", ["alera", "ag_adam"])
def test_nan_loss_skips_the_step_and_says_so(name):
    case, model, objective, optimizer = made(name)
    optimizer.step(objective.batch(case.inputs, case.targets))
    before, kept = state_of(model), {k: v.clone() for k, v in optimizer.shared.items()}
    assert not bool(optimizer.step(objective.batch(case.inputs * math.nan, case.targets)).finite)
    assert_same_state(model, before, rtol=0, atol=0)
    assert all(torch.equal(v, kept[k]) for k, v in optimizer.shared.items())
    assert bool(optimizer.step(objective.batch(case.inputs, case.targets)).finite)


class Rosenbrock(nn.Module):
    """Residuals (1 − u, 10(v − u²)) from (−1.2, 1)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def forward(self, x):
        return x * torch.stack([1 - self.w[0], 10 * (self.w[1] - self.w[0] ** 2)])


def on_rosenbrock(name, number, **settings):
    model = Rosenbrock()
    batch = raycurv.Objective(model, "squared_error").batch(torch.ones(1, 2).double(), torch.zeros(1, 2).double())
    optimizer = optim.create(name, model, **settings)
    return batch, [optimizer.step(batch) for _ in range(number)]


def test_on_rosenbrock_alera_diverges_and_salera_comes_back():
    _, reports = on_rosenbrock("alera", 20)
    assert not reports[-1].loss < 1e6
    for name in ("salera", "spalera"):
        batch, reports = on_rosenbrock(name, 200)
        assert all(report.finite for report in reports)
        assert reports[-1].scalars["alarms"] > 3
        assert batch.value() < 1


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradient_leaves_the_parameters(name):
    def flat(outputs, targets):
        return 0 * outputs.sum(1) + 1

    case = BY_NAME["mlp"]
    model = case.model()
    before, optimizer = state_of(model), optim.create(name, model)
    for _ in range(3):
        report = optimizer.step(raycurv.Objective(model, flat).batch(case.inputs, case.targets))
    assert bool(report.finite)
    assert_same_state(model, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_continues_identically(name):
    case, model, objective, optimizer = made(name, "batch-norm", **SETTINGS[name])

    def run(objective, optimizer, start):
        for t in range(start, start + 8):
            optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))

    run(objective, optimizer, 0)
    _, copy, other_objective, other = made(name, "batch-norm", **SETTINGS[name])
    copy.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    run(objective, optimizer, 8)
    run(other_objective, other, 8)
    assert_same_state(copy, model.state_dict(), rtol=0, atol=0)


def test_rates_are_reported_for_each_tensor_on_request():
    case, model, objective, optimizer = made("alera", rates_by_tensor=True, gain=0.01)
    for _ in range(3):
        scalars = optimizer.step(objective.batch(case.inputs, case.targets)).scalars
    rates = torch.stack([scalars[f"learning_rate/{name}"] for name, _ in model.named_parameters()])
    assert float(rates.min()) == pytest.approx(float(scalars["learning_rate_min"]))
    assert float(rates.max()) == pytest.approx(float(scalars["learning_rate_max"]))
    assert rates.min() < rates.max()


def test_the_horizon_gives_the_batch_ratio():
    model = BY_NAME["mlp"].model()
    assert optim.create("salera", model, horizon=optim.Horizon(2, 40, 999)).batch_ratio == 1 / 40
    assert optim.create("salera", model).batch_ratio == 0.01


def test_clipping_bounds_the_step():
    case, model, objective, optimizer = made("alera", clip_gradient=1e-3, learning_rate=2.0, gain=0.0)
    before = objective.direction(model.parameters()).flat.clone()
    optimizer.step(objective.batch(case.inputs, case.targets))
    moved = objective.direction(model.parameters()).flat - before
    assert float(moved.norm()) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("alera", {"learning_rate": 0.0}, "alera: learning_rate is 0.0"),
        ("alera", {"memory": 1.0}, "alera: memory is 1.0"),
        ("salera", {"gain": -1.0}, "salera: gain is -1.0"),
        ("spalera", {"batch_ratio": 0.0}, "spalera: batch_ratio is 0.0"),
        ("ag_adam", {"beta2": 1.0}, "ag_adam: beta2 is 1.0"),
        ("ag_adam", {"epsilon": 0.0}, "ag_adam: epsilon is 0.0"),
        ("salera", {"clip_gradient": 0.0}, "salera: clip_gradient is 0.0"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create(name, BY_NAME["mlp"].model(), **settings)


@pytest.mark.parametrize("name", NAMES)
def test_several_parameter_groups_are_refused(name):
    groups = [{"params": [p]} for p in BY_NAME["mlp"].model().parameters()]
    with pytest.raises(ValueError, match="takes no parameter groups"):
        optim.create(name, groups)


def test_no_number_is_read_from_the_device():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func.overloadpacket.__name__ == "_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    for name in NAMES:
        case, _, objective, optimizer = made(name, "batch-norm", **SETTINGS[name])
        objective.check_consistency = False  # the check of the first batch reads one number
        with Reads() as reads:
            for _ in range(6):
                optimizer.step(objective.batch(case.inputs, case.targets))
        assert reads.found == 0, name
