"""Compiled questions against those computed operator by operator, in float64."""

import copy
import dataclasses
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from raycurv import Objective, optim
from raycurv.objective import compiled_pass
from raycurv.objective.compiled_steps import MOST_KINDS
from tests.cases import BY_NAME, CASES, Case

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(4, (12,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def interpreted(monkeypatch):
    """Traced graphs without Inductor: what is traced and cut, in a fraction of the time."""
    monkeypatch.setattr(compiled_pass, "compile_graph", lambda graph, inputs: graph)


def direction_of(objective: Objective, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    return objective.direction(torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in objective.parameters)


def answers(case: Case, compile: bool, batches: int = 4):
    """Every answer about several batches, parameters, buffers and random numbers at the end; and the objective."""
    model = case.model()
    objective = Objective(model, case.loss, case.l2, compile=compile)
    direction, found = direction_of(objective), []
    torch.manual_seed(3)
    for index in range(batches):
        rows = slice(index % 2, None, 2)
        batch = objective.batch(case.inputs[rows], case.targets[rows])
        linear = batch.linearise(direction)
        cotangent = linear.hessian(linear.tangent) + linear.gradient
        found += [linear.tangent, linear.pull(cotangent).flat, linear.push(direction_of(objective, 6)), linear.loss()]
        found += vars(linear.taylor(direction)).values()
        found += vars(batch.taylor_along(direction)).values()
        found += vars(batch.taylor_along(direction, at=0.1)).values()
        value, gradient = batch.value_and_gradient()
        found += [batch.value(), batch.values_along(direction, [0.1, -0.2]), value, gradient.flat]
        with torch.no_grad():
            torch._foreach_add_(objective.parameters, list(direction), alpha=1e-3)
    return [*found, *model.state_dict().values(), torch.rand(3)], objective


def kinds(objective: Objective):
    return list(objective.compiled_steps._kinds.values())


def require_same_answers(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, objective = answers(case, compile=True)
    assert all(kind.compiled for kind in kinds(objective))
    for one, other in zip(found, answers(case, compile=False)[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_traced_questions_have_the_same_answers(case, interpreted):
    require_same_answers(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Inductor's own imports
def test_compiled_questions_have_the_same_answers():
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))

    require_same_answers(dataclasses.replace(BY_NAME["mlp-l2"], build=build))


@pytest.mark.parametrize("name", ["curveball", "red_sgd", "red_adam", "llr_second_order", "ntlr_sgd", "salera"])
def test_steps_with_compiled_questions_follow_the_same_path(name, interpreted):
    def end(compile: bool) -> torch.Tensor:
        case = BY_NAME["batch-norm-l2"]
        model = case.model()
        horizon = optim.Horizon(epochs=2, steps_per_epoch=6, training_samples=len(case.inputs))
        optimizer = optim.create(name, model, horizon=horizon)
        objective = Objective(model, case.loss, case.l2, compile=compile)
        for _ in range(12):
            batch, held_out = (objective.batch(case.inputs[i::2], case.targets[i::2]) for i in range(2))
            optimizer.step(batch, validation=held_out if optimizer.needs_validation else None)
        return torch.cat([p.detach().flatten() for p in (*model.parameters(), *model.buffers())])

    torch.testing.assert_close(end(True), end(False), rtol=1e-7, atol=1e-9)


def gradients(model: nn.Module, batches: int = 4, inputs: torch.Tensor = X, **options):
    """Gradients of several batches with `compile`, and the objective."""
    objective = Objective(model, "cross_entropy", compile=True, **options)
    torch.manual_seed(0)
    return [objective.batch(inputs + i, Y[: len(inputs)]).gradient().flat for i in range(batches)], objective


def require_uncompiled(model: nn.Module, reason: str, **options) -> None:
    """The answers are right, and one warning gives the reason why they are not compiled."""
    state = copy.deepcopy(model.state_dict())
    random.seed(0)
    with pytest.warns(RuntimeWarning, match=reason) as found:
        compiled, objective = gradients(model, **options)
    assert len([warning for warning in found if "compile=True" in str(warning.message)]) == 1
    assert all(kind.refused for kind in kinds(objective))
    objective.compiled_steps = None
    model.load_state_dict(state)
    random.seed(0)
    torch.manual_seed(0)
    for i, gradient in enumerate(compiled):
        torch.testing.assert_close(objective.batch(X + i, Y).gradient().flat, gradient)


class Model(nn.Module):
    """A linear layer before a function of (module, x)."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(6, 4).double(), function

    def forward(self, x):
        return self.function(self, self.linear(x))


def test_a_decision_on_values_is_not_compiled(interpreted):
    require_uncompiled(Model(lambda _, x: x if x.sum() > 0 else x.tanh()), "computed operator by operator: ")


def test_random_numbers_of_python_are_not_compiled(interpreted):
    require_uncompiled(Model(lambda _, x: x if random.random() < 0.5 else x.tanh()), "generator of Python")


def test_a_number_that_left_torch_is_found(interpreted):
    # numpy() is out of sight of a trace, which takes the number for a constant.
    model = Model(lambda _, x: x * float(x.detach().numpy().sum()))
    require_uncompiled(model, "gives other numbers", check_consistency=False)


def test_wrong_code_is_found(monkeypatch):
    def wrong(graph, inputs):
        return lambda *values: [2 * value for value in graph(*values)]

    monkeypatch.setattr(compiled_pass, "compile_graph", wrong)
    require_uncompiled(Model(lambda _, x: x.tanh()), "gives other numbers")


def test_a_missing_compiler_is_named(monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in ...")

    monkeypatch.setattr(compiled_pass, "compile_graph", fail)
    require_uncompiled(Model(lambda _, x: x.tanh()), r"there is no C\+\+ compiler; install g\+\+ or clang\+\+")


def test_a_replaced_buffer_is_not_compiled(interpreted):
    def count(module, x):
        module.seen = module.seen + 1
        return x / module.seen

    model = Model(count)
    model.register_buffer("seen", torch.ones((), dtype=torch.float64))
    require_uncompiled(model, "replaces its buffer 'seen'")


def test_an_attribute_that_changes_is_followed(interpreted):
    model = Model(lambda module, x: x * module.factor)
    objective = Objective(model, "cross_entropy", compile=True)
    for factor in (1.0, 1.0, 1.0, 3.0, 3.0, 3.0):
        model.factor = factor
        value, compiled = objective.batch(X, Y).value(), objective.compiled_steps
        objective.compiled_steps = None
        torch.testing.assert_close(value, objective.batch(X, Y).value())
        objective.compiled_steps = compiled
    assert [kind.compiled is not None for kind in kinds(objective)] == [True, True]


def test_an_attribute_that_changes_at_every_step_is_compiled_for_a_few_values(interpreted):
    model = Model(lambda module, x: x * module.factor)
    objective = Objective(model, "cross_entropy", compile=True)

    def ask(factor: float) -> None:
        model.factor = factor
        for _ in range(2):
            objective.batch(X, Y).value()

    for factor in range(MOST_KINDS):
        ask(float(factor))
    with pytest.warns(RuntimeWarning, match=f"more than {MOST_KINDS} kinds of batches"):
        ask(-1.0)


def test_a_tensor_attribute_that_is_replaced_is_followed(interpreted):
    model = Model(lambda module, x: x * module.factor)
    objective = Objective(model, "cross_entropy", compile=True)
    for factor in (1.0, 2.0, 3.0):
        model.factor = torch.full((), factor, dtype=torch.float64)
        value, compiled = objective.batch(X, Y).value(), objective.compiled_steps
        objective.compiled_steps = None
        torch.testing.assert_close(value, objective.batch(X, Y).value())
        objective.compiled_steps = compiled


def test_spectral_normalisation_reads_its_vectors_as_they_were(interpreted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4)).double()
    objective, plain = (Objective(copy.deepcopy(model), "cross_entropy", compile=c) for c in (True, False))
    for _ in range(4):
        found, expected = (o.batch(X, Y).linearise(direction_of(o)) for o in (objective, plain))
        torch.testing.assert_close(found.tangent, expected.tangent)
        torch.testing.assert_close(found.pull(found.gradient).flat, expected.pull(expected.gradient).flat)
    for one, other in zip(objective.model.buffers(), plain.model.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_half_precision_takes_the_casts_of_the_model(interpreted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    objective, plain = (Objective(model, "cross_entropy", compile=compile) for compile in (True, False))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            found, expected = (o.batch(X.float(), Y).linearise(direction_of(o)) for o in (objective, plain))
            torch.testing.assert_close(found.outputs, expected.outputs)
            torch.testing.assert_close(found.tangent, expected.tangent)
            torch.testing.assert_close(found.pull(found.gradient).flat, expected.pull(expected.gradient).flat)
    assert kinds(objective)[0].compiled


def test_a_pull_after_a_step_is_refused(interpreted):
    objective = Objective(Model(lambda _, x: x.tanh()), "cross_entropy", compile=True)
    for _ in range(2):
        objective.batch(X, Y).gradient()
    linear = objective.batch(X, Y).linearise(record=False)
    with torch.no_grad():
        objective.parameters[0].add_(1)
    with pytest.raises(RuntimeError, match="modified in place"):
        linear.pull(linear.gradient)


def test_the_mode_of_the_model_is_followed(interpreted):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    objective = Objective(model, "cross_entropy", compile=True)
    plain = Objective(model, "cross_entropy")
    for _ in range(3):
        objective.batch(X, Y).value()
    model.eval()
    for _ in range(3):
        torch.testing.assert_close(objective.batch(X, Y).value(), plain.batch(X, Y).value())


def test_an_uneven_last_batch_is_computed_too(interpreted):
    model = Model(lambda _, x: x.tanh())
    objective, plain = Objective(model, "cross_entropy", compile=True), Objective(model, "cross_entropy")
    for size in (12, 5, 12, 5, 12, 5):
        found, expected = (o.batch(X[:size], Y[:size]).gradient().flat for o in (objective, plain))
        torch.testing.assert_close(found, expected)


def test_a_question_that_comes_later_is_answered_and_then_compiled(interpreted):
    model = Model(lambda _, x: x.tanh())
    objective, plain = Objective(model, "cross_entropy", compile=True), Objective(model, "cross_entropy")
    for i in range(5):
        linear, expected = (o.batch(X, Y).linearise() for o in (objective, plain))
        torch.testing.assert_close(linear.pull(linear.gradient).flat, expected.pull(expected.gradient).flat)
        if i >= 2:
            direction = direction_of(objective)
            torch.testing.assert_close(linear.push(direction), expected.push(direction))
            torch.testing.assert_close(linear.taylor(direction).curvature, expected.taylor(direction).curvature)
    assert kinds(objective)[0].compiled.questions == {"pull", "push", "second_order"}


def test_several_workers_compile_nothing_and_say_so():
    class Two(SimpleNamespace):
        size, rank = 2, 0

    with pytest.warns(RuntimeWarning, match="no effect with several workers"):
        objective = Objective(nn.Linear(6, 4), "cross_entropy", collectives=Two(), compile=True)
    assert objective.compiled_steps is None


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_divided_batches_are_compiled(fraction, interpreted):
    model = Model(lambda _, x: x.tanh())
    size = 5 if fraction == 1 else None
    found = []
    for compile in (True, False):
        objective = Objective(model, "cross_entropy", micro_batch=size, compile=compile)
        for _ in range(3):
            linear = objective.batch(X, Y).linearise(direction_of(objective), fraction=fraction)
            found.append([linear.tangent, linear.pull(linear.gradient).flat, linear.push(direction_of(objective, 6))])
    for one, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, other)


def test_counted_operations_are_those_without_compilation(interpreted):
    from raycurv.objective.operations import OperationCounter

    def total(compile: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        objective, optimizer = Objective(model, "cross_entropy", compile=compile), optim.create("curveball", model)
        objective.operations = OperationCounter()
        for _ in range(25):
            with objective.operations.step():
                optimizer.step(objective.batch(X, Y))
        return [objective.operations._sum]

    assert total(True) == total(False)


@pytest.mark.filterwarnings("default")
def test_a_module_that_the_user_has_compiled_is_compiled_here(interpreted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    found, objective = gradients(torch.compile(model))
    assert all(kind.compiled for kind in kinds(objective))
    expected, _ = gradients(model)
    torch.testing.assert_close(found, expected)


def test_single_jumps_of_derivatives_are_no_reason_and_missing_ones_are():
    expected = torch.ones(4000)
    jump = expected.clone()
    jump[7] = 2.0
    assert compiled_pass._close_on_average(jump, expected, 1e-3)
    assert not compiled_pass._close_on_average(jump.fill_(0.99), expected, 1e-3)
    assert not compiled_pass._close_on_average(None, expected, 1e-3)
