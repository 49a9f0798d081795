"""Derivatives during the forward pass equal those of a recorded tape, in a fraction of its memory."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raycurv.benchmarks.step_cost import PeakMemory
from raycurv.curvature import ForwardTape, Tape, UnsupportedOperator, rules
from tests.curvature.test_rules import LAYERS, problem


def both(model, x, parameters, direction):
    """First and second derivatives of the outputs by a Tape and by a ForwardTape."""
    with sdpa_kernel(SDPBackend.MATH):
        recorded, forward = Tape(parameters), ForwardTape(parameters, direction)
        for tape in (recorded, forward):
            with tape:
                outputs = model(x)
            tape.finish(outputs)
    return recorded.second_order(direction), (forward.first, forward.second)


def assert_equal(recorded, forward):
    for expected, found in zip(recorded, forward, strict=True):
        if expected is None or found is None:
            assert expected is found
        else:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_pushes_what_the_recorded_tape_does(name):
    model, x, parameters = problem(name)
    direction = [torch.randn_like(p) for p in parameters]
    before = [d.clone() for d in direction]
    assert_equal(*both(model, x, parameters, direction))
    assert all(torch.equal(d, b) for d, b in zip(direction, before, strict=True)), "the direction was overwritten"


@pytest.mark.parametrize(
    "name", ["batch-norm", "batch-norm-1d", "layer-norm", "group-norm", "tanh", "softplus", "gelu"]
)
def test_layers_are_the_same_in_small_chunks(name, monkeypatch):
    model, x, parameters = problem(name)
    direction = [torch.randn_like(p) for p in parameters]
    whole, _ = both(model, x, parameters, direction)
    monkeypatch.setattr(rules, "CHUNK_SIZE", 7)
    for found in both(model, x, parameters, direction):
        assert_equal(whole, found)


def test_values_that_are_read_again_later_keep_their_tangents():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            z = self.norm(y)
            z = torch.tanh(z) + y  # y outlives the norm that could have written over its tangents
            return z * torch.relu(y)

    torch.manual_seed(0)
    model = Again().double()
    parameters = list(model.parameters())
    x = torch.randn(5, 4, dtype=torch.float64)
    assert_equal(*both(model, x, parameters, [torch.randn_like(p) for p in parameters]))


def test_half_precision_is_pushed_in_the_dtypes_of_the_forward_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    parameters = list(model.parameters())
    x, direction = torch.randn(6, 3, 6, 6), [torch.randn_like(p) for p in parameters]
    forward = ForwardTape(parameters, direction)
    with torch.autocast("cpu", torch.bfloat16), forward:
        outputs = model(x)
    forward.finish(outputs)
    recorded = Tape(parameters)
    with torch.autocast("cpu", torch.bfloat16), recorded:
        outputs = model(x)
    recorded.finish(outputs)
    expected = recorded.second_order(direction)
    for found, wanted in zip((forward.first, forward.second), expected, strict=True):
        assert found.dtype == wanted.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_keeps_nothing_of_a_deep_network():
    layers = [m for _ in range(20) for m in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh())]
    model, x = nn.Sequential(*layers), torch.randn(500, 32)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    activation = x.numel() * x.itemsize
    with PeakMemory() as memory:
        with ForwardTape(parameters, direction) as tape:
            outputs = model(x)
        tape.finish(outputs)
    assert memory.peak < 16 * activation  # SGD's graph holds 40 of them


class Differentiated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x).tanh()
        (gradient,) = torch.autograd.grad(y.sum(), self.layer.weight, create_graph=True)
        return y + gradient.sum()


def test_a_model_that_differentiates_is_refused():
    model = Differentiated()
    parameters = list(model.parameters())
    tape = ForwardTape(parameters, [torch.ones_like(p) for p in parameters])
    with pytest.raises(UnsupportedOperator, match="differentiates within its forward pass"), tape:
        model(torch.randn(2, 3))


def test_outputs_without_parameters_are_refused():
    model = nn.Linear(3, 3)
    parameters = list(model.parameters())
    tape = ForwardTape(parameters, [torch.ones_like(p) for p in parameters])
    with tape:
        outputs = model(torch.randn(2, 3)).detach()
    with pytest.raises(UnsupportedOperator, match="do not depend"):
        tape.finish(outputs)
