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
it is a function of the whole batch, whose statistics change along the path. ℓ = 1 explores, ℓ = ½ converges: RED decays
from 1 to ½ over the epochs, RAn anneals between 1, ½ and 2.

Symbols: ℓ ``scale``, η ``decay``, β₁ ``beta1``, β₂ ``beta2``, β₃ ``beta3``, ε ``eps``, the 2 of r ``factor``. Scalars
of a step: ℓr ``learning_rate``, c ``curvature``, L̃ ``lipschitz``, ℓ ``scale``.

One step costs three matrix products per linear layer for g and four for c on the activations kept from g: 2.33 times
the plain gradient. With ``lean`` the activations are freed after g, and ``Batch.taylor_along`` computes them again for
c: 2.67 times. With ``curvature_fraction`` below 1, c is the mean over the first samples of each worker's share and g
the mean over all samples: 1.33 times at ¼.

Deviations from the paper, and what it leaves open:

- Theorem 1 states a cost of (1.5C, 2M), or of (2C, 1M) by divide and conquer, with C the time and M the memory of the
  gradient. It counts each of three passes as C/2. In matrix products per linear layer, Algorithm 2 takes 6 where the
  gradient takes 3: forward 1, backward 2, tangent 2, and 1 for ∇²F_s of Table 1, which is (2C, 2M).
- Algorithm 2 is not used here. Line 4 of Algorithm 1 needs the curvature of each sample, and batch normalisation
  couples the samples in the adjoints X̂. The second derivative travels forward beside the tangent instead. That takes 7
  products, 2.33C, and keeps activations but no adjoints; with ``lean`` it takes 8, 2.67C, and keeps neither.
- Line 7 of Algorithm 1 has a factor 2 that eq. 10 and 11 do not have. It is ``factor``, 2 as printed; 1 is eq. 10.
- Algorithm 1 names ε and does not use it. Here L̃ is at least ε, which changes nothing where L̃ > ε and keeps r finite
  where the objective is linear along Θ̇. Such a step is as long as 1/(2ε) gradients: where it can happen (piecewise
  linear networks without L2), use an L2 term, as the paper does.
- Where Θ̇ = 0, c and the step are 0.
- |⟨Θ̇, g⟩| (appendix C.1) is taken in every variant: without momentum it is positive anyway.
- ε is added to √ṽ, outside of the root (the paper does not say), as in Adam.
- A step whose loss, gradient, curvature or length is not finite leaves the parameters unchanged and is reported. ĝ, v̂
  and k include every finite gradient and no other. Such a step still counts as one of its epoch.
- After the last epoch of the horizon RED's ℓ stays; RAn's phases repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch, Objective, Taylor
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.registry import register_variant

Schedule = Callable[[int], float]  # epoch, from 0 → ℓ
_STEPS_PER_EPOCH = 196  # without a horizon: the paper's CIFAR-10 with batches of 256


def averaged(average: Tensor, value: Tensor, beta: float) -> Tensor:
    """β·average + (1−β)·value, a new tensor."""
    return torch.lerp(value, average, beta)


def curvature_along(absolute_curvature: Tensor, squared_norm: Tensor) -> Tensor:
    """c of Algorithm 1, line 4; 0 for a zero direction."""
    return torch.where(squared_norm > 0, absolute_curvature / squared_norm, 0.0)


def rescaling(slope: Tensor, squared_norm: Tensor, lipschitz: Tensor, factor: float, eps: float) -> Tensor:
    """R of Algorithm 1, line 7, with |⟨Θ̇, g⟩| for directions of ascent; 0 for a zero direction."""
    return torch.where(squared_norm > 0, slope.abs() / (factor * squared_norm * lipschitz.clamp(min=eps)), 0.0)


def exponential_decay(scale: float, decay: float, epochs: int | None) -> Schedule:
    """RED's ℓ (Algorithm 3, line 12): scale·decay^(epoch/epochs), constant after the last epoch or without `epochs`."""
    if epochs is None:
        return lambda epoch: scale
    return lambda epoch: scale * decay ** (min(epoch, epochs) / epochs)


def annealing(scales: Sequence[float], phases: Sequence[int]) -> Schedule:
    """RAn's ℓ (section 4.3): scales[i] for phases[i] epochs, repeated."""
    cycle = [scale for scale, epochs in zip(scales, phases, strict=True) for _ in range(epochs)]
    return lambda epoch: cycle[epoch % len(cycle)]


class Rescaled(StepOptimizer):
    """Step shared by RED and RAn (see the module's text for equations and deviations).

    Args:
        name: optimizer named in messages.
        model_or_params: module or its parameters, one group.
        schedule: maps an epoch to ℓ.
        steps_per_epoch: optimizer steps in one pass; without them ``descent_share`` counts from the first step.
        beta1: β₁ of the momentum; 0 is none.
        beta2: β₂ of RMSProp's preconditioner; None is none.
        beta3: β₃ of the curvature's average.
        factor: factor in the denominator of r.
        eps: ε, the smallest L̃ and RMSProp's guard.
        lean: whether to compute the activations again for the curvature instead of keeping them.
        curvature_fraction: share of the mini-batch that the curvature is taken from.

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
        require(f"{name}: beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
        require(f"{name}: beta2", beta2, beta2 is None or 0 <= beta2 < 1, "in [0, 1)")
        require(f"{name}: beta3", beta3, 0 <= beta3 < 1, "in [0, 1)")
        require_positive(f"{name}: factor", factor)
        require_positive(f"{name}: eps", eps)
        require(f"{name}: lean", lean, isinstance(lean, bool), "True or False")
        fraction = f"{name}: curvature_fraction"
        require(fraction, curvature_fraction, 0 < curvature_fraction <= 1, "in (0, 1]")
        require(fraction, curvature_fraction, curvature_fraction == 1 or not lean, "1 where lean is set")
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
        accepted = self._accumulate(gradient)
        direction = self._direction(gradient)
        taylor = None if self.lean else linear.taylor(direction)
        del linear  # frees the activations
        taylor = taylor or batch.taylor_along(direction)

        slope, squared_norm = gradient.dot(direction), direction.dot(direction)
        curvature, average, lipschitz = self._lipschitz(taylor, squared_norm)
        rate = scale * rescaling(slope, squared_norm, lipschitz, self.factor, self.eps)
        finite = accepted & torch.isfinite(torch.stack([taylor.value, squared_norm, rate, average])).all()
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
        """ℓ of this step; at the first, all averages are initialised with zero."""
        state = self.shared
        if not state:
            size = sum(p.numel() for p in objective.parameters)
            zero = torch.zeros((), dtype=torch.float64, device=objective.device)
            vector = torch.zeros(size, dtype=objective.dtype, device=objective.device)
            state["steps"] = 0
            state["counted"] = zero  # k, without the steps that were skipped
            state["curvature"] = zero.clone()  # ĉ
            state["descents"] = zero.new_zeros(2)  # of this epoch: steps with ⟨g, Θ̇⟩ ≥ 0, and all steps
            if self.beta1:
                state["gradient"] = vector.clone()  # ĝ
            if self.beta2 is not None:
                state["square"] = vector.clone()  # v̂
        if self.steps_per_epoch is not None and state["steps"] % self.steps_per_epoch == 0:
            state["descents"] = torch.zeros_like(state["descents"])
        return self.schedule(state["steps"] // (self.steps_per_epoch or _STEPS_PER_EPOCH))

    def _accumulate(self, gradient: Direction) -> Tensor:
        """Update k, ĝ and v̂, in place, if the gradient and its square are finite; returns whether they are."""
        state, g = self.shared, gradient.flat
        finite = torch.isfinite(torch.linalg.vector_norm(g).square())
        gradient.keep_if(finite)
        count = finite.double()
        state["counted"] = state["counted"] + count
        if self.beta1:
            state["gradient"].lerp_(g, ((1 - self.beta1) * count).to(g.dtype))
        if self.beta2 is not None:
            state["square"].mul_(1 - (1 - self.beta2) * count).addcmul_(g, g, value=1 - self.beta2)
        return finite

    def _direction(self, gradient: Direction) -> Direction:
        """Θ̇ (Algorithm 3, lines 5-9, and Algorithm 4): the gradient itself, or a new vector."""
        state = self.shared
        mean = state["gradient"] if self.beta1 else gradient.flat
        factor = 1 / _correction(self.beta1, state["counted"], mean) if self.beta1 else 1.0
        if self.beta2 is not None:
            root = (state["square"] / _correction(self.beta2, state["counted"], mean)).sqrt_()
            root.add_(self._guard(root))
            return Direction(torch.div(mean, root, out=root).mul_(factor), gradient)
        return Direction(mean * factor, gradient) if self.beta1 else gradient

    def _guard(self, root: Tensor) -> Tensor | float:
        """ε of RMSProp's preconditioner, given √ṽ."""
        return self.eps

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
    """Θ ← Θ − rate·Θ̇, or no change if a number is not finite: decided on the device."""
    direction.flat.mul_(-rate.to(direction.flat.dtype))
    torch._foreach_add_(objective.parameters, direction.keep_if(finite))


class RED(Rescaled):
    """RED (Algorithms 3 and 4): ℓ decays over the epochs.

    The defaults go along the gradient. ``beta1`` adds momentum, ``beta2`` RMSProp's preconditioner, both Adam's
    direction. With momentum the scalar ``descent_share`` (eq. 26) shows how often the direction is one of descent.

    Args:
        model_or_params: module or its parameters, one group.
        horizon: spreads the decay over its epochs; without it ℓ stays at `scale`.
        scale: ℓ of the first epoch. None takes 1 − β₁, with which the paper's runs with momentum converge (Fig. 7;
            with 1 they do not, Fig. 6).
        decay: η, by which ℓ is multiplied over all epochs.
        beta1: β₁ of the gradient's average; 0 is none.
        beta2: β₂ of the squares' average in RMSProp's preconditioner; None is none.
        beta3: β₃ of the curvature's average.
        factor: factor in the denominator of r: 2 as printed in Algorithm 1, 1 as in eq. 10.
        eps: ε, the smallest L̃ and RMSProp's guard.
        lean: whether to compute the activations again for the curvature instead of keeping them.
        curvature_fraction: share of the mini-batch that the curvature is taken from.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        scale: float | None = None,  # ℓ of the first epoch
        decay: float = 0.5,  # η
        beta1: float = 0.0,
        beta2: float | None = None,
        beta3: float = 0.9,
        factor: float = 2.0,
        eps: float = 1e-8,
        lean: bool = False,
        curvature_fraction: float = 1.0,
    ) -> None:
        name = f"red_{direction_name(beta1, beta2)}"
        require(f"{name}: beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
        self.scale = 1 - beta1 if scale is None else scale
        self.decay, self.horizon = decay, horizon
        require_positive(f"{name}: scale", self.scale)
        require(f"{name}: decay", decay, 0 < decay <= 1, "in (0, 1]")
        schedule = exponential_decay(self.scale, decay, None if horizon is None else horizon.passes)
        self.follows_horizon = horizon is not None and decay < 1
        super().__init__(
            name,
            model_or_params,
            schedule,
            None if horizon is None else horizon.steps_per_epoch,
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            factor=factor,
            eps=eps,
            lean=lean,
            curvature_fraction=curvature_fraction,
        )


class RAn(Rescaled):
    """RAn (section 4.3): ℓ goes through phases of exploration, convergence and hyper-exploration.

    Args:
        model_or_params: module or its parameters, one group.
        horizon: gives the steps of an epoch; without it an epoch counts 196 steps, as the paper's CIFAR-10.
        scales: ℓ of each phase.
        phases: epochs of each phase.
        beta2: β₂ of the squares' average in RMSProp's preconditioner; None is none.
        beta3: β₃ of the curvature's average.
        factor: factor in the denominator of r: 2 as printed in Algorithm 1, 1 as in eq. 10.
        eps: ε, the smallest L̃ and RMSProp's guard.
        lean: whether to compute the activations again for the curvature instead of keeping them.
        curvature_fraction: share of the mini-batch that the curvature is taken from.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        scales: Sequence[float] = (1.0, 0.5, 2.0),  # ℓ
        phases: Sequence[int] = (5, 13, 2),
        beta2: float | None = None,
        beta3: float = 0.9,
        factor: float = 2.0,
        eps: float = 1e-8,
        lean: bool = False,
        curvature_fraction: float = 1.0,
    ) -> None:
        name = f"ran_{direction_name(0.0, beta2)}"
        self.scales, self.phases, self.horizon = scales, phases, horizon
        require(f"{name}: scales", scales, all(0 < x < math.inf for x in scales), "positive and finite numbers")
        whole = bool(phases) and all(isinstance(epochs, int) and epochs >= 1 for epochs in phases)
        require(f"{name}: phases", phases, whole, "one or more whole numbers of epochs of at least 1")
        require(f"{name}: phases", phases, len(phases) == len(scales), f"as long as scales, which is {scales!r}")
        super().__init__(
            name,
            model_or_params,
            annealing(scales, phases),
            None if horizon is None else horizon.steps_per_epoch,
            beta2=beta2,
            beta3=beta3,
            factor=factor,
            eps=eps,
            lean=lean,
            curvature_fraction=curvature_fraction,
        )


def direction_name(beta1: float, beta2: float | None) -> str:
    """The direction of the step in the registered names: ``sgd``, ``momentum``, ``rmsprop`` or ``adam``."""
    if beta2 is None:
        return "momentum" if beta1 else "sgd"
    return "adam" if beta1 else "rmsprop"


_BETAS = {"beta1": 0.9, "beta2": 0.999}
register_variant("red_sgd", RED, "RED along the gradient (Algorithm 3).", fixed={"beta1": 0.0, "beta2": None})
register_variant(
    "red_rmsprop", RED, "RED along RMSProp's direction (Algorithm 3).", fixed={"beta1": 0.0}, defaults={"beta2": 0.999}
)
register_variant(
    "red_momentum",
    RED,
    "RED along the averaged gradient (Algorithm 4).",
    fixed={"beta2": None},
    defaults={"beta1": 0.9},
)
register_variant("red_adam", RED, "RED along Adam's direction (Algorithm 4 with RMSProp).", fixed={}, defaults=_BETAS)
register_variant("ran_sgd", RAn, "RAn along the gradient (section 4.3).", fixed={"beta2": None})
register_variant(
    "ran_rmsprop", RAn, "RAn along RMSProp's direction (section 4.3).", fixed={}, defaults={"beta2": 0.999}
)
