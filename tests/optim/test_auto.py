import copy
import io

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim.averaged_red import AveragedRED
from tests.cases import BY_NAME
from tests.reference.auto import NaiveAuto


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[: 5 if step % 4 == 3 else 12]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def make(case_name="regression", factor=1.0, **settings):
    case = BY_NAME[case_name]
    model = case.model()
    objective = raycurv.Objective(model, lambda outputs, targets: factor * (outputs - targets).square().sum(1))
    return case, model, objective, optim.Auto(model, **settings)


def go(case, objective, optimizer, steps):
    return [optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)])) for t in steps]


@pytest.mark.parametrize("case_name", ["mlp", "mlp-l2", "batch-norm-l2", "dropout"])
def test_steps_and_average_equal_the_naive_reference(case_name):
    """Through the rise, the steps without curvature, and a batch of another size."""
    case = BY_NAME[case_name]
    model = case.model()
    objective = raycurv.Objective(model, case.loss, case.l2)
    optimizer = optim.create("auto", model, start=0.5)
    reference = NaiveAuto(case.model(), cross_entropy, case.l2, start=0.5)
    for t in range(33):
        data = case.inputs[rows_of(t)], case.targets[rows_of(t)]
        expected = reference.step(*data, t)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(*data))
        found = {"loss": report.loss, **report.scalars}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(value, rel=1e-9, abs=1e-10), (t, key)
    torch.testing.assert_close(flat(model), reference.theta, rtol=1e-9, atol=1e-9)
    with optimizer.evaluation_weights():
        torch.testing.assert_close(flat(model), reference.average(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(model), reference.theta, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_the_scale_of_the_loss_does_not_matter(factor):
    plain, scaled = make(), make(factor=factor)
    go(plain[0], *plain[2:], range(40))
    go(scaled[0], *scaled[2:], range(40))
    torch.testing.assert_close(flat(plain[1]), flat(scaled[1]), rtol=1e-10, atol=1e-10)


def test_the_length_of_the_run_does_not_matter():
    short, long = make(horizon=optim.Horizon(1, 10, 120)), make(horizon=optim.Horizon(9, 1000, 12_000))
    for made in (short, long):
        go(made[0], *made[2:], range(30))
        assert not made[3].follows_horizon
    assert torch.equal(flat(short[1]), flat(long[1]))


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def test_the_first_step_measures_only_and_the_bottom_of_a_bowl_is_reached():
    model = Bowl()
    optimizer = optim.Auto(model)
    batch = raycurv.Objective(model, "squared_error").batch(torch.ones(4, 3).double(), torch.zeros(4, 3).double())
    optimizer.step(batch)
    assert torch.equal(model.w.detach(), torch.full((3,), 2.0).double())
    for _ in range(200):
        optimizer.step(batch)
    with optimizer.evaluation_weights():
        assert float(model.w.detach().abs().max()) < 1e-2


def test_steps_become_shorter_where_only_noise_is_followed():
    generator = torch.Generator().manual_seed(0)
    model = Bowl()
    optimizer, objective = optim.Auto(model), raycurv.Objective(model, "squared_error")
    rates = []
    for _ in range(1500):
        batch = objective.batch(torch.ones(1, 3).double(), torch.randn(1, 3, generator=generator).double())
        rates.append(float(optimizer.step(batch).scalars["learning_rate"]))
    assert rates[-1] < 0.6 * rates[100]


@pytest.mark.parametrize("start", [0.01, 3.0])
def test_wrong_lengths_of_the_first_twenty_steps_are_forgotten(start):
    rates = []
    for value in (1.0, start):
        case, _, objective, optimizer = make(start=value)
        reports = go(case, objective, optimizer, range(120))
        rates.append(float(reports[-1].scalars["learning_rate"]))
    assert rates[0] / 4 < rates[1] < rates[0] * 4


@pytest.mark.parametrize("bad", [0, 1, 25])
def test_a_batch_that_is_not_finite_changes_nothing(bad):
    case, model, objective, optimizer = make()
    go(case, objective, optimizer, range(bad))
    before, sums = flat(model), optimizer.shared["sums"].clone() if bad else torch.zeros(5).double()
    report = optimizer.step(objective.batch(case.inputs[:4] * float("nan"), case.targets[:4]))
    assert not report.finite
    assert torch.equal(flat(model), before)
    assert torch.equal(optimizer.shared["sums"], sums)
    assert all(report.finite for report in go(case, objective, optimizer, range(bad, bad + 8)))
    assert not torch.equal(flat(model), before)


@pytest.mark.parametrize("steps", [1, 7, 23])
def test_a_saved_state_goes_on_alike_with_its_average(steps):
    case, model, objective, optimizer = make()
    go(case, objective, optimizer, range(steps))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    _, copied, other_objective, other = make()
    copied.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    for o, q in ((objective, optimizer), (other_objective, other)):
        go(case, o, q, range(steps, steps + 9))
    assert torch.equal(flat(model), flat(copied))
    with optimizer.evaluation_weights(), other.evaluation_weights():
        assert torch.equal(flat(model), flat(copied))


@pytest.mark.parametrize("old", [("slope_sum", "curvature_sum"), ("slope", "bend")])
def test_a_state_of_the_version_before_gives_the_length_of_the_next_steps(old):
    case, model, objective, optimizer = make()
    former = AveragedRED(model, beta1=0.8, beta2=0.999, horizon=optim.Horizon(1, 200, 2400))
    go(case, objective, former, range(30))
    state = copy.deepcopy(former.state_dict())
    for new, name in zip(("slope_sum", "curvature_sum"), old, strict=True):
        state["state"]["global"][name] = state["state"]["global"].pop(new)
    optimizer.load_state_dict(state)
    assert float(optimizer.rate()) == pytest.approx(float(former.rate()))
    with optimizer.evaluation_weights():
        assert flat(model).isfinite().all()
    losses = [float(report.loss) for report in go(case, objective, optimizer, range(30, 60))]
    assert losses[-1] < losses[0] * 2


def test_a_bad_start_is_refused():
    with pytest.raises(ValueError, match="start is 0"):
        optim.create("auto", BY_NAME["mlp"].model(), start=0.0)
