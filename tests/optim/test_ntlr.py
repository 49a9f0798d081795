import math
import warnings

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim.ntlr import WindowDirections, WindowedRate, additive, multiplicative, newton
from tests.cases import BY_NAME
from tests.reference.ntlr import Windowed

NAMES = ("ntlr_sgd", "ntlr_adam", "hypergradient_additive", "hypergradient_multiplicative")
HORIZON = optim.Horizon(2, 15, 180)  # windows of three steps
RULES = {
    "ntlr_sgd": "newton",
    "ntlr_adam": "newton",
    "hypergradient_additive": "additive",
    "hypergradient_multiplicative": "multiplicative",
}
RATES = {"ntlr_adam": 0.003}


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[: 5 if step % 4 == 3 else 12]


def made(name, case_name="mlp", horizon=HORIZON, **settings):
    case = BY_NAME[case_name]
    model = case.model()
    optimizer = optim.create(name, model, horizon=horizon, **settings)
    return case, model, raycurv.Objective(model, case.loss, case.l2), optimizer


# Adam makes steps of the rounding in a gradient that is zero, as the bias's in front of batch norm is.
@pytest.mark.parametrize("case_name", ["mlp", "mlp-l2", "batch-norm", "dropout"])
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_equal_the_naive_reference(name, case_name):
    rate, tolerance = RATES.get(name, 0.1), 1e-8 if (name, case_name) == ("ntlr_adam", "batch-norm") else 1e-10
    case, model, objective, optimizer = made(name, case_name, learning_rate=rate)
    other = case.model()
    meta = {"newton": 0.33}.get(RULES[name], 0.1)
    reference = Windowed(
        other, cross_entropy, case.l2, rate=rate, k=3, rule=RULES[name], meta=meta, adam=name == "ntlr_adam"
    )
    for t in range(20):
        rows = rows_of(t)
        expected = reference.step(case.inputs[rows], case.targets[rows], seed=t)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        found = {"loss": report.loss, **report.scalars}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(value, rel=tolerance, abs=tolerance), (t, key)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    assert reference.alpha != rate


@pytest.mark.parametrize(
    ("name", "settings", "plain"),
    [
        ("ntlr_sgd", {"damping": 0.0}, "sgd"),
        ("ntlr_adam", {"damping": 0.0}, "adam"),
        ("hypergradient_additive", {"meta_rate": 0.0}, "sgd"),
        ("hypergradient_multiplicative", {"meta_rate": 0.0}, "sgd"),
    ],
)
def test_without_a_meta_step_it_is_the_plain_optimizer(name, settings, plain):
    case, model, objective, optimizer = made(name, "batch-norm", **settings)
    _, other, other_objective, reference = made(plain, "batch-norm")
    for t in range(12):
        batch = (case.inputs[rows_of(t)], case.targets[rows_of(t)])
        optimizer.step(objective.batch(*batch))
        reference.step(other_objective.batch(*batch))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


class Parabola(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def test_the_undamped_factor_is_newtons_on_a_parabola():
    """With one step a window and γ = 1, the rate becomes 1/f″ whatever it was."""
    model = Parabola()
    objective = raycurv.Objective(model, "squared_error")
    batch = objective.batch(torch.ones(1, 1).double(), torch.zeros(1, 1).double())  # f″ = 2
    optimizer = WindowedRate(torch.optim.SGD(model.parameters(), lr=0.03), newton(1.0), window=1)
    for _ in range(2):
        optimizer.step(batch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)
    optimizer.step(batch)
    assert model.w.item() == pytest.approx(0.0, abs=1e-12)


def test_rates_stay_where_the_denominator_is_not_positive():
    factor = newton(0.33)
    assert factor(0.1, WindowDirections(cross=2.0, old=1.0, new=4.0)) == 1.0
    assert factor(0.1, WindowDirections(cross=1.0, old=1.0, new=1.0)) == 1.0
    assert factor(0.1, WindowDirections(cross=0.0, old=0.0, new=1.0)) == 1.0


def test_factors_are_bounded():
    assert newton(1.0)(0.1, WindowDirections(cross=1.0, old=1 + 1e-9, new=1.0)) == 100.0
    assert newton(1.0)(0.1, WindowDirections(cross=-1e9, old=1.0, new=1e18)) > 0
    assert additive(1.0)(0.1, WindowDirections(cross=-5.0, old=1.0, new=25.0)) == 0.01
    assert multiplicative(5.0)(0.1, WindowDirections(cross=-1.0, old=1.0, new=1.0)) == 0.01
    assert multiplicative(5.0)(0.1, WindowDirections(cross=0.0, old=0.0, new=1.0)) == 1.0


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


@pytest.mark.parametrize("name", ["ntlr_sgd", "hypergradient_additive", "hypergradient_multiplicative"])
def test_on_rosenbrock_the_first_window_diverges_at_the_default_rate_and_not_at_a_small_one(name):
    _, reports = on_rosenbrock(name, 10)
    assert not reports[-1].loss < 1e6
    small = {"hypergradient_additive": {"meta_rate": 1e-9}}.get(name, {})  # its scale is that of the gradients
    batch, reports = on_rosenbrock(name, 500, learning_rate=1e-4, **small)
    assert all(report.finite for report in reports)
    assert batch.value() < 5


def test_many_windows_on_one_batch_let_the_rate_run_away():
    """The paper's final remark: an increase of the rate may lead to exploding gradients."""
    case, _, objective, optimizer = made("ntlr_adam")
    batch = objective.batch(case.inputs, case.targets)
    reports = [optimizer.step(batch) for _ in range(300)]
    assert float(reports[-1].scalars["learning_rate"]) > 100


@pytest.mark.parametrize("start", [1e-5, 1e-3, 0.1])
def test_far_starts_end_at_similar_rates(start):
    case, _, objective, optimizer = made("ntlr_sgd", learning_rate=start)
    batch = objective.batch(case.inputs, case.targets)
    for _ in range(90):
        report = optimizer.step(batch)
    assert 0.05 < float(report.scalars["learning_rate"]) < 50


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_continues_identically(name):
    case, model, objective, optimizer = made(name, "batch-norm")

    def run(objective, optimizer, start):
        for t in range(start, start + 8):  # ends in the middle of a window
            optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))

    run(objective, optimizer, 0)
    _, other, other_objective, copy = made(name, "batch-norm")
    other.load_state_dict(model.state_dict())
    copy.load_state_dict(optimizer.state_dict())
    run(objective, optimizer, 8)
    run(other_objective, copy, 8)
    assert copy.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != made(name)[3].param_groups[0]["lr"]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_loaded_state_is_a_copy():
    case, _, objective, optimizer = made("ntlr_sgd")
    optimizer.step(objective.batch(case.inputs, case.targets))
    copy = made("ntlr_sgd")[3]
    copy.load_state_dict(optimizer.state_dict())
    assert copy.shared["start"].data_ptr() != optimizer.shared["start"].data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_nan_loss_is_reported_and_leaves_the_parameters_finite(name):
    case, model, objective, optimizer = made(name)
    for t in range(9):
        factor = math.nan if t in (2, 4) else 1.0
        report = optimizer.step(objective.batch(case.inputs * factor, case.targets))
        assert bool(report.finite) == (factor == 1.0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert 0 < optimizer.param_groups[0]["lr"] < math.inf


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_read_once_a_window(name):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func.overloadpacket.__name__ == "_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    case, _, objective, optimizer = made(name, horizon=optim.Horizon(1, 20, 240))
    objective.check_consistency = False  # the check of the first batch reads one number
    with Reads() as reads:
        for _ in range(7):  # the second window of four is not over
            optimizer.step(objective.batch(case.inputs, case.targets))
    # torch's Adam reads its own step counters, which it keeps on the host.
    assert reads.found == (7 * len(optimizer.param_groups[0]["params"]) if name == "ntlr_adam" else 0)


def test_windows_follow_the_horizon():
    model = BY_NAME["mlp"].model()
    assert optim.create("ntlr_sgd", model, horizon=optim.Horizon(1, 469, 60_000)).window == 94
    assert optim.create("ntlr_sgd", model, horizon=optim.Horizon(1, 2, 24)).window == 1
    assert optim.create("ntlr_sgd", model).window == 100


def test_a_window_shorter_than_adams_memory_is_warned_of():
    def warned(name, steps, **settings):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            optim.create(name, BY_NAME["mlp"].model(), horizon=optim.Horizon(1, steps, 12 * steps), **settings)
        return [str(warning.message) for warning in found]

    (message,) = warned("ntlr_adam", 25)
    assert message.startswith("the window of the learning rate has 5 steps, fewer than the 10 over which Adam averages")
    assert not warned("ntlr_adam", 50)
    assert not warned("ntlr_adam", 25, beta1=0.8)
    assert not warned("ntlr_sgd", 2)
    momentum = torch.optim.SGD(BY_NAME["mlp"].model().parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="the 10 over which SGD averages"):
        WindowedRate(momentum, newton(0.33), window=9)


def test_the_rate_may_have_a_bound():
    case, _, objective, optimizer = made("ntlr_sgd", learning_rate=1e-3, largest_rate=2e-3)
    rates = []
    for t in range(30):
        report = optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(2e-3)
    assert report.scalars["learning_rate_factor"] <= 2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "ntlr_sgd",
            {"largest_rate": 0.001},
            "largest_rate is 0.001; it must be None or at least the learning_rate 0.01",
        ),
        ("ntlr_sgd", {"learning_rate": 0.0}, "ntlr_sgd: learning_rate is 0.0"),
        ("ntlr_adam", {"portion": 0.0}, "ntlr_adam: portion is 0.0"),
        ("ntlr_sgd", {"damping": 1.5}, "ntlr_sgd: damping is 1.5"),
        ("hypergradient_additive", {"meta_rate": -1.0}, "hypergradient_additive: meta_rate is -1.0"),
        ("hypergradient_multiplicative", {"clip_gradient": 0.0}, "clip_gradient is 0.0"),
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


def test_any_torch_optimizer_with_a_rate_can_be_wrapped():
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer = WindowedRate(torch.optim.RMSprop(model.parameters(), lr=1e-4), newton(0.33), window=2)
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    for _ in range(10):
        report = optimizer.step(batch)
    assert report.scalars["learning_rate"] > 2e-4
    groups = [{"params": [p]} for p in model.parameters()]
    with pytest.raises(ValueError, match="one parameter group"):
        WindowedRate(torch.optim.SGD(groups, lr=0.1), newton(0.33), window=2)
