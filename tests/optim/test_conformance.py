"""What holds for every optimizer of the registry, whatever it is called."""

import io
import math
import sys

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.optim import registry
from tests.cases import BY_NAME
from tests.objective import distributed

NAMES = optim.names()
# Where the paper's own rule diverges at its defaults; the method's file says so, and the tests here hold it to that.
DIVERGES = {
    "classifier": {"ntlr_adam"},
    "parabola": {"cdat_sgd", "hypergradient_additive", "llr_first_order", "ntlr_adam"},
}
# Where a step is no continuous function of the gradient, so that rounding, and thus the number of workers, shows. The
# method's file says so.
ROUNDING_SHOWS = {"soap"}
HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=120)
CASE = BY_NAME["mlp"]


def create(name: str, model) -> optim.StepOptimizer:
    return optim.create(name, model, horizon=HORIZON)


def step(optimizer, objective, rows=slice(None)) -> optim.StepReport:
    batch = objective.batch(CASE.inputs[rows], CASE.targets[rows])
    validation = objective.batch(CASE.inputs[:8], CASE.targets[:8]) if optimizer.needs_validation else None
    return optimizer.step(batch, validation=validation)


def train(name: str, steps: int, model=None):
    model = CASE.model() if model is None else model
    objective, optimizer = raycurv.Objective(model, CASE.loss), create(name, model)
    for i in range(steps):
        step(optimizer, objective, slice(i % 3, None, 2))
    return model, objective, optimizer


def check_descent(name: str, problem: str, before: float, after: float) -> None:
    if name in DIVERGES[problem]:
        assert "diverge" in sys.modules[registry._REGISTRY[name].__module__].__doc__
        assert after > before
    else:
        assert after < before


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_reports_scalars_that_are_finite_and_on_the_device(name):
    _, objective, optimizer = train(name, 2)
    report = step(optimizer, objective)
    assert bool(report.finite)
    assert report.loss.shape == ()
    for key, value in report.scalars.items():
        assert value.shape == (), key
        assert not value.requires_grad, key


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_continues_identically(name):
    model, objective, optimizer = train(name, 7)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    copy = CASE.model(seed=1)
    copy.load_state_dict(state["model"])
    other = create(name, copy)
    other.load_state_dict(state["optimizer"])
    assert other.state_dict().get("settings") == optimizer.state_dict().get("settings")
    copied = raycurv.Objective(copy, CASE.loss)
    for i in range(6):
        rows = slice(i % 3, None, 2)
        assert torch.equal(step(optimizer, objective, rows).loss, step(other, copied, rows).loss)
    assert torch.equal(flat(model), flat(copy))


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_preserved(name):
    model = CASE.model().float()
    objective, optimizer = raycurv.Objective(model, CASE.loss), create(name, model)
    for _ in range(3):
        batch = objective.batch(CASE.inputs.float(), CASE.targets)
        optimizer.step(batch, validation=batch if optimizer.needs_validation else None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class Awkward(nn.Module):
    """A frozen layer, one that is not used, and images in channels-last order."""

    def __init__(self):
        super().__init__()
        self.frozen, self.unused = nn.Conv2d(3, 3, 1), nn.Linear(2, 2)
        self.used, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.out(torch.tanh(self.used(self.frozen(x))).mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_unused_and_channels_last_parameters(name):
    case = BY_NAME["convolution"]
    torch.manual_seed(0)
    model = Awkward().double().to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    objective, optimizer = raycurv.Objective(model, case.loss), create(name, model)
    for _ in range(3):
        batch = objective.batch(case.inputs.to(memory_format=torch.channels_last), case.targets)
        assert bool(optimizer.step(batch, validation=batch if optimizer.needs_validation else None).finite)
    after = model.state_dict()
    groups = [*optimizer.param_groups, {"weight_decay": getattr(optimizer, "weight_decay", 0)}]
    decays = any(group.get("weight_decay", 0) for group in groups)
    for key in before:
        if key.startswith("unused") and decays:  # by one factor for all of them
            shrunk = before[key] * (after[key].sum() / before[key].sum())
            torch.testing.assert_close(after[key], shrunk, rtol=1e-12, atol=0)
            assert 0.9 < float(after[key].norm() / before[key].norm()) < 1
        elif key.startswith(("frozen", "unused")):
            assert torch.equal(after[key], before[key])
    assert not torch.equal(after["used.weight"], before["used.weight"])
    assert after["used.weight"].is_contiguous(memory_format=torch.channels_last)


def frozen_below(as_buffers: bool) -> nn.Module:
    """The classifier with its first layer frozen, or with buffers in place of that layer's parameters."""
    model = CASE.model()
    for key, value in list(model[0].named_parameters()):
        if as_buffers:
            delattr(model[0], key)
            model[0].register_buffer(key, value.detach().clone())
        else:
            value.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_count_as_little_as_constants(name):
    frozen, constant = frozen_below(False), frozen_below(True)
    reports = [[], []]
    for model, found in zip((frozen, constant), reports, strict=True):
        objective, optimizer = raycurv.Objective(model, CASE.loss, 1e-2), create(name, model)
        found += [step(optimizer, objective, slice(i % 3, None, 2)) for i in range(6)]
    for one, other in zip(*reports, strict=True):
        torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=0)
        torch.testing.assert_close(dict(one.scalars), dict(other.scalars), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(flat(frozen[2]), flat(constant[2]), rtol=0, atol=0)
    torch.testing.assert_close(flat(frozen[0]), flat(CASE.model()[0]), rtol=0, atol=0)
    assert not torch.equal(flat(frozen[2]), flat(CASE.model()[2]))


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups_are_supported_or_refused(name):
    model = CASE.model()
    groups = [{"params": [p]} for p in model.parameters()]
    try:
        optimizer = create(name, groups)
    except ValueError as refusal:
        assert "parameter groups" in str(refusal)  # noqa: PT017  either answer is allowed, silence is not
        return
    before, objective = flat(model), raycurv.Objective(model, CASE.loss)
    for _ in range(2):  # a first step may only collect
        step(optimizer, objective)
    assert not torch.equal(flat(model), before)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    size, classes = CASE.inputs.shape[1], int(CASE.targets.max()) + 1
    layers = nn.Linear(size, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, classes)
    return nn.Sequential(*layers).to(CASE.inputs.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_one_nan_sample_leaves_running_statistics_as_they_were(name):
    model = normalised()
    optimizer, objective = create(name, model), raycurv.Objective(model, CASE.loss)
    step(optimizer, objective)
    before = {key: value.clone() for key, value in model.named_buffers()}
    broken = CASE.inputs.clone()
    broken[0, 0] = math.nan
    batch = objective.batch(broken, CASE.targets)
    optimizer.step(batch, validation=batch if optimizer.needs_validation else None)
    for key, value in model.named_buffers():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_loss_leaves_finite_parameters_and_is_reported(name):
    model, objective, optimizer = train(name, 3)
    batch = objective.batch(CASE.inputs * math.nan, CASE.targets)
    report = optimizer.step(batch, validation=batch if optimizer.needs_validation else None)
    # A method that comes back from explosions takes it for one, and says so.
    assert not bool(report.finite) or bool(report.scalars["alarm"])
    assert bool(torch.isfinite(flat(model)).all())


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_is_a_batch(name):
    model, objective, optimizer = train(name, 2)
    assert bool(step(optimizer, objective, slice(0, 1)).finite)
    assert bool(torch.isfinite(flat(model)).all())


class Parabola(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x):
        return x * self.w


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_zero_moves_nothing(name):
    model = Parabola([0.0, 0.0])
    objective, optimizer = raycurv.Objective(model, "squared_error"), create(name, model)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    for _ in range(3):
        batch = objective.batch(x, 0 * x)
        assert bool(optimizer.step(batch, validation=batch if optimizer.needs_validation else None).finite)
    assert model.w.tolist() == [0, 0]


def one_more_group(rank: int, workers: int) -> dict[str, torch.Tensor]:
    """The parameters of every optimizer after some steps on the same global batches."""
    found = {}
    for name in NAMES:
        model = CASE.model()
        collectives = ProcessGroup() if workers > 1 else Local()
        objective, optimizer = raycurv.Objective(model, CASE.loss, 1e-3, collectives=collectives), create(name, model)
        for i in range(6):
            rows = torch.arange(i, 24 - i).tensor_split(workers)[rank]
            step(optimizer, objective, rows)
        found[name] = flat(model)
    return found


@pytest.mark.slow
def test_two_workers_are_one():
    single, both = one_more_group(0, 1), distributed.run(2, one_more_group, 2)
    for name in ROUNDING_SHOWS:
        assert "rounding" in sys.modules[registry._REGISTRY[name].__module__].__doc__
        assert torch.equal(*(found.pop(name) for found in both))
    for found in both:
        for name, value in found.items():
            torch.testing.assert_close(value, single[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_descends_on_a_small_classifier_at_default_settings(name):
    model = CASE.model()
    objective, optimizer = raycurv.Objective(model, CASE.loss), create(name, model)
    before = float(objective.batch(CASE.inputs, CASE.targets).value())
    for _ in range(60):
        step(optimizer, objective)
    with optimizer.evaluation_weights():
        check_descent(name, "classifier", before, float(objective.batch(CASE.inputs, CASE.targets).value()))


@pytest.mark.parametrize("name", NAMES)
def test_descends_on_a_parabola_at_default_settings(name):
    model = Parabola([3.0, -2.0])
    objective, optimizer = raycurv.Objective(model, "squared_error"), create(name, model)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    before = float(objective.batch(x, 0 * x).value())
    for _ in range(60):
        batch = objective.batch(x, 0 * x)
        optimizer.step(batch, validation=batch if optimizer.needs_validation else None)
    with optimizer.evaluation_weights():
        check_descent(name, "parabola", before, float(objective.batch(x, 0 * x).value()))


@pytest.mark.parametrize("name", NAMES)
def test_anything_but_a_batch_is_refused(name):
    with pytest.raises(TypeError, match=r"made by Objective\.batch"):
        create(name, CASE.model()).step(lambda: 1.0)
