"""RED and RAn: a learning rate rescaled by the curvature along the direction of the step.

*Adaptive scaling of the learning rate by second order automatic differentiation* (de Gournay, Gossard; 2022). With g
the gradient of the mini-batch and Θ̇ the direction of the step, in step k (Algorithms 1, 3 and 4)

    ĝ ← β₁ĝ + (1−β₁)g      g̃ = ĝ / (1−β₁ᵏ)        momentum; g̃ = g without it
    v̂ ← β₂v̂ + (1−β₂)g²     ṽ = v̂ / (1−β₂ᵏ)        RMSProp
    Θ̇ = g̃ / (√ṽ + ε)                              Θ̇ = g̃ without RMSProp
    c = mean over the samples of |⟨∇²J_s Θ̇, Θ̇⟩| / ‖Θ̇‖²
    ĉ ← β₃ĉ + (1−β₃)c      c̃ = ĉ / (1−β₃ᵏ)        L̃ = max(c̃, c)
    r = |⟨Θ̇, g⟩| / (2‖Θ̇‖² L̃)
    Θ ← Θ − ℓ r Θ̇

The step does not depend on the length of Θ̇. J_s is the loss of one sample with the L2 term; under batch normalisation
it is a function of the whole batch, whose statistics move along the path. ℓ = 1 explores, ℓ = ½ converges: RED goes
from the one to the other over the epochs, RAn anneals between 1, ½ and 2.

Symbols: ℓ ``scale``, η ``decay``, β₁ ``beta1``, β₂ ``beta2``, β₃ ``beta3``, ε ``eps``, the 2 of r ``factor``; among the
scalars of a step ℓr is ``learning_rate``, c ``curvature``, L̃ ``lipschitz``, ℓ ``scale``.

One step costs three matrix products per linear layer for g and four for c, on the activations that g has left: 2.33
times the plain gradient. With ``lean`` it gives them up after g and asks for c apart (``Batch.taylor_along``), which
computes the outputs again: 2.67 times. With ``curvature_fraction`` below 1, c is the mean over the first samples of
each worker's share, and g is of all: 1.33 times at ¼.

Deviations from the paper, and what it leaves open:

- Line 7 of Algorithm 1 has a factor 2 that eq. 10 and 11 do not have. It is ``factor``, 2 as printed; 1 is eq. 10.
- Algorithm 1 names ε and does not use it. Here L̃ is at least ε, which changes nothing where L̃ > ε and keeps r finite
  where the objective is straight along Θ̇. Such a step is as long as 1/(2ε) gradients: where it can happen (piecewise
  linear networks without L2), use an L2 term, as the paper does.
- Where Θ̇ = 0, c and the step are 0.
- |⟨Θ̇, g⟩| (appendix C.1) is taken in every variant: without momentum it is positive anyway.
- ε is added to √ṽ, outside of the root (the print does not tell), as in Adam.
- A step whose loss, gradient, curvature or length is not finite leaves the parameters as they were and is reported; ĝ,
  v̂ and k take in every finite gradient, and nothing of others. It does count as a step of its epoch.
- After the last epoch of the horizon RED's ℓ stays; RAn's goes round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raycurv.objective import Batch, Objective, Taylor
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.registry import register

Params = nn.Module | Iterable[Any]
Schedule = Callable[[int], float]  # epoch, from 0 → ℓ
_STEPS_OF_AN_EPOCH = 196  # the paper's CIFAR-10 with batches of 256, where no horizon tells


def averaged(average: Tensor, value: Tensor, beta: float) -> Tensor:
    """β·average + (1−β)·value, a new tensor."""
    return torch.lerp(value, average, beta)


def curvature_along(absolute_curvature: Tensor, squared_norm: Tensor) -> Tensor:
    """c of Algorithm 1, line 4; 0 along a zero direction."""
    return torch.where(squared_norm > 0, absolute_curvature / squared_norm, 0.0)


def rescaling(slope: Tensor, squared_norm: Tensor, lipschitz: Tensor, factor: float, eps: float) -> Tensor:
    """R of Algorithm 1, line 7, with |⟨Θ̇, g⟩| for directions of ascent; 0 along a zero direction."""
    return torch.where(squared_norm > 0, slope.abs() / (factor * squared_norm * lipschitz.clamp(min=eps)), 0.0)


def exponential_decay(scale: float, decay: float, epochs: int | None) -> Schedule:
    """RED's ℓ (Algorithm 3, line 12): scale·decay^(epoch/epochs), held after the last; constant without an end."""
    if epochs is None:
        return lambda epoch: scale
    return lambda epoch: scale * decay ** (min(epoch, epochs) / epochs)


def annealing(scales: Sequence[float], phases: Sequence[int]) -> Schedule:
    """RAn's ℓ (section 4.3): scales[i] for phases[i] epochs, repeated."""
    cycle = [scale for scale, epochs in zip(scales, phases, strict=True) for _ in range(epochs)]
    return lambda epoch: cycle[epoch % len(cycle)]


class Rescaled(StepOptimizer):
    """The mechanism of all variants (see the module's text for equations and deviations).

    Args:
        name: in messages.
        model_or_params: a module or its parameters, one group.
        schedule: ℓ for each epoch.
        steps_per_epoch: None without a horizon; the share of descent directions then counts from the beginning.
        beta1: β₁ of the momentum; 0 is none.
        beta2: β₂ of RMSProp's preconditioner; None is none.
        beta3: β₃ of the curvature's average.
        factor: of the denominator of r.
        eps: ε, the smallest L̃ and RMSProp's guard.
        lean: keep no activations for the curvature.
        curvature_fraction: of the mini-batch, from which the curvature is taken.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        name: str,
        model_or_params: Params,
        schedule: Schedule,
        steps_per_epoch: int | None,
        *,
        beta1: float = 0.0,
        beta2: float | None = None,
        beta3: float,
        factor: float,
        eps: float,
        lean: bool = False,
        curvature_fraction: float = 1.0,
    ) -> None:
        _check(name, "beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
        _check(name, "beta2", beta2, beta2 is None or 0 <= beta2 < 1, "in [0, 1)")
        _check(name, "beta3", beta3, 0 <= beta3 < 1, "in [0, 1)")
        _check(name, "factor", factor, 0 < factor < math.inf, "positive and finite")
        _check(name, "eps", eps, 0 < eps < math.inf, "positive and finite")
        _check(name, "lean", lean, isinstance(lean, bool), "True or False")
        _check(name, "curvature_fraction", curvature_fraction, 0 < curvature_fraction <= 1, "in (0, 1]")
        _check(
            name, "curvature_fraction", curvature_fraction, curvature_fraction == 1 or not lean, "1 where lean is set"
        )
        super().__init__(one_group(name, model_or_params), {})
        self.curvature_fraction = curvature_fraction
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch
        self.beta1, self.beta2, self.beta3 = beta1, beta2, beta3
        self.factor, self.eps, self.lean = factor, eps, lean

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One step of Algorithm 3: gradient, direction, curvature along it, update."""
        check_batch(self, batch)
        scale = self._start(batch.objective)
        linear = batch.linearise(record=not self.lean, fraction=self.curvature_fraction)
        gradient = linear.pull(linear.gradient)
        if batch.objective.l2:
            gradient.flat.add_(batch.objective.l2_gradient(batch.objective.parameters).flat)
        known = self._follow(gradient)
        direction = self._direction(gradient)
        taylor = None if self.lean else linear.taylor(direction)
        del linear  # and its activations
        taylor = taylor or batch.taylor_along(direction)

        slope, squared_norm = gradient.dot(direction), direction.dot(direction)
        curvature, average, lipschitz = self._lipschitz(taylor, squared_norm)
        rate = scale * rescaling(slope, squared_norm, lipschitz, self.factor, self.eps)
        finite = known & torch.isfinite(torch.stack([taylor.value, squared_norm, rate, average])).all()
        self.shared["curvature"] = torch.where(finite, average, self.shared["curvature"])
        self.shared["descents"] = self.shared["descents"] + finite * torch.stack([slope >= 0, slope == slope])
        move(batch.objective, direction, rate, finite)
        self.shared["steps"] += 1
        return StepReport(
            taylor.value,
            {
                "learning_rate": rate,
                "curvature": curvature,
                "lipschitz": lipschitz,
                "scale": torch.full_like(rate, scale),
                "descent_share": self.shared["descents"][0] / self.shared["descents"][1].clamp(min=1),
            },
            finite,
        )

    def _start(self, objective: Objective) -> float:
        """ℓ of this step; zeros for every average before the first."""
        state = self.shared
        if not state:
            size = sum(p.numel() for p in objective.parameters)
            number = torch.zeros((), dtype=torch.float64, device=objective.device)
            vector = torch.zeros(size, dtype=objective.dtype, device=objective.device)
            state["steps"] = 0
            state["counted"] = number  # k, without the steps that were skipped
            state["curvature"] = number.clone()  # ĉ
            state["descents"] = number.new_zeros(2)  # steps with ⟨g, Θ̇⟩ ≥ 0, and all, of this epoch
            if self.beta1:
                state["gradient"] = vector.clone()  # ĝ
            if self.beta2 is not None:
                state["square"] = vector.clone()  # v̂
        if self.steps_per_epoch is not None and state["steps"] % self.steps_per_epoch == 0:
            state["descents"] = torch.zeros_like(state["descents"])
        return self.schedule(state["steps"] // (self.steps_per_epoch or _STEPS_OF_AN_EPOCH))

    def _follow(self, gradient: Direction) -> Tensor:
        """Take the gradient into k, ĝ and v̂, in place, if it and its square are finite; returns whether they are."""
        state, g = self.shared, gradient.flat
        known = torch.isfinite(torch.linalg.vector_norm(g).square())
        gradient.keep_if(known)
        count = known.double()
        state["counted"] = state["counted"] + count
        if self.beta1:
            state["gradient"].lerp_(g, ((1 - self.beta1) * count).to(g.dtype))
        if self.beta2 is not None:
            state["square"].mul_(1 - (1 - self.beta2) * count).addcmul_(g, g, value=1 - self.beta2)
        return known

    def _direction(self, gradient: Direction) -> Direction:
        """Θ̇ (Algorithm 3, lines 5-9, and Algorithm 4): the gradient itself, or a new vector."""
        state = self.shared
        top = state["gradient"] if self.beta1 else gradient.flat
        factor = 1 / _correction(self.beta1, state["counted"], top) if self.beta1 else 1.0
        if self.beta2 is not None:
            root = (state["square"] / _correction(self.beta2, state["counted"], top)).sqrt_().add_(self.eps)
            return Direction(torch.div(top, root, out=root).mul_(factor), gradient)
        return Direction(top * factor, gradient) if self.beta1 else gradient

    def _lipschitz(self, taylor: Taylor, squared_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C, ĉ and L̃ (Algorithm 1, lines 4-6)."""
        curvature = curvature_along(taylor.absolute_curvature, squared_norm)
        average = averaged(self.shared["curvature"], curvature, self.beta3)
        corrected = average / _correction(self.beta3, self.shared["counted"], average)
        return curvature, average, torch.maximum(corrected, curvature)


def _correction(beta: float, counted: Tensor, like: Tensor) -> Tensor:
    """1 − βᵏ."""
    return (1 - beta**counted).to(like.dtype)


def move(objective: Objective, direction: Direction, rate: Tensor, finite: Tensor) -> None:
    """Θ ← Θ − rate·Θ̇, or nothing at all if a number is not finite: decided on the device."""
    direction.flat.mul_(-rate.to(direction.flat.dtype))
    torch._foreach_add_(objective.parameters, direction.keep_if(finite))


def _check(optimizer: str, name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{optimizer}: {name} is {value!r}; it must be {allowed}")


def _decaying(name: str, model_or_params: Params, horizon: Horizon | None, scale: float, decay: float,
              **settings: Any) -> Rescaled:  # fmt: skip
    """A variant whose ℓ decays over the epochs of the horizon."""
    _check(name, "scale", scale, 0 < scale < math.inf, "positive and finite")
    _check(name, "decay", decay, 0 < decay <= 1, "in (0, 1]")
    schedule = exponential_decay(scale, decay, None if horizon is None else horizon.epochs)
    return Rescaled(name, model_or_params, schedule, _epoch_of(horizon), **settings)


def _annealed(name: str, model_or_params: Params, horizon: Horizon | None, scales: Sequence[float],
              phases: Sequence[int], **settings: Any) -> Rescaled:  # fmt: skip
    """A variant whose ℓ goes through phases."""
    _check(name, "scales", scales, all(0 < scale < math.inf for scale in scales), "positive and finite numbers")
    whole = bool(phases) and all(isinstance(epochs, int) and epochs >= 1 for epochs in phases)
    _check(name, "phases", phases, whole, "one or more whole numbers of epochs of at least 1")
    _check(name, "phases", phases, len(phases) == len(scales), f"as long as scales, which is {scales!r}")
    return Rescaled(name, model_or_params, annealing(scales, phases), _epoch_of(horizon), **settings)


def _momentum_scale(name: str, scale: float | None, beta1: float) -> float:
    """ℓ of the first epoch with momentum: 1 − β₁ if it is not given."""
    _check(name, "beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
    return 1 - beta1 if scale is None else scale


def _epoch_of(horizon: Horizon | None) -> int | None:
    return None if horizon is None else horizon.steps_per_epoch


@register("red_sgd")
def red_sgd(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    scale: float = 1.0,  # ℓ of the first epoch
    decay: float = 0.5,  # η
    beta3: float = 0.9,
    factor: float = 2.0,
    eps: float = 1e-8,
    lean: bool = False,
    curvature_fraction: float = 1.0,
) -> Rescaled:
    """RED along the gradient (Algorithm 3).

    Args:
        model_or_params: a module or its parameters, one group.
        horizon: its epochs spread the decay. Without it ℓ stays at `scale`, as no epochs are known.
        scale: ℓ of the first epoch.
        decay: η, by which ℓ is multiplied over all epochs.
        beta3: β₃ of the curvature's average.
        factor: of the denominator of r: 2 as printed in Algorithm 1, 1 as in eq. 10.
        eps: ε, the smallest L̃.
        lean: keep no activations for the curvature, compute them again.
        curvature_fraction: of the mini-batch, from which the curvature is taken.
    """
    settings = {"beta3": beta3, "factor": factor, "eps": eps, "lean": lean,
                "curvature_fraction": curvature_fraction}  # fmt: skip
    return _decaying("red_sgd", model_or_params, horizon, scale, decay, **settings)


@register("red_rmsprop")
def red_rmsprop(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    scale: float = 1.0,  # ℓ of the first epoch
    decay: float = 0.5,  # η
    beta2: float = 0.999,
    beta3: float = 0.9,
    factor: float = 2.0,
    eps: float = 1e-8,
    lean: bool = False,
    curvature_fraction: float = 1.0,
) -> Rescaled:
    """RED along RMSProp's direction (Algorithm 3); `beta2` is β₂ of the squares' average, the rest as in `red_sgd`."""
    settings = {"beta2": beta2, "beta3": beta3, "factor": factor, "eps": eps, "lean": lean,
                "curvature_fraction": curvature_fraction}  # fmt: skip
    return _decaying("red_rmsprop", model_or_params, horizon, scale, decay, **settings)


@register("ran_sgd")
def ran_sgd(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    scales: Sequence[float] = (1.0, 0.5, 2.0),  # ℓ
    phases: Sequence[int] = (5, 13, 2),
    beta3: float = 0.9,
    factor: float = 2.0,
    eps: float = 1e-8,
    lean: bool = False,
    curvature_fraction: float = 1.0,
) -> Rescaled:
    """RAn along the gradient (section 4.3).

    Args:
        model_or_params: a module or its parameters, one group.
        horizon: its steps per epoch. Without it an epoch counts 196 steps, as the paper's CIFAR-10.
        scales: ℓ of exploration, convergence and hyper-exploration.
        phases: epochs of each of them.
        beta3: β₃ of the curvature's average.
        factor: of the denominator of r: 2 as printed in Algorithm 1, 1 as in eq. 10.
        eps: ε, the smallest L̃.
        lean: keep no activations for the curvature, compute them again.
        curvature_fraction: of the mini-batch, from which the curvature is taken.
    """
    settings = {"beta3": beta3, "factor": factor, "eps": eps, "lean": lean,
                "curvature_fraction": curvature_fraction}  # fmt: skip
    return _annealed("ran_sgd", model_or_params, horizon, scales, phases, **settings)


@register("ran_rmsprop")
def ran_rmsprop(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    scales: Sequence[float] = (1.0, 0.5, 2.0),  # ℓ
    phases: Sequence[int] = (5, 13, 2),
    beta2: float = 0.999,
    beta3: float = 0.9,
    factor: float = 2.0,
    eps: float = 1e-8,
    lean: bool = False,
    curvature_fraction: float = 1.0,
) -> Rescaled:
    """RAn along RMSProp's direction (section 4.3); `beta2` is β₂ of the squares' average, the rest as in `ran_sgd`."""
    settings = {"beta2": beta2, "beta3": beta3, "factor": factor, "eps": eps, "lean": lean,
                "curvature_fraction": curvature_fraction}  # fmt: skip
    return _annealed("ran_rmsprop", model_or_params, horizon, scales, phases, **settings)


@register("red_momentum")
def red_momentum(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    scale: float | None = None,  # ℓ of the first epoch
    decay: float = 0.5,  # η
    beta1: float = 0.9,
    beta3: float = 0.9,
    factor: float = 2.0,
    eps: float = 1e-8,
    lean: bool = False,
    curvature_fraction: float = 1.0,
) -> Rescaled:
    """RED along the averaged gradient (Algorithm 4).

    `beta1` is β₁ of the gradient's average. `scale` None takes 1 − β₁, with which the paper's runs converge (Fig. 7;
    with 1 they do not, Fig. 6). The scalar ``descent_share`` is eq. 26: the share of the epoch's steps so far whose
    direction is one of descent for the batch. The rest as in `red_sgd`.
    """
    settings = {"beta1": beta1, "beta3": beta3, "factor": factor, "eps": eps, "lean": lean,
                "curvature_fraction": curvature_fraction}  # fmt: skip
    scale = _momentum_scale("red_momentum", scale, beta1)
    return _decaying("red_momentum", model_or_params, horizon, scale, decay, **settings)


@register("red_adam")
def red_adam(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    scale: float | None = None,  # ℓ of the first epoch
    decay: float = 0.5,  # η
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float = 0.9,
    factor: float = 2.0,
    eps: float = 1e-8,
    lean: bool = False,
    curvature_fraction: float = 1.0,
) -> Rescaled:
    """RED along Adam's direction (Algorithm 4 with RMSProp): settings of `red_rmsprop` and `red_momentum`."""
    settings = {"beta1": beta1, "beta2": beta2, "beta3": beta3, "factor": factor, "eps": eps, "lean": lean,
                "curvature_fraction": curvature_fraction}  # fmt: skip
    scale = _momentum_scale("red_adam", scale, beta1)
    return _decaying("red_adam", model_or_params, horizon, scale, decay, **settings)
