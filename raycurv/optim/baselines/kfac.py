"""K-FAC: the gradient times the inverse of a Kronecker-factored Gauss-Newton matrix, from the package curvlinops.

*Optimizing Neural Networks with Kronecker-factored Approximate Curvature* (Martens and Grosse 2015), and for
convolutions Grosse and Martens (2016); the comparison of CurveBall's Figure 2 on the MNIST MLP. For each linear or
convolutional layer, with the inputs a (1 appended for the bias) and back-propagated columns g of H_L's square root,

    A = E[a aᵀ],  B = E[g gᵀ],    Δ = −τ (A ⊗ B + λI)⁻¹ ∇J

The optional extra ``kfac`` installs the package, which computes A, B and the product with the inverse.

Symbols: τ ``learning_rate``, λ ``damping``, ε of the averages ``memory``.

Choices, and parts of the paper that are left out:

- A and B are averages over the steps with the factor min(1 − 1/k, ε), ε = 0.95 (section 5 of the paper).
- B is that of the Gauss-Newton matrix itself, with one backward pass for each output, where the paper samples one
  target for each input from the model: no random number, so the step does not depend on the number of workers.
- λ is added to A ⊗ B as a whole, by eigenvalues, not to the factors (section 6.3), together with the factor of the L2
  term.
- τ and λ are constant: no rescaling, no momentum and no adaptation of λ (sections 6.2, 6.4, 6.5, 7). The paper compares
  the best rate of each method; the default of 0.1 with λ = 0.01 is a start.
- The factors are computed and their averages decomposed in every step: some fifteen times the time of a step of SGD on
  a small MLP with ten outputs.
- Parameters in other layers (normalisations, embeddings) take plain steps −τ∇J, as is usual.
- A step whose loss or gradient is not finite is not taken, and the report says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, has_batch_norm, one_group
from raycurv.optim.baselines.extras import extra
from raycurv.optim.registry import register

_LAYERS = (nn.Linear, nn.Conv2d)


@register("kfac")
class KFAC(StepOptimizer):
    """K-FAC with constant rate and damping (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: τ, the setting ``lr`` of the parameter group, which torch's schedulers can change.
        damping: λ.
        memory: ε, in [0, 1).

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
        damping: float = 0.01,  # λ
        memory: float = 0.95,  # ε
    ) -> None:
        require_positive("kfac: learning_rate", learning_rate)
        require_positive("kfac: damping", damping)
        require("kfac: memory", memory, 0 <= memory < 1, "in [0, 1)")
        super().__init__(one_group("kfac", model_or_params), {"lr": learning_rate})
        _package()
        self.learning_rate, self.damping, self.memory = learning_rate, damping, memory

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient, the factors of the batch, and one product with the inverse of their averages.

        Raises:
            ValueError: the loss has no Kronecker factors, samples are weighted, or batches are split.
            NotImplementedError: batch normalisation on several workers.
        """
        check_batch(self, batch)
        _check_supported(batch.objective)
        rate = self.param_groups[0]["lr"]
        loss, gradient = batch.value_and_gradient()
        finite = torch.isfinite(loss) & torch.isfinite(gradient.flat).all()
        if finite:
            self._precondition(batch, gradient)
            torch._foreach_sub_(batch.objective.parameters, gradient, alpha=rate)
        return StepReport(loss, {"learning_rate": torch.full_like(loss, rate)}, finite)

    def _precondition(self, batch: Batch, gradient: Direction) -> None:
        """Multiply the layers' gradients by the inverse, in place."""
        objective = batch.objective
        model = _BatchModel(batch)
        covered = model.layers_parameters()
        if not covered:
            return
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
        self._average(batch, operator.state_dict(), scale)
        inverse = _package().KFACInverseLinearOperator(
            operator, damping=self.damping + objective.l2, use_exact_damping=True
        )
        for i, step in zip(covered, inverse @ [gradient[i].contiguous() for i in covered], strict=True):
            gradient[i].copy_(step)

    def _average(self, batch: Batch, factors: dict[str, Any], scale: float) -> None:
        """Replace the batch's factors in place by the averages over workers and steps."""
        state = self.shared
        state["steps"] = state.get("steps", 0) + 1
        keep = min(1 - 1 / state["steps"], self.memory)
        named = {
            f"{kind}/{layer}": factor
            for kind in ("input_covariances", "gradient_covariances")
            for layer, factor in factors[kind].items()
        }
        for name, factor in named.items():
            if name.startswith("gradient"):
                factor.mul_(scale)
        _mean_over_workers(batch, list(named.values()))
        for name, factor in named.items():
            state[name] = torch.lerp(factor, state.get(name, factor), keep)
            factor.copy_(state[name])


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
