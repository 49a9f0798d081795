"""torch's own first-order optimizers behind the step contract, as baselines.

They are what they are in torch; only the call differs. A step whose loss or gradient is not finite is taken with a
gradient
of zero (decided on the device) and reported, so that parameters stay finite until the loop reads the report.
Defaults are torch's, but for the rates of `sgd`, `momentum`, `nesterov` (0.01; 1e-3 is far from what anyone uses)
and `rmsprop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raycurv.objective import Batch
from raycurv.optim.protocol import Horizon, StepOptimizer, StepReport, check_batch, parameters_of
from raycurv.optim.registry import register


class FirstOrder(StepOptimizer):
    """Any torch optimizer that reads ``.grad``.

    Args:
        inner: the optimizer; its parameter groups and state are shared.
        clip_gradient: largest global norm of the gradient, or None.

    Raises:
        ValueError: `clip_gradient` is not positive and finite.
    """

    follows_gradient = True

    def __init__(self, inner: torch.optim.Optimizer, clip_gradient: float | None = None) -> None:
        if clip_gradient is not None and not 0 < clip_gradient < math.inf:
            raise ValueError(f"clip_gradient is {clip_gradient!r}; it must be None or a positive number")
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self.clip_gradient = clip_gradient
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient of the batch, one step of the inner optimizer."""
        check_batch(self, batch)
        loss, gradient = batch.value_and_gradient()
        norm = torch.linalg.vector_norm(gradient.flat)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        scale = torch.ones_like(norm) if self.clip_gradient is None else (self.clip_gradient / norm).clamp(max=1)
        gated = type(gradient)(torch.where(finite, gradient.flat * scale, 0.0), batch.objective.parameters)
        for parameter, grad in zip(batch.objective.parameters, gated, strict=True):
            parameter.grad = grad
        self.inner.step()
        for parameter in batch.objective.parameters:
            parameter.grad = None
        return StepReport(loss, self._scalars(loss), finite)

    def _scalars(self, like: Tensor) -> dict[str, Tensor]:
        rate = self.param_groups[0].get("lr")
        return {} if rate is None else {"learning_rate": torch.as_tensor(rate, dtype=like.dtype, device=like.device)}

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the inner optimizer's state."""
        self.inner.load_state_dict(state_dict)
        self._share()


Params = nn.Module | Iterable[Any]


@register("sgd")
def sgd(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 0.01,
    clip_gradient: float | None = None,
) -> FirstOrder:
    """Stochastic gradient descent."""
    return FirstOrder(torch.optim.SGD(parameters_of(model_or_params), lr=learning_rate), clip_gradient)


@register("momentum")
def momentum(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    clip_gradient: float | None = None,
) -> FirstOrder:
    """Stochastic gradient descent with heavy-ball momentum."""
    inner = torch.optim.SGD(parameters_of(model_or_params), lr=learning_rate, momentum=momentum)
    return FirstOrder(inner, clip_gradient)


@register("nesterov")
def nesterov(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    clip_gradient: float | None = None,
) -> FirstOrder:
    """Stochastic gradient descent with Nesterov's momentum."""
    inner = torch.optim.SGD(parameters_of(model_or_params), lr=learning_rate, momentum=momentum, nesterov=True)
    return FirstOrder(inner, clip_gradient)


@register("adam")
def adam(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    clip_gradient: float | None = None,
) -> FirstOrder:
    """Adam (Kingma and Ba 2014)."""
    inner = torch.optim.Adam(parameters_of(model_or_params), lr=learning_rate, betas=(beta1, beta2))
    return FirstOrder(inner, clip_gradient)


@register("rmsprop")
def rmsprop(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 1e-3,
    decay: float = 0.99,
    clip_gradient: float | None = None,
) -> FirstOrder:
    """RMSProp (Tieleman and Hinton 2012); 1e-3 where torch has 1e-2, which overshoots on normalised networks."""
    return FirstOrder(torch.optim.RMSprop(parameters_of(model_or_params), lr=learning_rate, alpha=decay), clip_gradient)


@register("adagrad")
def adagrad(
    model_or_params: Params,
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 0.01,
    clip_gradient: float | None = None,
) -> FirstOrder:
    """Adagrad (Duchi et al. 2011)."""
    return FirstOrder(torch.optim.Adagrad(parameters_of(model_or_params), lr=learning_rate), clip_gradient)
