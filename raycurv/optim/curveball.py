"""CurveBall: one step of a Newton solver for each step of the network.

*Small Steps and Giant Leaps: Minimal Newton Solvers for Deep Learning* (Henriques, Ehrhardt, Albanie, Vedaldi; ICCV
2019).

With Ĥ = J_φ H_L J_φᵀ + λI, one step is (Algorithm 1, eq. 16–18)

    Δz = Ĥz + J = J_φ(H_L J_φᵀz + J_L) + λz          one forward pass, one J_φᵀz, one backward pass
    z ← ρz − βΔz                                     one J_φᵀΔz for the 2×2 system that gives β and ρ
    w ← w + z

Symbols: w parameters, z ``direction``, β ``learning_rate``, ρ ``momentum``, λ ``damping``, γ ``reduction_ratio``.

Deviations from the paper:

- λ is multiplied by ``damping_factor ** damping_interval`` at each check, as both public implementations do; the text
  says 0.999 for each adaptation.
- The 2×2 system is solved in float64 by a pseudo-inverse after scaling its diagonal to one. At z = 0 (the first step),
  and where z and Δz are collinear, it is singular, and the minimum of least norm is taken.
- A step whose loss, system or Δz is not finite leaves z and w unchanged and is reported.
- A step that leads to a non-finite loss counts as γ < ½: λ grows, unless it is fixed, and the step is taken back. The
  first step and the steps that check λ evaluate the loss after the step. There z and w are restored and the step is
  reported as not taken. After any other step the next mini-batches show it. If two in a row fail, w goes back to where
  it was before the step and z to 0. One failure changes nothing, because the mini-batch itself may be the cause, such
  as one with a NaN. This takes a copy of w.
- The step does not depend on the size of the batch, so a short last batch of an epoch takes a full step. A run leaves
  it out with ``drop_last``.
- γ says nothing where the predicted change is below the rounding of the loss, as at a minimum: λ stays as it is there.
- An L2 term belongs to the objective: its Hessian l2·I is added to Ĥ and its gradient l2·w to J.
- With ``curvature_fraction`` below 1, J_φ H_L J_φᵀ is taken from the first samples of each worker's share, and J from
  all: 1.33 times the operations of an SGD step at ¼. The slopes Jᵀz and JᵀΔz of eq. 18 are those of all samples, as
  ⟨J, Δz⟩ = ⟨Δz − Ĥz, Δz⟩ needs no further pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raycurv.arguments import require
from raycurv.objective import Batch, Linearisation, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, has_batch_norm, one_group
from raycurv.optim.registry import register

_DAMPING_WITH_BATCH_NORM, _DAMPING_WITHOUT = 1.0, 10.0  # section 3, "Automatic λ hyper-parameter rescaling"


def solve_system(matrix: Tensor, right: Tensor, tolerance: float) -> Tensor:
    """Pseudo-inverse of a symmetric positive semi-definite 2×2 matrix times a vector (eq. 18).

    All decisions are made on the device.

    Args:
        matrix: (2, 2) float64.
        right: (2,) float64.
        tolerance: value of 1 − cos² between the two directions below which they count as collinear.
    """
    diagonal = matrix.diagonal().clamp(min=0)
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    scaled_right = scale * right
    cosine = matrix[0, 1] * scale[0] * scale[1]
    determinant = 1 - cosine.square()
    regular = (determinant > tolerance) & (diagonal > 0).all()
    crossed = scaled_right - cosine * scaled_right.flip(0)
    full = crossed / torch.where(regular, determinant, 1.0)
    # Rank one: [[1, c], [c, 1]] with c = ±1 has the pseudo-inverse [[1, c], [c, 1]] / 4; a zero row, 1 / diagonal.
    sign = torch.sign(cosine)
    collinear = (scaled_right + sign * scaled_right.flip(0)) / 4
    single = torch.where((diagonal > 0).all(), collinear, scaled_right)
    return scale * torch.where(regular, full, single)


def quadratic(matrix: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """f̂ = bᵀx + ½ xᵀKx: change of the objective predicted by the quadratic model."""
    return right @ x + 0.5 * x @ matrix @ x


def rescaled_damping(damping: Tensor, reduction_ratio: Tensor, factor: float) -> Tensor:
    """λ·factor where γ > 3/2, λ/factor where γ < 1/2 (section 3)."""
    smaller = torch.where(reduction_ratio > 1.5, damping * factor, damping)
    return torch.where(reduction_ratio < 0.5, damping / factor, smaller)


@register("curveball")
class CurveBall(StepOptimizer):
    """CurveBall with ρ and β in closed form and λ adapted (see the module's text for equations and deviations).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        damping: λ₀. None takes the paper's choice: 1 for a model with batch normalisation, 10 without.
        damping_factor: factor of λ per step, applied once per interval.
        damping_interval: steps between two checks of λ; None keeps λ fixed ("without λ rescaling", Table 2).
        momentum: ρ; None solves for it. 1.0 is Fig. 8.
        learning_rate: β; None solves for it. With both fixed the 2×2 system and its pass are left out (Theorem A.1).
        curvature_fraction: share of the mini-batch that the curvature is taken from.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        damping: float | None = None,  # λ₀
        damping_factor: float = 0.999,
        damping_interval: int | None = 5,
        momentum: float | None = None,  # ρ
        learning_rate: float | None = None,  # β
        curvature_fraction: float = 1.0,
    ) -> None:
        holds = damping is None or 0 <= damping < math.inf
        require("curveball: damping", damping, holds, "None or a finite number of at least 0")
        require("curveball: damping_factor", damping_factor, 0 < damping_factor <= 1, "in (0, 1]")
        holds = damping_interval is None or damping_interval >= 1
        require("curveball: damping_interval", damping_interval, holds, "None or at least 1")
        holds = momentum is None or math.isfinite(momentum)
        require("curveball: momentum", momentum, holds, "None or a finite number")
        holds = learning_rate is None or 0 < learning_rate < math.inf
        require("curveball: learning_rate", learning_rate, holds, "None or a positive finite number")
        require("curveball: curvature_fraction", curvature_fraction, 0 < curvature_fraction <= 1, "in (0, 1]")
        super().__init__(one_group("curveball", model_or_params), {})
        self.curvature_fraction = curvature_fraction
        self.damping, self.damping_factor, self.damping_interval = damping, damping_factor, damping_interval
        self.momentum, self.learning_rate = momentum, learning_rate

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One step of Algorithm 1 with eq. 18, and every ``damping_interval`` steps a check of λ on the same batch."""
        check_batch(self, batch)
        objective = batch.objective
        z, damping, steps = self._start(objective)
        linear = batch.linearise(z if steps else None, fraction=self.curvature_fraction)  # z₀ = 0 has the tangent 0
        tangent_z = linear.tangent if linear.tangent is not None else torch.zeros_like(linear.gradient)

        curved_z = linear.hessian(tangent_z)
        # Before the backward pass, because the product need not be kept then.
        sums = [linear.inner(tangent_z, curved_z), linear.inner(linear.gradient, tangent_z)] if self._solves else []
        cotangent = curved_z + linear.gradient
        del curved_z
        step_direction = linear.pull(cotangent)  # Δz, eq. 17
        del cotangent
        _add_regularisers(step_direction.flat, objective, z, damping)

        loss, matrix, right = self._system(linear, objective, z, tangent_z, sums, step_direction, damping)
        x = self._coefficients(matrix, right, torch.finfo(z.flat.dtype).eps)
        finite = torch.isfinite(torch.cat([loss.view(1), matrix.flatten(), right, x])).all()
        del linear  # frees the activations
        scalars = {"learning_rate": -x[0], "momentum": x[1], "damping": damping}

        revoked = ~finite & (self.shared["failures"] == 1)  # the second failure in a row: the last step led here
        new = _next_direction(z, step_direction, x, finite)
        self._move(objective, new, finite, revoked)
        taken, ratio = finite, torch.where(revoked, 0.0, math.nan)  # γ; NaN leaves λ as it is
        adapts = self.damping_interval is not None and (steps + 1) % self.damping_interval == 0
        if adapts or steps == 0:
            after = batch.value()
            taken = finite & torch.isfinite(after)
            undone = finite & ~taken
            _replace(objective.parameters, self._previous(objective), undone)
            if adapts:
                predicted = quadratic(matrix, right, x)
                scalars["reduction_ratio"] = (after - loss) / predicted
                informative = taken & (predicted.abs() > torch.finfo(z.flat.dtype).eps * loss.abs())
                ratio = torch.where(informative, scalars["reduction_ratio"], ratio)
            ratio = torch.where(undone, 0.0, ratio)
        z.flat.lerp_(new, (taken | revoked).to(new.dtype))  # exact: both are finite, and the weight is 0 or 1
        self._finish(steps, damping, finite, ratio)
        return StepReport(loss, scalars, taken)

    def _start(self, objective: Objective) -> tuple[Direction, Tensor, int]:
        """z, λ and the number of steps taken; at the first step z₀ = 0 and λ₀."""
        state = self.shared
        if not state:
            chosen = _default_damping(objective.model) if self.damping is None else self.damping
            state["direction"] = torch.zeros(
                sum(p.numel() for p in objective.parameters), dtype=objective.dtype, device=objective.device
            )
            state["damping"] = torch.tensor(chosen, dtype=torch.float64, device=objective.device)
            state["steps"] = 0
        if "failures" not in state:  # also in states of earlier versions
            state["failures"] = torch.zeros((), dtype=torch.int64, device=objective.device)
            state["previous_parameters"] = torch.cat([p.detach().reshape(-1) for p in objective.parameters])
        return Direction(state["direction"], objective.parameters), state["damping"], state["steps"]

    @property
    def _solves(self) -> bool:
        """Whether the system of eq. 18 is needed, by the coefficients or by the check of λ."""
        return self.momentum is None or self.learning_rate is None or self.damping_interval is not None

    def _system(
        self,
        linear: Linearisation,
        objective: Objective,
        z: Direction,
        tangent_z: Tensor,
        sums: Sequence[Tensor],
        delta: Direction,
        damping: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """J(w), and the K and b of eq. 18 in the order (Δz, z), in one small all-reduce.

        Args:
            linear: the linearisation.
            objective: the objective.
            z: z.
            tangent_z: J_φᵀz.
            sums: ⟨J_φᵀz, H_L J_φᵀz⟩ and ⟨J_L, J_φᵀz⟩ of this worker.
            delta: Δz.
            damping: λ.
        """
        gradient = linear.gradient
        if not self._solves:
            data_loss = linear.loss()
            loss = data_loss + objective.l2_value(objective.parameters)
            zero = 0 * delta.dot(delta).expand(2)  # NaN where Δz is not finite
            return loss, torch.zeros(2, 2, dtype=loss.dtype, device=loss.device), zero
        tangent_delta = linear.push(delta)
        curved_delta = linear.hessian(tangent_delta)
        data_loss, k11, k12, k22, b1, b2 = linear.means(
            linear.inner(tangent_delta, curved_delta),
            linear.inner(tangent_z, curved_delta),
            sums[0],
            linear.inner(gradient, tangent_delta),
            sums[1],
        )
        matrix = torch.stack([k11, k12, k12, k22]).view(2, 2)
        z_delta = z.dot(delta)
        norms = torch.stack([delta.dot(delta), z_delta, z_delta, z.dot(z)]).view(2, 2)
        right = torch.stack([b1, b2])
        if linear.partial:  # J = Δz − Ĥz, whose l2·z is subtracted below
            right = norms[0] - damping * norms[1] - torch.stack([k12, k22])
        matrix = matrix + damping * norms
        if objective.l2:
            l2_delta, l2_z = objective.l2_gradient(delta), objective.l2_gradient(z)
            at = objective.direction(objective.parameters)
            shared = l2_z.dot(delta)
            matrix = matrix + torch.stack([l2_delta.dot(delta), shared, shared, l2_z.dot(z)]).view(2, 2)
            if linear.partial:
                right = right - torch.stack([shared, l2_z.dot(z)])
            else:
                right = right + torch.stack([l2_delta.dot(at), l2_z.dot(at)])
        return data_loss + objective.l2_value(objective.parameters), matrix, right

    def _move(self, objective: Objective, new: Tensor, finite: Tensor, revoked: Tensor) -> None:
        """w ← w + z; or w from before the last step if that is revoked. Decided on the device."""
        previous = self._previous(objective)
        _replace(previous, objective.parameters, finite)
        _replace(objective.parameters, previous, revoked)
        torch._foreach_add_(objective.parameters, Direction(new, objective.parameters))

    def _previous(self, objective: Objective) -> Direction:
        """w before the last step that was taken."""
        return Direction(self.shared["previous_parameters"], objective.parameters)

    def _finish(self, steps: int, damping: Tensor, finite: Tensor, ratio: Tensor) -> None:
        """Count the step, and adapt λ to γ where γ is known."""
        state = self.shared
        state["steps"], state["failures"] = steps + 1, torch.where(finite, 0, state["failures"] + 1)
        if self.damping_interval is not None:
            state["damping"] = rescaled_damping(damping, ratio, self.damping_factor**self.damping_interval)

    def _coefficients(self, matrix: Tensor, right: Tensor, eps: float) -> Tensor:
        """x = (−β, ρ), minimising f̂ over what is not fixed."""
        if self.momentum is None and self.learning_rate is None:
            return -solve_system(matrix, right, 8 * eps)
        if self.momentum is not None and self.learning_rate is not None:
            return matrix.new_tensor([-self.learning_rate, self.momentum])
        if self.momentum is not None:
            rho = matrix.new_tensor(self.momentum)
            return torch.stack([_minimum(matrix[0, 0], right[0] + rho * matrix[0, 1]), rho])
        assert self.learning_rate is not None
        minus_beta = matrix.new_tensor(-self.learning_rate)
        return torch.stack([minus_beta, _minimum(matrix[1, 1], right[1] + minus_beta * matrix[0, 1])])


def _minimum(curvature: Tensor, slope: Tensor) -> Tensor:
    """argmin of slope·x + ½ curvature·x², 0 where there is no curvature."""
    return torch.where(curvature > 0, -slope / curvature, 0.0)


def _add_regularisers(delta: Tensor, objective: Objective, z: Direction, damping: Tensor) -> None:
    """Δz += λz + l2(w + z): contribution of the damping and the L2 term to Ĥz + J."""
    delta.addcmul_(z.flat, damping.to(delta.dtype).expand_as(delta))
    if objective.l2:
        delta.add_(objective.l2_gradient(objective.parameters).flat).add_(objective.l2_gradient(z).flat)


def _next_direction(z: Direction, delta: Direction, x: Tensor, finite: Tensor) -> Tensor:
    """ρz − βΔz, or 0 if a number is not finite; in the memory of Δz. No entry is NaN or infinite."""
    minus_beta, rho = x.to(z.flat.dtype)
    # masked_fill_ and torch.where take four to ten times as long on a CPU.
    return delta.flat.mul_(minus_beta).addcmul_(z.flat, rho).nan_to_num_().mul_(finite)


def _replace(tensors: Sequence[Tensor], values: Sequence[Tensor], condition: Tensor) -> None:
    """Set the tensors to the values if a 0-d condition holds, in place; decided on the device."""
    for tensor, value in zip(tensors, values, strict=True):
        torch.where(condition, value, tensor, out=tensor)


def _default_damping(model: nn.Module) -> float:
    return _DAMPING_WITH_BATCH_NORM if has_batch_norm(model) else _DAMPING_WITHOUT
