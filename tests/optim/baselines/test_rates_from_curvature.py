"""GeN and CDAT: naive references, limiting cases, what they refuse."""

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from tests.cases import BY_NAME
from tests.reference import baselines

ADAM = {"b1": 0.9, "b2": 0.999}
REFERENCES = {
    "gen_sgd": (baselines.GeneralizedNewton, {}),
    "gen_momentum": (baselines.GeneralizedNewton, {"b1": 0.9}),
    "gen_adam": (baselines.GeneralizedNewton, {"eta": 1e-3, **ADAM}),
    "cdat_sgd": (baselines.CurvatureTuned, {}),
    "cdat_momentum": (baselines.CurvatureTuned, {"b1": 0.9}),
    "cdat_adam": (baselines.CurvatureTuned, ADAM),
}
# The settings of the reference, for those of the optimizer.
GREEDY = {"scale": 1.0, "memory": 0.0}, {"sigma": 1.0, "beta": 0.0}
EAGER = {"learning_rate": 0.5, "smoothing": 0.5, "interval": 1}, {"eta": 0.5, "gamma": 0.5, "phi": 1}
# The reference of one sample after the other takes ten seconds through batch normalisation.
CASES = ("mlp", "mlp-l2", "regression", pytest.param("batch-norm-l2", marks=pytest.mark.slow), "dropout")


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[:12]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def named_loss(case):
    if case.loss == "cross_entropy":
        return lambda o, y: nn.functional.cross_entropy(o, y, reduction="none")
    return lambda o, y: ((o - y) ** 2).sum(1)


def assert_steps_equal(name, case, settings, arguments, steps=12):
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss, case.l2), optim.create(name, model, **settings)
    build, own = REFERENCES[name]
    reference = build(case.model(), named_loss(case), case.l2)
    for t in range(steps):
        rows = rows_of(t)
        reference.batch(case.inputs[rows], case.targets[rows], seed=t)
        expected = reference.step(**{**own, **arguments})
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        assert float(report.loss) == pytest.approx(expected["loss"], rel=1e-8)
        assert float(report.scalars["learning_rate"]) == pytest.approx(expected["learning_rate"], rel=1e-8)
        torch.testing.assert_close(flat(model), reference.w, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("name", REFERENCES)
def test_the_steps_equal_the_naive_reference(name, case_name):
    assert_steps_equal(name, BY_NAME[case_name], {}, {})


@pytest.mark.parametrize("name", REFERENCES)
def test_the_steps_equal_the_naive_reference_at_other_settings(name):
    assert_steps_equal(name, BY_NAME["mlp-l2"], *(EAGER if name.startswith("gen") else GREEDY))


def quadratic():
    """Least squares with a Hessian that is far from a multiple of the identity."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.randn(30, 1).double()
    model = nn.Linear(4, 1, bias=False).double()
    return model, raycurv.Objective(model, "squared_error").batch(x, y)


def test_greedy_cdat_takes_the_minimum_along_the_gradient_of_a_quadratic():
    model, batch = quadratic()
    optim.create("cdat_sgd", model, scale=1.0, memory=0.0).step(batch)
    before = flat(model)
    direction = batch.gradient()
    optim.create("cdat_sgd", model, scale=1.0, memory=0.0).step(batch)
    assert float(batch.gradient().dot(direction)) == pytest.approx(0, abs=1e-9)
    assert not torch.equal(flat(model), before)


def test_cdat_at_the_edge_leaves_a_quadratic_as_it_was():
    model, batch = quadratic()
    optimizer, before = optim.create("cdat_sgd", model, scale=2.0, memory=0.0), float(batch.value())
    for _ in range(5):
        optimizer.step(batch)
    assert float(batch.value()) == pytest.approx(before, rel=1e-9)


def test_gen_without_smoothing_takes_newton_s_step_along_the_gradient():
    """From a rate within a factor of two of the minimum's, which the bounds allow."""
    model, batch = quadratic()
    gradient = batch.gradient()
    best = float(gradient.dot(gradient) / batch.taylor_along(gradient).curvature)
    report = optim.create("gen_sgd", model, learning_rate=1.5 * best, smoothing=0.0).step(batch)
    assert float(report.scalars["learning_rate"]) == pytest.approx(best, rel=1e-12)
    assert float(batch.gradient().dot(gradient)) == pytest.approx(0, abs=1e-9)


def test_gen_changes_its_rate_at_most_by_a_factor_of_two_and_only_in_its_interval():
    model, batch = quadratic()
    optimizer = optim.create("gen_sgd", model, learning_rate=1e-9, smoothing=0.0, interval=3)
    rates = [float(optimizer.step(batch).scalars["learning_rate"]) for _ in range(7)]
    assert rates == pytest.approx([2e-9] * 3 + [4e-9] * 3 + [8e-9])


def concave():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    objective = raycurv.Objective(model, lambda o, y: (4 - o.square()).sum(1))
    return model, objective.batch(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1))


def test_gen_keeps_its_rate_where_the_objective_is_concave():
    model, batch = concave()
    report = optim.create("gen_sgd", model, learning_rate=0.1, interval=1).step(batch)
    assert float(report.scalars["learning_rate"]) == pytest.approx(0.1)


def test_cdat_takes_the_size_of_a_negative_curvature():
    model, batch = concave()  # slope 4, second derivative −2·4
    report = optim.create("cdat_sgd", model, scale=1.0).step(batch)
    assert float(report.scalars["learning_rate"]) == pytest.approx(0.5)


def test_gen_is_the_authors_package_on_a_quadratic():
    """Its parabola through three losses is exact there."""
    package = pytest.importorskip("GeN", reason="gen-optim is not installed")
    model, batch = quadratic()
    optimizer = optim.create("gen_sgd", model, learning_rate=1e-3, interval=1)
    plain, _ = quadratic()
    sgd = torch.optim.SGD(plain.parameters(), lr=1e-3)
    x, y = batch.inputs, batch.targets
    loss = nn.MSELoss()
    for _ in range(10):
        optimizer.step(batch)
        sgd.zero_grad()
        loss(plain(x), y).backward()
        again = iter([(x, y)])
        package.lr_parabola(
            plain, sgd, criterion=loss, tr_iter=again, device="cpu", task="image_cls", lr_factor=[-1, 0, 1]
        )
        sgd.step()
    assert float(optimizer.shared["rate"]) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-5)
    torch.testing.assert_close(flat(model), flat(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gen_sgd", {"learning_rate": 0.0}, "gen_sgd: learning_rate is 0.0"),
        ("gen_adam", {"smoothing": 1.0}, "gen_adam: smoothing is 1.0"),
        ("gen_sgd", {"interval": 0}, "interval is 0"),
        ("gen_momentum", {"beta1": 1.0}, "beta1 is 1.0"),
        ("cdat_sgd", {"scale": 0.0}, "cdat_sgd: scale is 0.0"),
        ("cdat_adam", {"memory": -0.1}, "cdat_adam: memory is -0.1"),
        ("cdat_sgd", {"clip_gradient": 1.0}, "clip_gradient has no meaning"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create(name, nn.Linear(2, 1), **settings)
