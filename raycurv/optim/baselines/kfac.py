"""K-FAC: the gradient times the inverse of a Kronecker-factored Gauss-Newton matrix, from the package curvlinops.

*Optimizing Neural Networks with Kronecker-factored Approximate Curvature* (Martens and Grosse 2015), and for
convolutions Grosse and Martens (2016); the comparison of CurveBall's Figure 2 on the MNIST MLP. For each linear or
convolutional layer, with the inputs a (1 appended for the bias) and back-propagated columns g of H_L's square root,

    A = E[a aᵀ],  B = E[g gᵀ],    Δ = −τ (A ⊗ B + λI)⁻¹ ∇J

The optional extra ``kfac`` installs the package, which computes A, B and the product with the inverse.

With ``adaptive``, rate, momentum and damping are the paper's (sections 6.4, 6.5 and 7). With F the exact Gauss-Newton
matrix of the mini-batch, of the same H_L,

    δ = αΔ + μδ₀,    (α, μ) minimising M(δ) = ∇Jᵀδ + ½ δᵀ(F + (λ + l2)I)δ,    Θ ← Θ + δ

where Δ = −(A ⊗ B + (λ + l2)I)⁻¹ ∇J and δ₀ is the step before. Every T₁ = 5 steps, with ρ = (J(Θ + δ) − J(Θ)) / M(δ):
λ ← ω₁^T₁·λ where ρ > ¾, λ ← λ/ω₁^T₁ where ρ < ¼, ω₁ = 19/20.

Symbols: τ ``learning_rate``, λ ``damping``, ε of the averages ``memory``, μ ``momentum``.

Choices, and parts of the paper that are left out:

- A and B are averages over the steps with the factor min(1 − 1/k, ε), ε = 0.95 (section 5 of the paper).
- B is that of the Gauss-Newton matrix itself, with one backward pass for each output, where the paper samples one
  target for each input from the model: no random number, so the step does not depend on the number of workers.
- λ is added to A ⊗ B as a whole, by eigenvalues, together with the factor of the L2 term. The paper adds √λ to the
  factors (section 6.3) and adapts this number by trials of its own (section 6.6); neither is needed here.
- By default τ, λ and the momentum μ are constant: v ← μv + (A ⊗ B + λI)⁻¹∇J, Θ ← Θ − τv, as in the authors' public
  TensorFlow implementation, whose momentum is 0.9. CurveBall's paper uses that code "with the best learning rate for
  each method". The default of 0.1 with λ = 0.01 and μ = 0 is a start.
- With ``adaptive``, λ₀ is 150, as in the paper. Its mini-batches that grow and its average of the iterates (section 13)
  are left out. A checked step that leads to a non-finite loss is not taken and counts as ρ < ¼.
- The factors are computed and their averages decomposed in every step: some fifteen times the time of a step of SGD on
  a small MLP with ten outputs.
- Parameters in other layers (normalisations, embeddings) take plain steps −τ∇J, as is usual.
- A step whose loss, gradient, factors or product is not finite is not taken, and the report says so.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, has_batch_norm, one_group
from raycurv.optim.baselines.extras import extra
from raycurv.optim.curveball import quadratic, solve_system
from raycurv.optim.registry import register

_LAYERS = (nn.Linear, nn.Conv2d)
_FIRST_DAMPING = 150.0  # λ₀ of section 13
_DAMPING_FACTOR, _CHECK_EVERY = 19 / 20, 5  # ω₁ and T₁ of section 6.5


@register("kfac")
class KFAC(StepOptimizer):
    """K-FAC with constant rate and damping, or the paper's adaptive ones (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: τ, the setting ``lr`` of the parameter group, which torch's schedulers can change. Without use if
            `adaptive`.
        damping: λ, or λ₀ if `adaptive`; None is 0.01, or 150 if `adaptive`.
        memory: ε, in [0, 1).
        momentum: μ, in [0, 1); without use if `adaptive`.
        adaptive: whether rate and momentum come from the quadratic model at every step, and λ is adapted.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
        ModuleNotFoundError: the extra ``kfac`` is not installed.
    """

    synchronises = True

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.1,  # τ
        damping: float | None = None,  # λ
        memory: float = 0.95,  # ε
        momentum: float = 0.0,  # μ
        adaptive: bool = False,
    ) -> None:
        require_positive("kfac: learning_rate", learning_rate)
        if damping is None:
            damping = _FIRST_DAMPING if adaptive else 0.01
        require_positive("kfac: damping", damping)
        require("kfac: memory", memory, 0 <= memory < 1, "in [0, 1)")
        require("kfac: momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        super().__init__(one_group("kfac", model_or_params), {"lr": learning_rate})
        _package()
        self.learning_rate, self.damping, self.memory = learning_rate, damping, memory
        self.momentum, self.adaptive = momentum, adaptive

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient, the factors of the batch, and one product with the inverse of their averages.

        Raises:
            ValueError: the loss has no Kronecker factors, samples are weighted, or batches are split.
            NotImplementedError: batch normalisation on several workers.
        """
        check_batch(self, batch)
        _check_supported(batch.objective)
        loss, gradient = batch.value_and_gradient()
        finite = torch.isfinite(loss) & torch.isfinite(gradient.flat).all()
        if self.adaptive:
            return self._adaptive_step(batch, loss, gradient, finite)
        rate = self.param_groups[0]["lr"]
        if finite:
            finite = self._precondition(batch, gradient, self.damping)
        if finite:
            if self.momentum:
                gradient.flat.add_(self._last(gradient), alpha=self.momentum)
                self.shared["last"] = gradient.flat
            torch._foreach_sub_(batch.objective.parameters, gradient, alpha=rate)
        return StepReport(loss, {"learning_rate": torch.full_like(loss, rate)}, finite)

    def _adaptive_step(self, batch: Batch, loss: Tensor, gradient: Direction, finite: Tensor) -> StepReport:
        """One step of sections 6.4, 6.5 and 7."""
        damping, count = self.shared.get("damping", self.damping), self.shared.get("taken", 0) + 1
        scalars = {"damping": torch.full_like(loss, damping)}
        if not finite:
            return StepReport(loss, scalars, finite)
        delta = Direction(gradient.flat.clone(), gradient)
        finite = self._precondition(batch, delta, damping)
        if not finite:
            return StepReport(loss, scalars, finite)
        delta.flat.neg_()
        last = Direction(self._last(gradient), gradient)
        matrix, right = _quadratic_model(batch, gradient, delta, last, damping + batch.objective.l2)
        x = -solve_system(matrix, right, 8 * torch.finfo(gradient.flat.dtype).eps)
        step = Direction(delta.flat.mul_(x[0]).add_(x[1] * last.flat), gradient)
        finite = torch.isfinite(step.flat).all()
        if count % _CHECK_EVERY == 0:
            after = batch.values_along(step, [1.0])[0]
            ratio = (after - loss) / quadratic(matrix, right, x)
            self.shared["damping"] = _adapted(damping, float(ratio))
            scalars["reduction_ratio"], finite = ratio, finite & torch.isfinite(after)
        self.shared["taken"] = count
        if finite:
            torch._foreach_add_(batch.objective.parameters, step)
            self.shared["last"] = step.flat
        return StepReport(loss, {**scalars, "learning_rate": x[0], "momentum": x[1]}, finite)

    def _last(self, like: Direction) -> Tensor:
        """The step or the velocity before; 0 at first."""
        return cast("Tensor", self.shared.get("last", torch.zeros_like(like.flat)))

    def _precondition(self, batch: Batch, gradient: Direction, damping: float) -> Tensor:
        """Multiply the layers' gradients by the inverse, in place; False if the factors or the product overflow."""
        objective = batch.objective
        model = _BatchModel(batch)
        covered = model.layers_parameters()
        if not covered:
            return torch.isfinite(gradient.flat).all()
        loss, scale = _loss_and_scale(batch)
        operator = _package().KFACLinearOperator(
            model,
            loss,
            [objective.parameters[i] for i in covered],
            [(batch.inputs, batch.targets)],
            check_deterministic=False,
            fisher_type="type-2",
            separate_weight_and_bias=False,
            num_data=len(batch.targets),
            batch_size_fn=lambda inputs: len(batch.targets),
        )
        with torch.enable_grad():
            operator.compute_kronecker_factors()
        finite = self._average(batch, operator.state_dict(), scale)
        if not finite:
            return finite
        inverse = _package().KFACInverseLinearOperator(operator, damping=damping + objective.l2, use_exact_damping=True)
        for i, step in zip(covered, inverse @ [gradient[i].contiguous() for i in covered], strict=True):
            gradient[i].copy_(step)
        return torch.isfinite(gradient.flat).all()

    def _average(self, batch: Batch, factors: dict[str, Any], scale: float) -> Tensor:
        """Replace the batch's factors in place by the averages over workers and steps.

        Returns:
            Whether the batch's factors are finite on all workers; the averages stay as they are if not.
        """
        state = self.shared
        named = {
            f"{kind}/{layer}": factor
            for kind in ("input_covariances", "gradient_covariances")
            for layer, factor in factors[kind].items()
        }
        for name, factor in named.items():
            if name.startswith("gradient"):
                factor.mul_(scale)
        _mean_over_workers(batch, list(named.values()))
        finite = torch.stack([torch.isfinite(factor).all() for factor in named.values()]).all()
        if not finite:
            return finite
        state["steps"] = state.get("steps", 0) + 1
        keep = min(1 - 1 / state["steps"], self.memory)
        for name, factor in named.items():
            state[name] = torch.lerp(factor, state.get(name, factor), keep)
            factor.copy_(state[name])
        return finite


def _quadratic_model(
    batch: Batch, gradient: Direction, delta: Direction, last: Direction, shift: float
) -> tuple[Tensor, Tensor]:
    """Matrix (2, 2) and slope (2,) of M over (α, μ), float64, from two tangents of the outputs."""
    linear = batch.linearise()
    tangents = [linear.push(delta), linear.push(last)]
    curved = [linear.hessian(tangent) for tangent in tangents]
    pairs = ((0, 0), (0, 1), (1, 1))
    _, k11, k12, k22 = linear.means(*[linear.inner(tangents[i], curved[j]) for i, j in pairs])
    crossed = delta.dot(last)
    norms = torch.stack([delta.dot(delta), crossed, crossed, last.dot(last)])
    matrix = (torch.stack([k11, k12, k12, k22]) + shift * norms).view(2, 2)
    return matrix, torch.stack([gradient.dot(delta), gradient.dot(last)])


def _adapted(damping: float, ratio: float) -> float:
    """λ after a check; a ratio without a value counts as a failure."""
    factor = _DAMPING_FACTOR**_CHECK_EVERY
    if ratio > 0.75:
        return damping * factor
    return damping / factor if not ratio >= 0.25 else damping


class _BatchModel(nn.Module):
    """The model, called through the batch: same dropout mask, running statistics are not updated again."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.model = batch.objective.model
        self.batch = batch

    def forward(self, inputs: Any) -> Tensor:
        return self.batch.outputs()

    def layers_parameters(self) -> list[int]:
        """Indices of the parameters of linear and convolutional layers that the outputs depend on."""
        parameters = self.batch.objective.parameters
        layers = (layer for layer in self.model.modules() if isinstance(layer, _LAYERS))
        inside = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
        with torch.enable_grad():
            derivatives = torch.autograd.grad(self.batch.outputs().sum(), parameters, allow_unused=True)
        return [i for i, p in enumerate(parameters) if id(p) in inside and derivatives[i] is not None]


def _package() -> Any:
    with extra("kfac"):
        import curvlinops
    return curvlinops


def _check_supported(objective: Objective) -> None:
    if objective.loss.function not in ("cross_entropy", "squared_error"):
        raise ValueError(
            "kfac: the objective's loss must be 'cross_entropy' or 'squared_error'; take hessian_free or curveball for "
            "other losses"
        )
    if objective.weights is not None or objective.micro_batch is not None:
        raise ValueError(
            "kfac: the objective must have neither weights nor micro_batch; take hessian_free or curveball"
        )
    if objective.collectives.size > 1 and has_batch_norm(objective.model):
        raise NotImplementedError(
            "kfac: batch normalisation couples the samples of several workers; train on one worker, or take "
            "hessian_free or curveball"
        )


def _loss_and_scale(batch: Batch) -> tuple[nn.Module, float]:
    """The loss of torch, and the ratio of the objective's curvature to its own: MSELoss is a mean over outputs too."""
    if batch.objective.loss.function == "cross_entropy":
        return nn.CrossEntropyLoss(), 1.0
    return nn.MSELoss(), float(batch.targets[0].numel())


def _mean_over_workers(batch: Batch, factors: list[Tensor]) -> None:
    """Turn means over this worker's samples into means over all, in place, in one all-reduce."""
    if batch.objective.collectives.size == 1:
        return
    sums = torch.cat([batch.samples * factor.flatten() for factor in factors])
    means = batch.global_mean(sums).split([factor.numel() for factor in factors])
    for factor, mean in zip(factors, means, strict=True):
        factor.copy_(mean.view_as(factor))
