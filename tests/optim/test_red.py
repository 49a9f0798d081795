import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import raycurv
from raycurv import optim
from raycurv.models.basic_cnn import basic_cnn
from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.objective.direction import Direction
from raycurv.optim.red import Rescaled, annealing, exponential_decay, rescaling
from tests.cases import BY_NAME
from tests.objective import distributed
from tests.reference.red import NaiveRed

RED, RAN = ("red_sgd", "red_rmsprop", "red_momentum", "red_adam"), ("ran_sgd", "ran_rmsprop")
# Arguments of the reference: the betas of the direction, and ℓ by epoch of seven.
EPOCHS, STEPS_PER_EPOCH = 7, 3
REFERENCES = {
    "red_sgd": ({}, lambda e: 0.5 ** (e / EPOCHS)),
    "red_rmsprop": ({"beta2": 0.999}, lambda e: 0.5 ** (e / EPOCHS)),
    "ran_sgd": ({}, lambda e: (1.0, 0.5, 0.5, 2.0)[e % 4]),
    "ran_rmsprop": ({"beta2": 0.999}, lambda e: (1.0, 0.5, 0.5, 2.0)[e % 4]),
    "red_momentum": ({"beta1": 0.9}, lambda e: (1 - 0.9) * 0.5 ** (e / EPOCHS)),
    "red_adam": ({"beta1": 0.9, "beta2": 0.999}, lambda e: (1 - 0.9) * 0.5 ** (e / EPOCHS)),
}


def horizon(epochs=EPOCHS, steps=STEPS_PER_EPOCH):
    return optim.Horizon(epochs, steps, 24)


def settings_of(name):
    return {"phases": (1, 2, 1)} if name in RAN else {}


def model_of(case):
    """The case's model; biases whose gradient is nothing but rounding, which RMSProp divides by ε, are frozen."""
    model = case.model()
    for layer, following in itertools.pairwise(model):
        if isinstance(following, nn.BatchNorm2d) and layer.bias is not None:
            layer.bias.requires_grad_(False)
    return model


def trained(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def compare(name, case, number=20, reference=None, **settings):
    """An optimizer beside the naive reference, on mini-batches that end uneven."""
    ours, other = model_of(case), model_of(case)
    objective = raycurv.Objective(ours, case.loss, case.l2)
    optimizer = optim.create(name, ours, horizon=horizon(), **settings_of(name), **settings)
    betas, ell = REFERENCES[name]

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    arguments = {"ell": ell, **betas, **(reference or {})}
    naive = NaiveRed(other, loss, case.l2, steps_per_epoch=STEPS_PER_EPOCH, **arguments)
    for t in range(number):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[: 5 if t % 4 == 3 else 12]
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        expected = naive.step(case.inputs[rows], case.targets[rows], seed=t)
        found = {"loss": report.loss, **report.scalars}
        assert bool(report.finite)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(value, rel=1e-10, abs=1e-12), (t, key)
    torch.testing.assert_close(trained(ours), naive.theta, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in RED for case in ("mlp", "mlp-l2", "batch-norm", "batch-norm-l2", "dropout")]
    + [(name, case) for name in RAN for case in ("mlp", "batch-norm-l2", "dropout")],
)
def test_twenty_steps_equal_the_naive_reference(name, case):
    compare(name, BY_NAME[case])


@pytest.mark.parametrize("case", ["batch-norm-l2", "dropout"])
def test_lean_steps_equal_the_naive_reference(case):
    compare("red_adam", BY_NAME[case], lean=True)


@pytest.mark.parametrize("name", ["red_sgd", "red_adam"])
def test_curvature_of_a_quarter_of_the_batch_equals_the_naive_reference(name):
    compare(name, BY_NAME["mlp-l2"], reference={"fraction": 0.25}, curvature_fraction=0.25)


def test_other_constants_equal_the_naive_reference():
    given = {"scale": 0.7, "decay": 0.1, "beta2": 0.99, "beta3": 0.5, "factor": 1.5, "eps": 1e-3}
    named = {"beta2": 0.99, "beta3": 0.5, "two": 1.5, "epsilon": 1e-3, "ell": lambda e: 0.7 * 0.1 ** (e / EPOCHS)}
    compare("red_rmsprop", BY_NAME["batch-norm-l2"], reference=named, **given)


class Longer(Rescaled):
    """RED with each direction multiplied by another number."""

    def _direction(self, gradient):
        direction = super()._direction(gradient)
        return Direction(direction.flat * 7.0 ** (self.shared["steps"] * 5 % 9 - 4), direction)


@pytest.mark.parametrize("betas", [{}, {"beta2": 0.9}, {"beta1": 0.5, "beta2": 0.9}])
def test_the_step_does_not_depend_on_the_length_of_the_direction(betas):
    """Section 2, "Gradient preconditioning"."""
    case, ends = BY_NAME["batch-norm-l2"], []
    for build in (Rescaled, Longer):
        model = case.model()
        objective = raycurv.Objective(model, case.loss, case.l2)
        optimizer = build("red", model, lambda epoch: 1.0, None, beta3=0.9, factor=2.0, eps=1e-8, lean=False, **betas)
        rates = [optimizer.step(objective.batch(case.inputs, case.targets)).scalars["learning_rate"] for _ in range(12)]
        ends.append((list(model.parameters()), rates))
    (plain, plain_rates), (longer, longer_rates) = ends
    torch.testing.assert_close(plain, longer, rtol=1e-9, atol=1e-11)
    for t, (rate, other) in enumerate(zip(plain_rates, longer_rates, strict=True)):
        assert float(other) == pytest.approx(float(rate) / 7.0 ** (t * 5 % 9 - 4), rel=1e-8)


def test_red_goes_from_one_to_a_half_over_the_epochs():
    ell = exponential_decay(1.0, 0.5, 4)
    assert [ell(e) for e in range(7)] == pytest.approx([1.0, 2**-0.25, 2**-0.5, 2**-0.75, 0.5, 0.5, 0.5])
    assert {exponential_decay(1.0, 0.5, None)(e) for e in range(1000)} == {1.0}


def test_ran_anneals():
    ell = annealing((1.0, 0.5, 2.0), (5, 13, 2))
    assert [ell(e) for e in range(45)] == ([1.0] * 5 + [0.5] * 13 + [2.0] * 2) * 2 + [1.0] * 5


def scales(name, number, run, **settings):
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer = optim.create(name, model, horizon=run, **settings)
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    return [float(optimizer.step(batch).scalars["scale"]) for _ in range(number)]


def test_the_horizon_gives_the_epochs():
    assert scales("red_sgd", 4, horizon(2, 2)) == pytest.approx([1.0, 1.0, 0.5**0.5, 0.5**0.5])
    assert scales("red_momentum", 3, horizon(2, 2), beta1=0.8) == pytest.approx([0.2, 0.2, 0.2 * 0.5**0.5])
    assert scales("ran_rmsprop", 20, horizon(20, 1)) == [1.0] * 5 + [0.5] * 13 + [2.0] * 2
    assert scales("ran_sgd", 6, horizon(9, 2), scales=(3.0, 4.0), phases=(1, 2)) == [3.0, 3.0, 4.0, 4.0, 4.0, 4.0]


def test_without_a_horizon_red_keeps_its_scale_and_ran_has_epochs_of_196_steps():
    assert scales("red_adam", 5, None) == pytest.approx([0.1] * 5)
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer = optim.create("ran_sgd", model, scales=(1.0, 0.5), phases=(1, 1))
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    assert float(optimizer.step(batch).scalars["scale"]) == 1.0
    optimizer.shared["steps"] = 195
    assert [float(optimizer.step(batch).scalars["scale"]) for _ in range(2)] == [1.0, 0.5]


class Quadratic(nn.Module):
    """φ(w) = √h ∘ w, so that squared error against 0 has the Hessian 2 diag(h)."""

    def __init__(self, eigenvalues, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.register_buffer("root", torch.tensor(eigenvalues, dtype=torch.float64).div(2).sqrt())

    def forward(self, x):
        return x * (self.root * self.w)


def on_quadratic(model, **settings):
    ones = torch.ones(1, len(model.w), dtype=torch.float64)
    return optim.create("red_sgd", model, **settings), raycurv.Objective(model, "squared_error").batch(ones, 0 * ones)


def test_without_the_factor_one_step_lands_on_the_minimum_of_a_parabola():
    """Eq. 5 with the exact curvature; the printed factor 2 goes half of the way (ℓ = 1), its half a quarter."""
    for settings, left in (({"factor": 1.0}, 0.0), ({}, 0.5), ({"scale": 0.5}, 0.75), ({"factor": 0.5}, -1.0)):
        model = Quadratic([3.0], [8.0])
        optimizer, batch = on_quadratic(model, **settings)
        report = optimizer.step(batch)
        assert float(report.scalars["curvature"]) == pytest.approx(3.0)
        assert model.w.item() == pytest.approx(8.0 * left, abs=1e-12)


def test_lipschitz_is_the_larger_of_the_average_and_the_present_curvature():
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer, objective = optim.create("red_sgd", model), raycurv.Objective(model, case.loss)
    over = []
    for t in range(20):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[:4]
        scalars = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows])).scalars
        over.append(float(scalars["lipschitz"]) / float(scalars["curvature"]))
    assert min(over) == 1.0 < max(over)


def test_along_an_ascent_the_step_stays_positive_and_is_not_counted_as_descent():
    """A gradient whose sign changes while its average keeps the old one (appendix C.1)."""

    def tilted(outputs, targets):
        return (outputs * targets + 0.01 * outputs.square()).sum(1)

    model = Quadratic([2.0], [0.0])
    optimizer = optim.create("red_momentum", model, horizon=horizon(2, 4), factor=1e4)
    objective, one = raycurv.Objective(model, tilted), torch.ones(1, 1, dtype=torch.float64)
    shares, falls = [], []
    for tilt in (3, 3, -1, 3, 3):
        before = model.w.item()
        report = optimizer.step(objective.batch(one, tilt * one))
        assert float(report.scalars["learning_rate"]) > 0
        shares.append(float(report.scalars["descent_share"]))
        falls.append(model.w.item() < before)
    assert falls == [True] * 5  # at the third the batch's objective rises that way
    assert shares == pytest.approx([1.0, 1.0, 2 / 3, 3 / 4, 1.0])  # a new epoch counts anew


@pytest.mark.parametrize("name", REFERENCES)
def test_zero_gradient_leaves_the_parameters(name):
    model = Quadratic([1.0, 2.0], [0.0, 0.0])
    _, batch = on_quadratic(model)
    optimizer = optim.create(name, model)
    for _ in range(3):
        report = optimizer.step(batch)
        assert bool(report.finite)
        assert float(report.scalars["learning_rate"]) == 0.0
    assert model.w.tolist() == [0.0, 0.0]


def test_zero_curvature_is_bounded_by_eps_and_cured_by_l2():
    def straight(outputs, targets):
        return (outputs * targets).sum(1)

    ones = torch.ones(1, 1, dtype=torch.float64)
    for l2, expected in ((0.0, 1 / (2 * 1e-3)), (0.5, 1 / (2 * 0.5))):
        model = Quadratic([2.0], [1.0])
        report = optim.create("red_sgd", model, eps=1e-3).step(raycurv.Objective(model, straight, l2).batch(ones, ones))
        assert bool(report.finite)
        assert float(report.scalars["learning_rate"]) == pytest.approx(expected)


def test_small_curvature_above_eps_is_the_printed_rule_to_the_last_digit():
    one, small = torch.tensor(1.0, dtype=torch.float64), torch.tensor(3e-8, dtype=torch.float64)
    assert rescaling(-one, one, small, 2.0, 1e-8).item() == 1 / (2 * 3e-8)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_nan_step_leaves_everything_as_it_was(name, lean):
    """The run goes on as if the bad batch had not been."""
    case, ends = BY_NAME["mlp-l2"], []
    for bad in (False, True):
        model = case.model()
        objective = raycurv.Objective(model, case.loss, case.l2)
        optimizer = optim.create(name, model, lean=lean)
        for t in range(6):
            if bad and t in (0, 3):
                before = [p.detach().clone() for p in model.parameters()]
                report = optimizer.step(objective.batch(case.inputs * math.nan, case.targets))
                assert not bool(report.finite)
                assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
            assert bool(optimizer.step(objective.batch(case.inputs, case.targets)).finite)
        ends.append(list(model.parameters()))
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.mark.parametrize("name", REFERENCES)
def test_state_dict_continues_identically(name):
    case = BY_NAME["batch-norm"]
    model = case.model()
    objective = raycurv.Objective(model, case.loss)
    optimizer = optim.create(name, model, horizon=horizon(), **settings_of(name))
    for _ in range(7):
        optimizer.step(objective.batch(case.inputs, case.targets))
    copy = case.model()
    copy.load_state_dict(model.state_dict())
    other_objective = raycurv.Objective(copy, case.loss)
    other = optim.create(name, copy, horizon=horizon(), **settings_of(name))
    other.load_state_dict(optimizer.state_dict())
    for _ in range(8):
        a = optimizer.step(objective.batch(case.inputs, case.targets))
        b = other.step(other_objective.batch(case.inputs, case.targets))
        assert {k: v.item() for k, v in a.scalars.items()} == {k: v.item() for k, v in b.scalars.items()}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize("name", REFERENCES)
def test_defaults_descend(name):
    case = BY_NAME["mlp"]
    model = case.model().float()
    optimizer, objective = optim.create(name, model), raycurv.Objective(model, case.loss)
    first = float(optimizer.step(objective.batch(case.inputs.float(), case.targets)).loss)
    for _ in range(100):
        report = optimizer.step(objective.batch(case.inputs.float(), case.targets))
    assert float(report.loss) < 0.55 * first
    assert all(p.dtype == torch.float32 for p in model.parameters())


def flops(name, batch_norm, **settings):
    torch.manual_seed(0)
    model = basic_cnn(batch_norm=batch_norm)
    optimizer, objective = optim.create(name, model, **settings), raycurv.Objective(model, "cross_entropy")
    batch = objective.batch(torch.randn(4, 3, 32, 32), torch.arange(4))
    with FlopCounterMode(display=False) as counter:
        optimizer.step(batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_operations_of_a_step(batch_norm):
    baseline = flops("sgd", batch_norm)
    for name in REFERENCES:
        assert flops(name, batch_norm) <= 2.35 * baseline
    assert flops("red_sgd", batch_norm, lean=True) <= 2.7 * baseline


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads from the device."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lean", [False, True])
def test_no_number_is_read_from_the_device(lean):
    case = BY_NAME["batch-norm-l2"]
    model = case.model()
    objective = raycurv.Objective(model, case.loss, case.l2)
    objective.check_consistency = False  # the check of the first batch reads one number
    optimizer = optim.create("red_adam", model, horizon=horizon(), lean=lean)
    with Reads() as reads:
        for _ in range(4):
            optimizer.step(objective.batch(case.inputs, case.targets))
    assert reads.found == 0


def trajectory(rank, workers, name, lean):
    """Global batches of 12 samples, now and then 9 (uneven) or 1 (an empty share), cut for the workers."""
    case = BY_NAME["batch-norm-l2"]
    model = case.model()
    collectives = ProcessGroup() if workers > 1 else Local()
    objective = raycurv.Objective(model, case.loss, case.l2, collectives=collectives)
    optimizer, losses = optim.create(name, model, horizon=horizon(), lean=lean), []
    for t in range(12):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[: (12, 9, 12, 1)[t % 4]]
        share = rows.tensor_split(workers)[rank]
        losses.append(optimizer.step(objective.batch(case.inputs[share], case.targets[share])).loss)
    return {"losses": torch.stack(losses), **{k: v.detach().clone() for k, v in model.state_dict().items()}}


def trajectories(rank, workers):
    return {
        f"{name} {lean}": trajectory(rank, workers, name, lean)
        for name, lean in (("red_sgd", False), ("red_adam", False), ("ran_rmsprop", True))
    }


@pytest.mark.slow
def test_two_workers_are_one_process():
    single = trajectories(0, 1)
    for found in distributed.run(2, trajectories, 2):
        for run, tensors in single.items():
            for key, value in tensors.items():
                torch.testing.assert_close(
                    found[run][key], value, rtol=1e-8, atol=1e-10, msg=lambda m, at=f"{run} {key}": f"{at}: {m}"
                )


def test_several_parameter_groups_are_refused():
    model = BY_NAME["mlp"].model()
    with pytest.raises(ValueError, match=r"red_adam .* takes no parameter groups"):
        optim.create("red_adam", [{"params": [p]} for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("red_sgd", {"scale": 0.0}, r"red_sgd: scale is 0\.0; it must be a positive finite number"),
        ("red_sgd", {"scale": math.nan}, "scale is nan"),
        ("red_rmsprop", {"decay": 1.5}, r"decay is 1\.5; it must be in \(0, 1\]"),
        ("red_rmsprop", {"beta2": 1.0}, r"beta2 is 1\.0; it must be in \[0, 1\)"),
        ("red_momentum", {"beta1": 1.0}, r"beta1 is 1\.0"),
        ("red_adam", {"beta3": -0.1}, r"beta3 is -0\.1"),
        ("ran_sgd", {"factor": 0.0}, r"factor is 0\.0"),
        ("ran_sgd", {"eps": 0.0}, r"eps is 0\.0"),
        ("ran_sgd", {"lean": 1}, "lean is 1; it must be True or False"),
        ("ran_sgd", {"phases": (5, 13)}, r"phases is \(5, 13\); it must be as long as scales"),
        ("ran_rmsprop", {"phases": (5, 0, 2)}, "whole numbers of epochs of at least 1"),
        ("ran_rmsprop", {"phases": (), "scales": ()}, "one or more"),
        ("ran_rmsprop", {"scales": (1.0, -1.0, 2.0)}, "scales is"),
        ("red_sgd", {"beta1": 0.9}, "red_sgd: setting 'beta1' is unknown"),
        ("red_sgd", {"clip_gradient": 1.0}, "clip_gradient has no meaning"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create(name, BY_NAME["mlp"].model(), **settings)


def test_foreign_batches_are_refused():
    optimizer = optim.create("red_sgd", BY_NAME["mlp"].model())
    with pytest.raises(TypeError, match=r"made by Objective\.batch"):
        optimizer.step(lambda: 1.0)
