import math

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from tests.cases import BY_NAME
from tests.reference.learned_rate import Learned

NAMES = ("llr_first_order", "llr_second_order")
CASES = ("mlp", "mlp-l2", "batch-norm", "dropout")
# Rates that move within twenty steps.
SETTINGS = {
    "llr_first_order": {"learning_rate": 0.2, "meta_rate": 0.5},
    "llr_second_order": {"learning_rate": 0.2, "difference": 5e-4},
}
OF_REFERENCE = {"learning_rate": "eta", "meta_rate": "alpha", "difference": "epsilon", "momentum": "beta"}


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[: 5 if step % 4 == 3 else 12]


def made(name, case_name="mlp", **settings):
    case = BY_NAME[case_name]
    model = case.model()
    return case, model, raycurv.Objective(model, case.loss, case.l2), optim.create(name, model, **settings)


def check_against_reference(name, case_name, order, tolerance=1e-10, held_out=False, **more):
    settings = SETTINGS[name] | more
    case, model, objective, optimizer = made(name, case_name, **settings)
    arguments = {OF_REFERENCE[key]: value for key, value in settings.items() if key in OF_REFERENCE}
    reference = Learned(case.model(), cross_entropy, case.l2, order=order, **arguments)
    for t in range(20):
        rows, others = rows_of(t), rows_of(100 + t)
        data, other = ((case.inputs[r], case.targets[r]) for r in (rows, others))
        expected = reference.step(*data, t, (*other, t) if held_out else None)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(*data), validation=objective.batch(*other) if held_out else None)
        found = {"loss": report.loss, **report.scalars}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            slack = tolerance * (1e5 if order == "differences" and key == "curvature" else 1)
            assert float(found[key]) == pytest.approx(value, rel=slack, abs=slack), (t, key)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(flat, reference.w, rtol=tolerance, atol=tolerance)
    assert abs(reference.eta - settings["learning_rate"]) > 1e-3


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize(("name", "order"), [("llr_first_order", "first"), ("llr_second_order", "second")])
def test_twenty_steps_equal_the_naive_reference(name, order, case_name):
    check_against_reference(name, case_name, order)


@pytest.mark.parametrize(("name", "order"), [("llr_first_order", "first"), ("llr_second_order", "second")])
def test_momentum_on_the_rate_equals_the_naive_reference(name, order):
    check_against_reference(name, "batch-norm", order, momentum=0.9)


@pytest.mark.parametrize(("name", "order"), [("llr_first_order", "first"), ("llr_second_order", "second")])
def test_rates_learned_on_a_validation_batch_equal_the_naive_reference(name, order):
    check_against_reference(name, "batch-norm", order, held_out=True, on_validation=True)


@pytest.mark.parametrize("case_name", CASES)
def test_finite_differences_are_equations_10_and_12(case_name):
    """The second difference of numbers near 1 keeps few digits; the damped rate keeps more."""
    check_against_reference("llr_second_order", case_name, "differences", tolerance=1e-7, derivatives="differences")


def test_differences_in_float64_serve_a_float32_network():
    case = BY_NAME["dropout"]
    model = case.model().float()
    objective = raycurv.Objective(model, case.loss, 0.01)
    batch = objective.batch(case.inputs.float(), case.targets)
    exact, differences = (
        optim.create("llr_second_order", model, derivatives=kind, learning_rate=0.1)
        for kind in ("exact", "differences")
    )
    descent = batch.gradient().scaled(-1)
    rate = torch.tensor(0.1, dtype=torch.float64)
    expected = exact._along(batch, descent, rate)
    found = differences._along(batch, descent, rate)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=0)
    report = differences.step(batch)
    assert bool(report.finite)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_damping_is_the_papers():
    assert made("llr_second_order")[3].damping == pytest.approx(2500)


class Parabola(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
        self.register_buffer("root", torch.tensor([2.0, 2.0], dtype=torch.float64))

    def forward(self, x):
        return x * self.root * self.w


@pytest.mark.parametrize("derivatives", ["exact", "differences"])
@pytest.mark.parametrize("start", [1e-4, 0.03, 0.4])
def test_newton_without_damping_lands_on_the_minimum_in_one_step_of_the_rate(start, derivatives):
    model = Parabola()
    batch = raycurv.Objective(model, "squared_error").batch(torch.ones(1, 2).double(), torch.zeros(1, 2).double())
    difference = 1e-2 if derivatives == "differences" else 1e-5  # exact on a parabola, so as large as one likes
    optimizer = optim.create(
        "llr_second_order", model, learning_rate=start, damping=0.0, derivatives=derivatives, difference=difference
    )
    gradient = batch.gradient()
    before = model.w.detach().clone()
    optimizer.step(batch)
    learned = optimizer.shared["rate"]
    assert float(learned) == pytest.approx(1 / 8, rel=1e-9)  # f″ = 2·2² in both directions
    torch.testing.assert_close(before - learned * gradient[0], torch.zeros(2).double(), rtol=0, atol=1e-9)
    optimizer.step(batch)
    optimizer.step(batch)
    assert batch.value() < 1e-12


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


@pytest.mark.parametrize("name", NAMES)
def test_on_rosenbrock_the_first_steps_diverge_at_the_default_rate_and_not_at_a_small_one(name):
    _, reports = on_rosenbrock(name, 10)
    assert not reports[-1].loss < 1e6
    batch, reports = on_rosenbrock(name, 300, learning_rate=1e-4, **({"meta_rate": 1e-9} if "first" in name else {}))
    assert all(report.finite for report in reports)
    assert batch.value() < 5


def test_without_a_meta_rate_it_is_plain_descent():
    case, model, objective, optimizer = made("llr_first_order", "batch-norm", meta_rate=0.0, learning_rate=0.05)
    other = case.model()
    reference = torch.optim.SGD(other.parameters(), lr=0.05)
    for t in range(10):
        rows = rows_of(t)
        optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        reference.zero_grad()
        cross_entropy(other(case.inputs[rows]), case.targets[rows]).mean().backward()
        reference.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_rates_stay_above_the_floor(name):
    strong = {"llr_first_order": {"meta_rate": 1e3}, "llr_second_order": {"damping": 1e-3}}[name]
    case, _, objective, optimizer = made(name, learning_rate=3.0, floor=0.02, **strong)
    rates = []
    for t in range(15):
        rows = rows_of(t)
        rates.append(
            float(optimizer.step(objective.batch(case.inputs[rows], case.targets[rows])).scalars["learning_rate"])
        )
    assert min(rates) == pytest.approx(0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_start_below_the_floor_is_the_floor(name):
    """The paper starts the first order from 1e-7, with δ = 1e-6."""
    still = {"llr_first_order": {"meta_rate": 0.0}, "llr_second_order": {"damping": 1e12}}[name]
    case, _, objective, optimizer = made(name, learning_rate=1e-7, **still)
    batch = objective.batch(case.inputs, case.targets)
    reports = [optimizer.step(batch) for _ in range(3)]
    assert float(reports[-1].scalars["learning_rate"]) == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("derivatives", ["exact", "differences"])
def test_questions_about_the_next_point_and_the_validation_batch_move_no_statistics(derivatives):
    case, model, objective, optimizer = made(
        "llr_second_order", "batch-norm", on_validation=True, derivatives=derivatives
    )
    plain = case.model()
    plain(case.inputs)
    optimizer.step(
        objective.batch(case.inputs, case.targets), validation=objective.batch(3 * case.inputs, case.targets)
    )
    for (key, found), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_validation_batch_is_asked_for(name):
    case, _, objective, optimizer = made(name, on_validation=True)
    assert optimizer.needs_validation
    assert not made(name)[3].needs_validation
    batch = objective.batch(case.inputs, case.targets)
    with pytest.raises(ValueError, match="needs step"):
        optimizer.step(batch)
    with pytest.raises(TypeError, match=r"Objective\.batch"):
        optimizer.step(batch, validation=case.inputs)


@pytest.mark.parametrize("settings", [{}, {"on_validation": True}], ids=["training", "validation"])
@pytest.mark.parametrize("name", NAMES)
def test_nan_loss_skips_the_step_and_says_so(name, settings):
    case, model, objective, optimizer = made(name, **settings)
    good, bad = (objective.batch(case.inputs * factor, case.targets) for factor in (1.0, math.nan))
    optimizer.step(good, validation=good)
    before, kept = [p.detach().clone() for p in model.parameters()], dict(optimizer.shared)
    assert not bool(optimizer.step(bad, validation=good).finite)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(value, kept[key]) for key, value in optimizer.shared.items())
    assert bool(optimizer.step(good, validation=good).finite)


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradient_leaves_parameters_and_rate(name):
    def flat(outputs, targets):
        return 0 * outputs.sum(1) + 1

    case = BY_NAME["mlp"]
    model = case.model()
    objective, optimizer = raycurv.Objective(model, flat), optim.create(name, model)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        report = optimizer.step(objective.batch(case.inputs, case.targets))
    assert bool(report.finite)
    assert float(report.scalars["learning_rate"]) == pytest.approx(0.01)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_continues_identically(name):
    case, model, objective, optimizer = made(name, "batch-norm", momentum=0.9, **SETTINGS[name])

    def run(objective, optimizer, start):
        for t in range(start, start + 6):
            optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))

    run(objective, optimizer, 0)
    _, other, other_objective, copy = made(name, "batch-norm", momentum=0.9, **SETTINGS[name])
    other.load_state_dict(model.state_dict())
    copy.load_state_dict(optimizer.state_dict())
    run(objective, optimizer, 6)
    run(other_objective, copy, 6)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llr_first_order", {"meta_rate": -1.0}, "llr_first_order: meta_rate is -1.0"),
        ("llr_first_order", {"learning_rate": 0.0}, "learning_rate is 0.0"),
        ("llr_second_order", {"derivatives": "guess"}, "derivatives is 'guess'"),
        ("llr_second_order", {"difference": 0.0}, "difference is 0.0"),
        ("llr_second_order", {"damping": -1.0}, "damping is -1.0"),
        ("llr_second_order", {"momentum": 1.0}, "momentum is 1.0"),
        ("llr_second_order", {"floor": -1.0}, "floor is -1.0"),
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


@pytest.mark.parametrize("derivatives", ["exact", "differences"])
def test_no_number_is_read_from_the_device(derivatives):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func.overloadpacket.__name__ == "_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    case, model, objective, second = made("llr_second_order", "batch-norm-l2", derivatives=derivatives)
    objective.check_consistency = False  # the check of the first batch reads one number
    first = optim.create("llr_first_order", model)
    with Reads() as reads:
        for optimizer in (first, second, first, second):
            optimizer.step(objective.batch(case.inputs, case.targets))
    assert reads.found == 0
