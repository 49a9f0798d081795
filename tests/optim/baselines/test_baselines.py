"""Step-Tuned SGD, SPS and SLS: naive references, limiting cases, what they refuse."""

import math

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from tests.cases import BY_NAME
from tests.reference import baselines

HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=60)
NAMES = ("step_tuned_sgd", "sps", "sls")
REFERENCES = {
    "step_tuned_sgd": (baselines.StepTuned, {}),
    "sps": (baselines.Polyak, {"steps_per_epoch": 5}),
    "sls": (baselines.LineSearch, {"steps_per_epoch": 5}),
}
CASES = ("mlp", "mlp-l2", "regression", "batch-norm-l2", "dropout")


def named_loss(case):
    if case.loss == "cross_entropy":
        return lambda o, y: nn.functional.cross_entropy(o, y, reduction="none")
    return lambda o, y: ((o - y) ** 2).sum(1)


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[:12]


def made(name, case_name="mlp", horizon=HORIZON, **settings):
    case = BY_NAME[case_name]
    model = case.model()
    return (
        case,
        model,
        raycurv.Objective(model, case.loss, case.l2),
        optim.create(name, model, horizon=horizon, **settings),
    )


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_twenty_steps_equal(reference, arguments, case, model, objective, optimizer):
    for t in range(20):
        rows = rows_of(t)
        reference.batch(case.inputs[rows], case.targets[rows], seed=t)
        expected = reference.step(**arguments)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        torch.testing.assert_close(flat(model), reference.w, rtol=1e-10, atol=1e-10)
        found = {"loss": report.loss, **report.scalars}
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(value, rel=1e-10, abs=1e-10), (t, key)


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_equal_the_naive_reference(name, case_name):
    case, model, objective, optimizer = made(name, case_name)
    build, arguments = REFERENCES[name]
    reference = build(case.model(), named_loss(case), case.l2)
    assert_twenty_steps_equal(reference, arguments, case, model, objective, optimizer)


@pytest.mark.parametrize("case_name", CASES)
def test_the_bias_corrected_rmsprop_is_the_standard_one_of_red(case_name):
    settings = {"learning_rate": 0.01, "schedule": "exponential", "schedule_decay": 0.97}
    case, model, objective, optimizer = made("rmsprop_bias_corrected", case_name, **settings)
    reference = baselines.StandardRmsProp(case.model(), named_loss(case), case.l2)
    assert_twenty_steps_equal(
        reference, {"steps_per_epoch": 5, "rate": 0.01, "d": 0.97}, case, model, objective, optimizer
    )


def test_torchs_rmsprop_is_another_method_than_the_bias_corrected_one():
    ends = []
    for name, settings in (("rmsprop", {"decay": 0.999}), ("rmsprop_bias_corrected", {"beta2": 0.999})):
        case, model, objective, optimizer = made(name, **settings)
        for t in range(30):
            optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))
        ends.append(flat(model))
    assert torch.linalg.vector_norm(ends[0] - ends[1]) > 0.05 * torch.linalg.vector_norm(ends[1])


class Parabola(nn.Module):
    """J = Σ (x w)² on one sample: curvature 2x² along each axis."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def parabola(start, x, name, **settings):
    model = Parabola(start)
    x = torch.tensor([x], dtype=torch.float64)
    batch = raycurv.Objective(model, "squared_error").batch(x, 0 * x)
    return model, batch, optim.create(name, model, **settings)


# --- Step-Tuned SGD ---------------------------------------------------------------------------------------------------


def test_step_tuned_with_a_factor_of_one_is_sgd_twice_on_a_batch():
    case, model, objective, optimizer = made("step_tuned_sgd", smallest_factor=1.0, largest_factor=1.0, decay=0.0)
    other = case.model()
    others, sgd = raycurv.Objective(other, case.loss), torch.optim.SGD(other.parameters(), lr=1.0)
    for t in range(6):
        rows = rows_of(t)
        optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        sgd.param_groups[0]["lr"] = 0.1 / math.sqrt(t + 1)
        for _ in range(2):
            for p, g in zip(
                other.parameters(), others.batch(case.inputs[rows], case.targets[rows]).gradient(), strict=True
            ):
                p.grad = g
            sgd.step()
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-12, atol=1e-12)


def test_step_tuned_finds_the_inverse_curvature_of_a_parabola():
    """Barzilai and Borwein's step: γ = 1/(2x²), whatever the batch."""
    _, batch, optimizer = parabola([1.0], [0.8], "step_tuned_sgd", memory=0.0)
    optimizer.step(batch)
    assert float(optimizer.step(batch).scalars["factor"]) == pytest.approx(1 / (2 * 0.8**2), rel=1e-12)


def test_step_tuned_takes_the_concave_factor_where_the_objective_bends_down():
    model = nn.Linear(1, 1, bias=False).double()
    concave = raycurv.Objective(model, lambda o, y: (4 - o.square()).sum(1))
    batch = concave.batch(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1))
    optimizer = optim.create("step_tuned_sgd", model, concave_factor=1.7)
    optimizer.step(batch)
    assert float(optimizer.step(batch).scalars["factor"]) == 1.7


def test_step_tuned_gives_up_a_step_whose_second_gradient_is_not_finite():
    """After a first half step that leaves the domain of the objective, everything is where it was."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    edge = raycurv.Objective(model, lambda o, y: (o - o.log()).sum(1))
    batch = edge.batch(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1))
    optimizer = optim.create("step_tuned_sgd", model, learning_rate=10.0)
    report = optimizer.step(batch)  # 3 − 10·(1 − 1/3) < 0
    assert not bool(report.finite)
    assert model.weight.item() == 3.0
    assert float(optimizer.shared["steps"]) == 0


# --- SPS --------------------------------------------------------------------------------------------------------------


def test_sps_lands_on_the_minimum_of_a_one_dimensional_parabola_in_one_step():
    model, batch, optimizer = parabola([3.0], [2.0], "sps")
    optimizer.step(batch)
    assert model.w.item() == pytest.approx(0, abs=1e-12)


def test_sps_with_a_low_bound_is_sgd():
    case, model, objective, optimizer = made("sps", growth=1.0, largest_first_rate=1e-3)
    other = case.model()
    others, sgd = raycurv.Objective(other, case.loss), optim.create("sgd", other, learning_rate=1e-3)
    for t in range(5):
        for o, m in ((objective, optimizer), (others, sgd)):
            m.step(o.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-12, atol=1e-12)


def test_sps_grows_at_most_by_its_factor_in_an_epoch():
    case, _, objective, optimizer = made("sps", largest_first_rate=1e-4)
    batch = objective.batch(case.inputs, case.targets)
    rates = [float(optimizer.step(batch).scalars["learning_rate"]) for _ in range(11)]
    assert rates[5] == pytest.approx(2 * rates[0])
    assert rates[10] == pytest.approx(4 * rates[0])


def test_sps_does_not_go_uphill_below_its_bound_of_the_loss():
    model, batch, optimizer = parabola([0.1], [1.0], "sps", lower_bound=1.0)
    optimizer.step(batch)
    assert model.w.item() == 0.1


# --- SLS --------------------------------------------------------------------------------------------------------------


def test_sls_satisfies_armijos_condition_and_takes_the_first_such_rate():
    _, batch, optimizer = parabola([1.0, 1.0], [1.0, 3.0], "sls")
    value, gradient = batch.value_and_gradient()
    steps = [0.9**i for i in range(60)]
    values = batch.values_along(gradient.scaled(-1.0), steps)
    bound = value - 0.1 * torch.tensor(steps, dtype=torch.float64) * gradient.flat.square().sum()
    expected = steps[int((values <= bound).nonzero()[0])]
    assert float(optimizer.step(batch).scalars["learning_rate"]) == pytest.approx(expected, rel=1e-12)


def test_sls_stays_where_no_rate_lowers_the_objective():
    case, model, objective, optimizer = made("sls", learning_rate=1e3, attempts=2)
    before = flat(model)
    report = optimizer.step(objective.batch(case.inputs, case.targets))
    assert bool(report.finite)
    assert float(report.scalars["learning_rate"]) == 0
    assert torch.equal(flat(model), before)


def test_sls_never_exceeds_its_largest_rate():
    _, batch, optimizer = parabola([1.0], [1e-3], "sls", horizon=optim.Horizon(9, 1, 1), largest_rate=3.0)
    assert [float(optimizer.step(batch).scalars["learning_rate"]) for _ in range(4)] == [1, 2, 3, 3]


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_converges_on_a_quadratic_that_every_batch_interpolates(name):
    torch.manual_seed(0)
    x, truth = torch.randn(40, 5, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    objective = raycurv.Objective(model, "squared_error")
    optimizer = optim.create(name, model, horizon=optim.Horizon(30, 4, 40))
    before = float(objective.batch(x, x @ truth).value())
    for _ in range(120):
        rows = torch.randperm(40)[:10]
        optimizer.step(objective.batch(x[rows], x[rows] @ truth))
    assert float(objective.batch(x, x @ truth).value()) < 1e-3 * before


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("step_tuned_sgd", {"memory": 1.0}, "memory is 1.0"),
        ("step_tuned_sgd", {"largest_factor": 0.1}, "at least smallest_factor"),
        ("step_tuned_sgd", {"decay": 0.5}, "decay is 0.5"),
        ("sps", {"scale": 0.0}, "scale is 0.0"),
        ("sps", {"growth": 0.5}, "growth is 0.5"),
        ("sps", {"lower_bound": math.nan}, "lower_bound is nan"),
        ("sls", {"decrease": 1.0}, "decrease is 1.0"),
        ("sls", {"backtracking": 1.0}, "backtracking is 1.0"),
        ("sls", {"attempts": 0}, "attempts is 0"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        made(name, **settings)
