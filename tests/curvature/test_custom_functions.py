"""Custom autograd functions and operators: derivatives of their own, registered ones, and those of their backward."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.jit._fuser import optimized_execution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from raycurv.curvature import ForwardTape, Tape, UnsupportedOperator, register_operator, rules
from raycurv.curvature.custom_functions import FUNCTION_RULES
from tests.curvature.test_operators import check


class Cube(Function):
    """With a derivative of its own."""

    @staticmethod
    def forward(x, scale):
        return scale * x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * ctx.scale * x**2 * g, None

    @staticmethod
    def jvp(ctx, d, _):
        (x,) = ctx.saved_tensors
        return 3 * ctx.scale * x**2 * d


class Registered(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * x * y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return 2 * x * y * g, x * x * g


def registered_first(x, y, dx, dy):
    return (0 if dx is None else 2 * x * y * dx) + (0 if dy is None else x * x * dy)


def registered_second(x, y, dx, dy):
    return 0 * x if dx is None else 2 * y * dx * dx + (0 if dy is None else 4 * x * dx * dy)


class StraightThrough(Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g


class Once(Function):
    """Its backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, d):
        return d


@pytest.fixture(autouse=True)
def unregistered():
    tables = (FUNCTION_RULES, rules.RULES, rules.KEEPS_INPUT, rules.WITHIN_FUNCTIONS)
    known = [table.copy() for table in tables]
    yield
    for table, before in zip(tables, known, strict=True):
        table.clear()
        table.update(before)


def test_a_function_with_a_derivative_of_its_own():
    check(lambda x: Cube.apply(x, 2.0) * x, [(4, 6)])


def test_a_registered_function():
    register_operator(Registered, registered_first, registered_second)
    check(lambda x, y: Registered.apply(x, y) * x, [(4, 6), (4, 6)])
    check(lambda x: Registered.apply(x, torch.ones(6).double()) * x, [(4, 6)])


@pytest.mark.parametrize(("function", "slope"), [(StraightThrough, 1.0), (Reversed, -0.5)])
def test_derivatives_are_those_of_the_backward_pass_where_that_is_registered(function, slope):
    register_operator(function)
    x, d = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    forward = ForwardTape([x], [d])
    for tape in (Tape([x]), forward):
        with tape:
            out = function.apply(x * x)
        tape.finish(out)
        first, second = (tape.first, tape.second) if tape is forward else tape.second_order([d])
        torch.testing.assert_close(first, slope * 2 * x.detach() * d)
        torch.testing.assert_close(second, slope * 2 * d * d)


def test_a_backward_pass_that_cannot_be_differentiated_is_named():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    tape = Tape([x])
    with tape:
        out = Once.apply(x * 1)
    tape.finish(out)
    tape.push([torch.ones_like(x)])
    with pytest.raises(UnsupportedOperator, match="Once"):
        tape.second_order([torch.ones_like(x)])


def test_functions_are_left_as_they_are_outside_of_tapes():
    before = Function.__dict__["apply"]
    x = torch.ones(2, requires_grad=True)
    with Tape([x]), Tape([x]):
        assert Function.__dict__["apply"] is not before
    with pytest.raises(ValueError, match="inside"), Tape([x]):
        raise ValueError("inside")
    assert Function.__dict__["apply"] is before


def test_a_function_that_writes_in_place_is_refused():
    class InPlace(Registered):
        @staticmethod
        def forward(ctx, x, y):
            ctx.mark_dirty(x)
            ctx.save_for_backward(x.clone(), y)
            return x.mul_(x).mul_(y)

    register_operator(InPlace, registered_first, registered_second)
    x = torch.randn(5, requires_grad=True)
    tape = Tape([x])
    with pytest.raises(UnsupportedOperator, match="InPlace"), tape:
        tape.finish(InPlace.apply(x * 1, x * 2))


def test_an_operator_of_a_library_of_ones_own():
    @torch.library.custom_op("raycurv_tests::cube", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x**3

    cube.register_autograd(lambda ctx, g: 3 * ctx.x**2 * g, setup_context=lambda ctx, inputs, output: setattr(
        ctx, "x", inputs[0]))  # fmt: skip
    with pytest.raises(UnsupportedOperator, match="raycurv_tests"):
        check(lambda x: cube(x) * x, [(4, 6)])
    register_operator(cube, lambda x, d: 3 * x**2 * d, lambda x, d: 6 * x * d**2)
    check(lambda x: cube(x) * x, [(4, 6)])


@pytest.mark.parametrize("operator", [3, "cube", nn.Linear])
def test_what_is_no_operator_is_refused(operator):
    with pytest.raises(TypeError, match="operator must be"):
        register_operator(operator)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers(use_reentrant):
    layer = nn.Linear(6, 6).double()

    def function(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return checkpoint(lambda y: torch.tanh(layer(y)) * y, x, use_reentrant=use_reentrant)

    check(function, [(4, 6)])


def test_scripted_functions():
    def function(x: Tensor) -> Tensor:
        y = x * torch.sigmoid(x)
        return y * y + x.tanh()

    def other(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted, optimised = torch.jit.script(function), torch.jit.script(other)
    with optimized_execution(False):  # as Objective runs models
        for _ in range(3):  # the executor specialises after some calls
            check(lambda x: scripted(x) * x, [(4, 6)])
    for _ in range(4):
        optimised(torch.randn(4, 6).double().requires_grad_())
    with pytest.raises(UnsupportedOperator, match="optimized_execution"):
        check(lambda x: optimised(x) * x, [(4, 6)])


def test_a_branch_of_cond():
    def function(x):
        return torch.cond(x.sum() > -1e9, lambda y: y * y, lambda y: y.sin(), (x,)) * x

    check(function, [(4, 6)])


def test_nested_tensors_are_refused_and_the_process_goes_on():
    x = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(UnsupportedOperator, match="nested"), Tape([x]):
        torch.nested.as_nested_tensor([x[0, :2] * 1, x[1] * 1], layout=torch.jagged)


def test_a_padding_mask_in_evaluation_mode():
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).double().eval()
    mask = torch.tensor([[False, False, True, True]])
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    tape = Tape([x])
    with tape, sdpa_kernel(SDPBackend.MATH):
        out = encoder(x * 1, src_key_padding_mask=mask)  # not compared with values without gradients, which differ
    tape.finish(out)
    u, d = torch.randn_like(out), torch.randn_like(x)
    torch.testing.assert_close((u * tape.push([d])).sum(), (torch.autograd.grad(out, x, u)[0] * d).sum())
