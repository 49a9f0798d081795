"""Derivatives under float16 autocast, against those of float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raycurv import Objective, optim
from raycurv.objective.loss_scale import HIGHEST_SCALE, LOWEST_SCALE, LossScale, direction_factor

CPU = torch.device("cpu")
FP16 = {"device_type": "cpu", "dtype": torch.float16}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Softplus(), nn.Flatten(), nn.Linear(288, 4))


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)


def objective_with(factor: float, **options: int) -> Objective:
    """Cross-entropy times a factor."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * functional.cross_entropy(outputs, targets, reduction="none")

    return Objective(network(), loss, **options)


def direction_of(objective: Objective, size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [size * torch.randn(p.shape, generator=generator) for p in objective.parameters]


def is_power_of_two(number: Tensor) -> bool:
    return float(torch.frexp(number)[0]) == 0.5


@pytest.mark.parametrize("options", [{}, {"micro_batch": 6}], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("factor", [1.0, 1e-6])
def test_a_gradient_too_small_for_float16_is_that_of_float32(factor, options):
    exact, rough = objective_with(factor).batch(*images()), objective_with(factor, **options)
    if options:
        rough.model.eval()
        exact.objective.model.eval()
    with torch.autocast(**FP16):
        batch = rough.batch(*images())
        loss, gradient = batch.value_and_gradient()
    expected = exact.gradient().flat
    assert gradient.flat.dtype == torch.float32
    assert (gradient.flat - expected).norm() < 2e-3 * expected.norm()
    assert loss.item() == pytest.approx(exact.value().item(), rel=1e-3)
    assert not batch.lowered


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
@pytest.mark.parametrize("question", ["taylor_along", "linearise"])
def test_slope_and_curvature_are_those_of_float32_whatever_the_length_of_the_direction(question, size):
    objective = objective_with(1.0)
    direction = direction_of(objective, size)
    exact = objective.batch(*images()).taylor_along(direction)
    with torch.autocast(**FP16):
        batch = objective.batch(*images())
        rough = batch.taylor_along(direction) if question == "taylor_along" else batch.linearise().taylor(direction)
    for name in ("slope", "curvature", "absolute_curvature"):
        assert getattr(rough, name).item() == pytest.approx(getattr(exact, name).item(), rel=0.02), name


@pytest.mark.parametrize("size", [1e-7, 1e7])
def test_a_tangent_is_that_of_float32_whatever_the_length_of_the_direction(size):
    objective = objective_with(1.0)
    direction = direction_of(objective, size)
    exact = objective.batch(*images()).linearise(direction).tangent
    with torch.autocast(**FP16):
        rough = objective.batch(*images()).linearise(direction).tangent
    assert (rough - exact).norm() < 5e-3 * exact.norm()


def test_an_overflow_halves_the_scale_until_steps_are_taken():
    objective = objective_with(2e3)
    optimizer = optim.create("sgd", objective.model, learning_rate=1e-8)
    taken, scales = [], [float(objective.loss_scale.at(CPU))]
    with torch.autocast(**FP16):
        for _ in range(12):
            batch, before = objective.batch(*images()), [p.detach().clone() for p in objective.parameters]
            report = optimizer.step(batch)
            taken.append(bool(report.finite))
            assert bool(batch.lowered) != taken[-1]
            assert taken[-1] != all(map(torch.equal, before, objective.parameters))
            scales.append(float(objective.loss_scale.at(CPU)))
    assert not taken[0]
    assert taken[-1]
    assert taken == sorted(taken)
    lowered = taken.count(False)
    assert scales[lowered:] == [2.0**16 / 2**lowered] * (13 - lowered)


def test_the_scale_doubles_after_many_gradients_without_an_overflow():
    scale = LossScale(initial=4.0, growth_interval=3)
    good, bad, found = torch.ones(5), torch.tensor([1.0, float("inf")]), []
    for gradient in (good, good, bad, good, good, good, good):
        scale.update(gradient)
        found.append(float(scale.at(CPU)))
    assert found == [4, 4, 2, 2, 2, 4, 4]


def test_the_scale_stays_within_its_bounds_and_reports_what_it_cannot_cure():
    scale = LossScale(initial=LOWEST_SCALE * 2, growth_interval=1)
    bad = torch.tensor([float("nan")])
    assert [bool(scale.update(bad)) for _ in range(3)] == [True, False, False]
    assert float(scale.at(CPU)) == LOWEST_SCALE
    for _ in range(40):
        scale.update(torch.zeros(3))
    assert float(scale.at(CPU)) == HIGHEST_SCALE


def test_a_saved_scale_goes_on_where_it_was():
    first = LossScale(growth_interval=4)
    for value in (float("inf"), 1.0, 1.0):
        first.update(torch.tensor(value))
    second = LossScale(growth_interval=4)
    assert second.state_dict() == {}
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        first.update(torch.ones(1))
        second.update(torch.ones(1))
    assert float(second.at(CPU)) == float(first.at(CPU)) == 2.0**16
    with pytest.raises(ValueError, match="scale is 3; it must be a positive, finite power of two"):
        second.load_state_dict({"scale": torch.tensor(3.0), "finite_gradients": torch.zeros(())})


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30, float("nan")])
def test_factors_of_directions_are_powers_of_two(size):
    objective = objective_with(1.0)
    factor = direction_factor(direction_of(objective, size), objective.parameters, torch.tensor(2.0**16))
    assert is_power_of_two(factor)


def test_a_direction_without_tensors_has_the_tangent_zero():
    objective = objective_with(1.0)
    with torch.autocast(**FP16):
        tangent = objective.batch(*images()).linearise().push([None] * len(objective.parameters))
    assert torch.equal(tangent, torch.zeros(16, 4))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_nothing_is_scaled_without_float16(dtype):
    objective = objective_with(1.0)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        batch = objective.batch(*images())
        batch.gradient()
    assert batch.lowered is None
    assert objective.loss_scale.state_dict() == {}


@pytest.mark.parametrize("name", ["auto", "curveball", "red_sgd", "llr_second_order", "adam", "salera"])
def test_optimizers_descend_in_float16(name):
    objective = objective_with(1.0)
    optimizer = optim.create(name, objective.model, horizon=optim.Horizon(4, 5, 80))
    with torch.autocast(**FP16):
        losses = [float(optimizer.step(objective.batch(*images())).loss) for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
