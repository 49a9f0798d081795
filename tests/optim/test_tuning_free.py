import io

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim.averaged_red import schedule_factor
from raycurv.optim.tuning_free import LLRRelativeDamping, SwitchingOptimizer
from tests.cases import BY_NAME
from tests.reference.auto import NaiveAveraged, NaiveRelative

HORIZON = optim.Horizon(epochs=4, steps_per_epoch=7, training_samples=84)
DIRECTIONS = {
    "red_sgd_free": {},
    "red_momentum_free": {"beta1": 0.8},
    "red_adam_free": {"beta1": 0.8, "beta2": 0.999},
}
HANDED_OVER = ("alera_free", "llr_free", "ntlr_sgd_free", "salera_free")


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[: 5 if step % 4 == 3 else 12]


def check_steps(case, model, optimizer, reference, steps):
    objective = raycurv.Objective(model, case.loss, case.l2)
    for t in range(steps):
        rows = rows_of(t)
        data = case.inputs[rows], case.targets[rows]
        expected = reference.step(*data, t)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(*data))
        found = {"loss": report.loss, **report.scalars}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(value, rel=1e-10, abs=1e-10), (t, key)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(flat, reference.theta, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "case_name"),
    [
        ("red_adam_free", "mlp"),
        ("red_adam_free", "batch-norm-l2"),
        ("red_adam_free", "dropout"),
        ("red_momentum_free", "mlp-l2"),
        ("red_sgd_free", "mlp-l2"),
    ],
)
def test_averaged_steps_equal_the_naive_reference(name, case_name):
    """Through the rise of the schedule, the steps without curvature, and its fall."""
    case = BY_NAME[case_name]
    model = case.model()
    optimizer = optim.create(name, model, horizon=HORIZON, start=0.5)
    reference = NaiveAveraged(case.model(), cross_entropy, case.l2, 28, start=0.5, **DIRECTIONS[name])
    check_steps(case, model, optimizer, reference, 24)


@pytest.mark.parametrize("case_name", ["mlp-l2", "batch-norm", "dropout"])
def test_a_relative_damping_equals_the_naive_reference(case_name):
    case = BY_NAME[case_name]
    model = case.model()
    optimizer = LLRRelativeDamping(model, learning_rate=0.1)
    check_steps(case, model, optimizer, NaiveRelative(case.model(), cross_entropy, case.l2, 0.1), 20)


def run(name, steps, *, factor=1.0, case_name="regression", **settings):
    case = BY_NAME[case_name]
    model = case.model()

    def loss(outputs, targets):
        return factor * (outputs - targets).square().sum(1)

    objective = raycurv.Objective(model, loss)
    optimizer = optim.create(name, model, horizon=HORIZON, **settings)
    reports = [optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)])) for t in range(steps)]
    return torch.cat([p.detach().flatten() for p in model.parameters()]), reports, optimizer, objective


@pytest.mark.parametrize("name", ["red_momentum_free", "llr_free"])
def test_the_scale_of_the_loss_does_not_matter(name):
    plain, scaled = (run(name, 20, factor=factor)[0] for factor in (1.0, 1e4))
    torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-4)


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def test_on_a_round_bowl_the_first_step_is_newtons_times_the_schedule():
    model = Bowl()
    optimizer = optim.create("red_sgd_free", model, horizon=HORIZON)
    batch = raycurv.Objective(model, "squared_error").batch(torch.ones(4, 3).double(), torch.zeros(4, 3).double())
    optimizer.step(batch)
    torch.testing.assert_close(model.w.detach(), torch.full((3,), 2.0 * (1 - schedule_factor(0, 28))).double())


def test_the_schedule_rises_stays_and_falls_to_zero():
    factors = [schedule_factor(step, 100) for step in range(101)]
    assert factors[0] == 0.1
    assert set(factors[9:75]) == {1.0}
    assert factors[75:] == sorted(factors[75:], reverse=True)
    assert factors[100] == schedule_factor(500, 100) == 0
    assert [schedule_factor(step, None) for step in (0, 49, 99, 10_000)] == [0.01, 0.5, 1, 1]


@pytest.mark.parametrize("start", [1e-5, 10.0])
@pytest.mark.parametrize("name", ["red_adam_free", "llr_free"])
def test_the_start_is_forgotten(name, start):
    rates = [float(run(name, 20, start=value)[1][-1].scalars["learning_rate"]) for value in (1.0, start)]
    assert rates[0] / 3 < rates[1] < rates[0] * 3


def test_curveball_forgets_its_first_damping():
    near, far = (float(run("curveball_free", 60, start=value)[1][-1].scalars["damping"]) for value in (1.0, 30.0))
    assert far < 30 * 0.9
    assert far / near < 30 * 0.9


@pytest.mark.parametrize("name", HANDED_OVER)
def test_a_method_takes_over_with_the_rate_that_was_found(name):
    _, reports, optimizer, _ = run(name, 14)  # half of 28 steps
    assert isinstance(optimizer, SwitchingOptimizer)
    assert optimizer.method is not None
    assert optimizer.found == pytest.approx(float(reports[-1].scalars["learning_rate"]))
    _, reports, _, _ = run(name, 15)
    assert "schedule" not in reports[-1].scalars
    assert float(reports[-1].scalars["learning_rate"]) == pytest.approx(optimizer.found, rel=1e-3)


def test_a_first_batch_without_curvature_does_not_change_llrs_rate_at_once():
    """Such as a batch of two samples that the network fits: from it alone, the rate would be thousands."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    objective = raycurv.Objective(model, "squared_error")
    optimizer = LLRRelativeDamping(model, learning_rate=0.07)
    flat = objective.batch(torch.full((2, 1), 1e-3).double(), torch.ones(2, 1).double())  # f″ = ‖g‖²·2e-6
    rates = [float(optimizer.step(flat).scalars["learning_rate"]) for _ in range(2)]
    assert rates[0] < rates[1] <= rates[0] * (1 + 1 / 29)


def test_llr_learns_on_after_a_first_batch_that_is_not_finite():
    case = BY_NAME["regression"]
    model = case.model()
    objective = raycurv.Objective(model, case.loss, case.l2)
    optimizer = LLRRelativeDamping(model, learning_rate=0.01)
    optimizer.step(objective.batch(case.inputs * float("nan"), case.targets))
    rates = [float(optimizer.step(objective.batch(case.inputs, case.targets)).scalars["learning_rate"]) for _ in "ab"]
    assert rates[0] != rates[1]


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_ntlr_with_a_rate_from_curvature_does_not_diverge_on_least_squares(seed):
    """Windows of four steps average out steps that go to and fro, so that the paper's rate grows for ever."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, 10, dtype=torch.float64)
    inputs = torch.randn(200, 10, generator=generator, dtype=torch.float64) * scales
    targets = inputs @ torch.randn(10, 1, generator=generator, dtype=torch.float64) * 3
    targets += 0.1 * torch.randn(200, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(10, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    objective = raycurv.Objective(model, "squared_error")
    optimizer = optim.create("ntlr_sgd_free", model, horizon=optim.Horizon(30, 20, 200))
    for _ in range(600):
        rows = torch.randint(200, (10,), generator=generator)
        report = optimizer.step(objective.batch(inputs[rows], targets[rows]))
    assert report.scalars["learning_rate"] <= optimizer.found
    assert objective.batch(inputs, targets).value() < 0.05  # the noise is 0.01, the start about 9


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", HANDED_OVER)
def test_a_state_saved_on_either_side_of_the_hand_over_loads_on_the_other(name, steps):
    _, _, optimizer, objective = run(name, steps)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": objective.model.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    _, _, other, copied = run(name, 30 - steps)
    copied.model.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    case = BY_NAME["regression"]
    for t in range(5):
        data = case.inputs[rows_of(t)], case.targets[rows_of(t)]
        assert torch.equal(optimizer.step(objective.batch(*data)).loss, other.step(copied.batch(*data)).loss)


@pytest.mark.parametrize("name", [*DIRECTIONS, *HANDED_OVER, "curveball_free"])
def test_a_bad_start_is_refused(name):
    with pytest.raises(ValueError, match="start is 0"):
        optim.create(name, BY_NAME["mlp"].model(), start=0.0)
