import math

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim.curveball import rescaled_damping, solve_system
from tests.cases import BY_NAME, CASES, Case
from tests.reference.curveball import DenseCurveBall

LOSSES = {
    "cross_entropy": lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"),
    "squared_error": lambda o, t: ((o - t) ** 2).sum(1),
}


def steps(case: Case, number: int, **settings):
    """CurveBall beside the dense reference on mini-batches that end uneven."""
    ours, reference_model = case.model(), case.model()
    objective = raycurv.Objective(ours, case.loss, case.l2)
    optimizer = optim.create("curveball", ours, damping=1.0, **settings)
    names = {"damping_factor": "factor", "damping_interval": "interval", "momentum": "rho", "learning_rate": "beta"}
    names |= {"curvature_fraction": "fraction"}
    reference = DenseCurveBall(
        reference_model, LOSSES.get(case.loss, case.loss), case.l2, 1.0, **{names[k]: v for k, v in settings.items()}
    )
    for t in range(number):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[: 5 if t % 4 == 3 else 12]
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        expected = reference.step(case.inputs[rows], case.targets[rows], seed=t)
        yield {"loss": report.loss, **report.scalars, "taken": report.finite}, expected
    flat = torch.cat([p.detach().flatten() for p in ours.parameters()])
    torch.testing.assert_close(flat, reference.w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_twenty_steps_equal_the_dense_reference(case):
    for found, expected in steps(case, 20):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, rel=1e-10, abs=1e-12), name


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 1.0}, {"damping_interval": None}, {"damping_factor": 0.9, "damping_interval": 2}],
    ids=["rho=1", "fixed-damping", "fast-damping"],
)
def test_modes_equal_the_dense_reference(settings):
    for found, expected in steps(BY_NAME["batch-norm-l2"], 12, **settings):
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("case", ["mlp-l2", "convolution"])
def test_curvature_of_a_quarter_of_the_batch_equals_the_dense_reference(case):
    for found, expected in steps(BY_NAME[case], 20, curvature_fraction=0.25, damping_factor=0.9):
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_fixed_coefficients_equal_the_dense_reference():
    settings = {"momentum": 0.9, "learning_rate": 0.05, "damping_interval": None}
    for found, expected in steps(BY_NAME["mlp-l2"], 12, **settings):
        assert float(found["loss"]) == pytest.approx(expected["loss"], rel=1e-11)


class Quadratic(nn.Module):
    """φ(w) = √h ∘ w, so that squared error against b has the Hessian 2 diag(h)."""

    def __init__(self, eigenvalues, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.register_buffer("root", torch.tensor(eigenvalues, dtype=torch.float64).div(2).sqrt())

    def forward(self, x):
        return x * (self.root * self.w)


def quadratic_batch(model, target=0.0):
    ones = torch.ones(1, len(model.w), dtype=torch.float64)
    return raycurv.Objective(model, "squared_error").batch(ones, target * ones)


def run_quadratic(h, rho, beta, number=2000):
    model = Quadratic([h], [1.0])
    optimizer = optim.create("curveball", model, damping=0.0, momentum=rho, learning_rate=beta, damping_interval=None)
    batch = quadratic_batch(model)
    seen = [1.0] * 30
    for _ in range(number):
        optimizer.step(batch)
        seen = [*seen[1:], abs(model.w.item())]
        if seen[-1] > 1e6:
            return math.inf
        if max(seen) < 1e-7:  # over more than a swing
            break
    return seen[-1]


@pytest.mark.parametrize(("rho", "beta_h"), [(0.9, 0.5), (0.5, 0.95), (0.98, 1.3), (0.2, 0.1)])
def test_converges_inside_the_region_of_theorem_a1(rho, beta_h):
    assert 1.5 * beta_h - 1 < rho < 1 + beta_h
    assert run_quadratic(2.0, rho, beta_h / 2.0) < 1e-6


@pytest.mark.parametrize(("rho", "beta_h"), [(0.2, 0.9), (0.9, 1.4), (1.2, 0.1), (0.5, 1.2)])
def test_diverges_outside_the_region_of_theorem_a1(rho, beta_h):
    assert not 1.5 * beta_h - 1 < rho < 1 + beta_h
    assert run_quadratic(2.0, rho, beta_h / 2.0) == math.inf


def test_without_curvature_it_is_momentum():
    def linear_loss(outputs, targets):
        return (outputs * targets).sum(1)

    ours, plain = (BY_NAME["mlp"].model() for _ in range(2))
    optimizer = optim.create("curveball", ours, damping=0.0, momentum=0.9, learning_rate=0.1, damping_interval=None)
    heavy_ball = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    x, t = BY_NAME["regression"].inputs, BY_NAME["regression"].targets
    objective = raycurv.Objective(ours, linear_loss)
    for _ in range(10):
        optimizer.step(objective.batch(x, t))
        heavy_ball.zero_grad()
        linear_loss(plain(x), t).mean().backward()
        heavy_ball.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_two_steps_solve_a_quadratic_of_two_dimensions():
    model = Quadratic([1.0, 50.0], [3.0, -2.0])
    optimizer = optim.create("curveball", model, damping=0.0)
    batch = quadratic_batch(model, target=1.0)
    for _ in range(2):
        optimizer.step(batch)
    assert float(batch.value()) < 1e-20


def test_step_is_a_descent_direction():
    """Theorem A.2."""
    case = BY_NAME["batch-norm"]
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss), optim.create("curveball", model)
    for _ in range(10):
        batch = objective.batch(case.inputs, case.targets)
        gradient = batch.gradient()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(batch)
        moved = objective.direction([p - q for p, q in zip(model.parameters(), before, strict=True)])
        assert gradient.dot(moved) < 0


@pytest.mark.parametrize("seed", range(5))
def test_system_equals_the_pseudo_inverse(seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(2, 2, generator=generator, dtype=torch.float64) * torch.tensor([1e-3, 1e2])
    matrix, right = root.T @ root, torch.randn(2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(solve_system(matrix, right, 1e-14), torch.linalg.solve(matrix, right), rtol=1e-6, atol=0)


def test_singular_systems_take_the_least_norm_solution():
    def solve(rows, right):
        return solve_system(torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64), 1e-14)

    assert solve([[4.0, 0.0], [0.0, 0.0]], [2.0, 0.0]).tolist() == [0.5, 0.0]
    assert solve([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]).tolist() == [0.0, 0.0]
    torch.testing.assert_close(solve([[1.0, 1.0], [1.0, 1.0]], [2.0, 2.0]), torch.ones(2, dtype=torch.float64))
    # Collinear with factor -2: the predicted decrease is the one of the single direction.
    x = solve([[1.0, -2.0], [-2.0, 4.0]], [1.0, -2.0])
    assert (x[0] - 2 * x[1]).item() == pytest.approx(1.0)


def test_damping_follows_the_reduction_ratio():
    damping = torch.tensor(2.0, dtype=torch.float64)
    for ratio, expected in ((2.0, 1.0), (1.0, 2.0), (0.1, 4.0)):
        assert rescaled_damping(damping, torch.tensor(ratio), 0.5).item() == expected


def test_zero_gradient_leaves_the_parameters():
    model = Quadratic([1.0, 2.0], [0.0, 0.0])
    report = optim.create("curveball", model).step(quadratic_batch(model))
    assert bool(report.finite)
    assert model.w.tolist() == [0.0, 0.0]


def test_nan_loss_skips_the_step_and_says_so():
    case = BY_NAME["mlp"]
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss), optim.create("curveball", model)
    optimizer.step(objective.batch(case.inputs, case.targets))
    before = [p.detach().clone() for p in model.parameters()]
    report = optimizer.step(objective.batch(case.inputs * math.nan, case.targets))
    assert not bool(report.finite)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert bool(optimizer.step(objective.batch(case.inputs, case.targets)).finite)


class Root(nn.Module):
    """φ(w) = √(x·w): without damping the first step of Gauss-Newton goes to −w, where there is no real value."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.25], dtype=torch.float64))

    def forward(self, x):
        return (x @ self.w).sqrt().unsqueeze(1)


ROOT_INPUTS = torch.rand(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1


def root(name="curveball", **settings):
    """A model, a batch and an optimizer whose steps leave the real numbers while λ is small."""
    model = Root()
    batch = raycurv.Objective(model, "squared_error").batch(ROOT_INPUTS, torch.full((8, 1), 0.3, dtype=torch.float64))
    return model, batch, optim.create(name, model, **settings)


@pytest.mark.parametrize(
    ("name", "settings"), [("curveball", {"damping": 1e-3}), ("curveball_free", {"start": 1e-3})], ids=str
)
def test_a_first_step_that_leads_to_a_non_finite_loss_is_taken_back(name, settings):
    model, batch, optimizer = root(name, **settings)
    before = model.w.detach().clone()
    report = optimizer.step(batch)
    assert not bool(report.finite)
    assert torch.equal(model.w, before)
    assert float(optimizer.shared["damping"]) > 1e-3
    assert not optimizer.shared["direction"].any()


@pytest.mark.parametrize("name", ["curveball", "curveball_free"])
def test_a_step_that_a_check_finds_non_finite_is_taken_back(name):
    model, batch, optimizer = root(name, **{"start" if name.endswith("free") else "damping": 100.0})
    for _ in range(4):
        assert bool(optimizer.step(batch).finite)
    before, direction = model.w.detach().clone(), optimizer.shared["direction"].clone()
    optimizer.shared["damping"].fill_(1e-6)
    report = optimizer.step(batch)  # the fifth, which checks λ
    assert not bool(report.finite)
    assert torch.equal(model.w, before)
    assert torch.equal(optimizer.shared["direction"], direction)
    assert float(optimizer.shared["damping"]) > 1e-6


@pytest.mark.parametrize("interval", [5, None])
def test_between_checks_two_failures_in_a_row_take_the_last_step_back(interval):
    model, batch, optimizer = root(damping=100.0, damping_interval=interval)
    optimizer.step(batch)
    before = model.w.detach().clone()
    optimizer.shared["damping"].fill_(1e-6)
    assert bool(optimizer.step(batch).finite)  # leads away
    assert not bool(torch.isfinite(batch.value()))
    assert [bool(optimizer.step(batch).finite) for _ in range(2)] == [False, False]
    assert torch.equal(model.w, before)
    assert not optimizer.shared["direction"].any()
    assert (float(optimizer.shared["damping"]) > 1e-6) == (interval is not None)


def test_two_failures_after_a_check_find_nothing_to_take_back():
    model, batch, optimizer = root(damping=100.0)
    for _ in range(5):
        optimizer.step(batch)
    before = model.w.detach().clone()
    broken = batch.objective.batch(ROOT_INPUTS * math.nan, batch.targets)
    assert not bool(optimizer.step(broken).finite)
    assert torch.equal(model.w, before)
    assert bool(optimizer.step(batch).finite)


@pytest.mark.parametrize(
    "settings", [{"damping_factor": 0.5, "damping_interval": 3}, {"damping_interval": 1, "damping_factor": 0.3}]
)
def test_steps_taken_back_equal_the_dense_reference(settings):
    model, reference_model = Root(), Root()
    targets = torch.full((8, 1), 0.3, dtype=torch.float64)
    objective = raycurv.Objective(model, "squared_error")
    optimizer = optim.create("curveball", model, damping=1e-3, **settings)
    names = {"damping_factor": "factor", "damping_interval": "interval"}
    reference = DenseCurveBall(
        reference_model, LOSSES["squared_error"], 0.0, 1e-3, **{names[k]: v for k, v in settings.items()}
    )
    taken = []
    for t in range(40):
        rows = torch.randperm(8, generator=torch.Generator().manual_seed(t))[:4]
        report = optimizer.step(objective.batch(ROOT_INPUTS[rows], targets[rows]))
        expected = reference.step(ROOT_INPUTS[rows], targets[rows], seed=t)
        torch.testing.assert_close(model.w.detach(), reference.w, rtol=1e-9, atol=1e-12)
        assert float(optimizer.shared["damping"]) == pytest.approx(reference.damping, rel=1e-12)
        assert bool(report.finite) == expected["taken"]
        taken.append(expected["taken"])
    assert {True, False} == set(taken)
    assert float(objective.batch(ROOT_INPUTS, targets).value()) < 0.01


def test_a_state_of_an_earlier_version_goes_on():
    case = BY_NAME["mlp"]
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss), optim.create("curveball", model)
    batch = objective.batch(case.inputs, case.targets)
    optimizer.step(batch)
    state = optimizer.state_dict()
    for key in ("failures", "previous_parameters"):
        del state["state"]["global"][key]
    other = optim.create("curveball", model)
    other.load_state_dict(state)
    assert bool(other.step(batch).finite)


def test_damping_stays_at_a_minimum_reached_up_to_rounding():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    objective = raycurv.Objective(model, "squared_error")
    batch = objective.batch(torch.randn(20, 3), torch.randn(20, 1))
    optimizer = optim.create("curveball_free", model)
    for _ in range(100):
        optimizer.step(batch)
    settled = float(optimizer.shared["damping"])
    for _ in range(500):
        assert bool(optimizer.step(batch).finite)
    assert float(optimizer.shared["damping"]) < 100 * settled


def test_default_damping_is_the_papers():
    for name, expected in (("batch-norm", 1.0), ("mlp", 10.0)):
        case = BY_NAME[name]
        model = case.model()
        batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
        assert optim.create("curveball", model).step(batch).scalars["damping"].item() == expected


def test_state_dict_continues_identically():
    case = BY_NAME["batch-norm"]
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss), optim.create("curveball", model)
    for _ in range(7):
        optimizer.step(objective.batch(case.inputs, case.targets))
    copy = case.model()
    copy.load_state_dict(model.state_dict())
    other_objective, other = raycurv.Objective(copy, case.loss), optim.create("curveball", copy)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(7):
        optimizer.step(objective.batch(case.inputs, case.targets))
        other.step(other_objective.batch(case.inputs, case.targets))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copy.parameters(), strict=True))


def test_several_parameter_groups_are_refused():
    model = BY_NAME["mlp"].model()
    groups = [{"params": [p]} for p in model.parameters()]
    with pytest.raises(ValueError, match="takes no parameter groups"):
        optim.create("curveball", groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": -1.0}, "damping is -1.0"),
        ({"damping_factor": 0.0}, "damping_factor is 0.0"),
        ({"damping_interval": 0}, "damping_interval is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"momentum": math.inf}, "momentum is inf"),
        ({"clip_gradient": 1.0}, "clip_gradient has no meaning for 'curveball'"),
        ({"dampening": 1.0}, "did you mean 'damping'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create("curveball", BY_NAME["mlp"].model(), **settings)


def test_foreign_batches_are_refused():
    model = BY_NAME["mlp"].model()
    optimizer = optim.create("curveball", model)
    with pytest.raises(TypeError, match=r"made by Objective\.batch"):
        optimizer.step(lambda: 1.0)
    other = BY_NAME["mlp"].model()
    batch = raycurv.Objective(other, "cross_entropy").batch(BY_NAME["mlp"].inputs, BY_NAME["mlp"].targets)
    with pytest.raises(ValueError, match="from the same model"):
        optimizer.step(batch)


def test_no_number_is_read_from_the_device():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func.overloadpacket.__name__ == "_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    case = BY_NAME["batch-norm-l2"]
    model = case.model()
    objective = raycurv.Objective(model, case.loss, case.l2, check_consistency=False)  # reads one number in a run
    optimizer = optim.create("curveball", model)
    with Reads() as reads:
        for _ in range(6):
            optimizer.step(objective.batch(case.inputs, case.targets))
    assert reads.found == 0
