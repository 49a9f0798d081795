"""torch's own first-order optimizers behind the step contract, as baselines.

Their updates are torch's own; only the call differs, and each can follow a schedule (see `schedules`). A step whose
loss or gradient is not finite is taken with a gradient of zero (decided on the device) and reported, so that parameters
stay finite until the loop reads the report. Decoupled weight decay shrinks all parameters, also in such a step and
where the outputs do not depend on them; torch leaves the latter alone. Defaults are torch's, except for the rates of
`sgd`, `momentum`, `nesterov` (0.01; 1e-3 is far from what is used in practice) and `rmsprop`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raycurv.objective import Batch
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, parameters_of
from raycurv.optim.baselines.schedules import COSINE, Schedule, ScheduledRate
from raycurv.optim.gradient_clipping import clip_gradient_, require_clip_gradient
from raycurv.optim.registry import register, register_variant


class FirstOrder(StepOptimizer):
    """Any torch optimizer that reads ``.grad``.

    Args:
        inner: optimizer of torch; its parameter groups and state are shared, so torch's schedulers work on both.
        clip_gradient: largest global norm of the gradient, or None.
        schedule: schedule of the rates of `inner`, or None.

    Raises:
        TypeError: `inner` is no optimizer of torch.
        ValueError: `clip_gradient` is not positive and finite.
    """

    follows_gradient = True

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        clip_gradient: float | None = None,
        schedule: ScheduledRate | None = None,
    ) -> None:
        if not isinstance(inner, torch.optim.Optimizer) or isinstance(inner, StepOptimizer):
            raise TypeError(
                f"{type(self).__name__} wraps an optimizer that reads .grad, such as torch.optim.SGD(model.parameters("
                f"), lr=0.1); it is {type(inner).__name__}"
            )
        require_clip_gradient(type(inner).__name__, clip_gradient)
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self.clip_gradient, self.schedule = clip_gradient, schedule
        self.follows_horizon = schedule is not None
        self._share()

    def __repr__(self) -> str:
        """Class, inner optimizer with its settings, clipping and schedule."""
        group = {name: value for name, value in self.param_groups[0].items() if name != "params"}
        inner = f"{type(self.inner).__name__}({', '.join(f'{name}={value!r}' for name, value in group.items())})"
        schedule = "" if self.schedule is None else f", schedule={self.schedule!r}"
        return f"{type(self).__name__}({inner}, clip_gradient={self.clip_gradient!r}{schedule})"

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _parameters(self) -> list[Any]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient of the batch, one step of the inner optimizer."""
        check_batch(self, batch)
        loss, gradient = batch.value_and_gradient()
        norm = torch.linalg.vector_norm(gradient.flat)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        clip_gradient_(gradient, self.clip_gradient)
        for parameter, grad in zip(batch.objective.parameters, gradient.keep_if(finite), strict=True):
            parameter.grad = grad
        self._take_step(loss, finite)
        for parameter in batch.objective.parameters:
            parameter.grad = None
        report = StepReport(loss, self._scalars(loss), finite)
        if self.schedule is not None:
            self.schedule.advance()
        return report

    def _take_step(self, loss: Tensor, finite: Tensor) -> None:
        self.inner.step()

    def _scalars(self, like: Tensor) -> dict[str, Tensor]:
        rate = self._rate()
        if rate is None:
            return {}
        # A number is filled in on the device: a copy from the host would wait for the device.
        on_device = rate.to(like) if isinstance(rate, Tensor) else torch.full_like(like, rate)
        return {"learning_rate": on_device}

    def _rate(self) -> float | Tensor | None:
        """Learning rate of this step in the first parameter group."""
        return self.param_groups[0].get("lr")

    def state_dict(self) -> dict[str, Any]:
        """State of the inner optimizer, with the schedule's position if there is one."""
        state = {**self.inner.state_dict(), "settings": self._stored_settings()}
        return state if self.schedule is None else {**state, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the inner optimizer's state, and the schedule's position.

        Warns of settings that the state was saved with and that differ from this optimizer's.

        Raises:
            ValueError: either the state or this optimizer has a schedule and the other has none.
        """
        if ("schedule" in state_dict) != (self.schedule is not None):
            raise ValueError(
                "state_dict comes from an optimizer with another schedule: make the optimizer with the same settings"
            )
        self._warn_of_other_settings(state_dict)
        defaults = dict(self.inner.defaults)
        self.inner.load_state_dict(state_dict)
        self.defaults = self.inner.defaults = defaults  # torch adds "differentiable" to those of some optimizers
        if self.schedule is not None:
            self.schedule.load_state_dict(state_dict["schedule"])
        self._share()


def baseline(
    name: str, wrap: Callable[..., FirstOrder] = FirstOrder, *, scheduled: bool = True
) -> Callable[[Callable[..., torch.optim.Optimizer]], Callable[..., FirstOrder]]:
    """Register a function ``(parameters, *, **its own settings)`` that makes an optimizer which reads ``.grad``.

    The registered function also takes the settings that all such methods share: ``horizon``, ``clip_gradient`` and, if
    `scheduled`, those of :class:`raycurv.optim.baselines.schedules.Schedule`. Its signature shows all of them. A
    function with a keyword ``horizon`` gets the horizon, and its method follows it.

    Args:
        name: name in the registry.
        wrap: builds the method from the optimizer, ``clip_gradient`` and the schedule.
        scheduled: whether the rate can follow a schedule.
    """

    def add(make: Callable[..., torch.optim.Optimizer]) -> Callable[..., FirstOrder]:
        own = list(inspect.signature(make, eval_str=True).parameters.values())[1:]
        follows = any(p.name == "horizon" for p in own)
        numbers = list(inspect.signature(Schedule, eval_str=True).parameters.values()) if scheduled else []

        def build(model_or_params: Params, *, horizon: Horizon | None = None, **given: Any) -> FirstOrder:
            clip_gradient = given.pop("clip_gradient", None)
            schedule = Schedule(**{p.name: given.pop(p.name) for p in numbers if p.name in given})
            inner = make(parameters_of(model_or_params), **given, **({"horizon": horizon} if follows else {}))
            method = wrap(inner, clip_gradient, schedule.on(inner, horizon))
            method.follows_horizon |= follows and horizon is not None
            return method

        shared = list(inspect.signature(build, eval_str=True).parameters.values())[:2]
        clip = inspect.Parameter("clip_gradient", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
        keywords = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *numbers, clip) if p.name != "horizon"
        ]
        functools.update_wrapper(build, make)
        vars(build)["__signature__"] = inspect.Signature([*shared, *keywords], return_annotation=FirstOrder)
        return register(name)(build)

    return add


@baseline("sgd")
def sgd(parameters: list[Any], *, learning_rate: float = 0.01) -> torch.optim.Optimizer:
    """Stochastic gradient descent."""
    return torch.optim.SGD(parameters, lr=learning_rate)


@baseline("momentum")
def momentum(parameters: list[Any], *, learning_rate: float = 0.01, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with heavy-ball momentum."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)


@baseline("nesterov")
def nesterov(parameters: list[Any], *, learning_rate: float = 0.01, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov's momentum."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, nesterov=True)


@baseline("adam")
def adam(
    parameters: list[Any], *, learning_rate: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2014)."""
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(beta1, beta2))


@baseline("adamw")
def adamw(
    parameters: list[Any],
    *,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(beta1, beta2), weight_decay=weight_decay)


register_variant("adamw_cosine", adamw, "AdamW with a warm-up and a cosine over the run.", fixed=COSINE)


@baseline("rmsprop")
def rmsprop(parameters: list[Any], *, learning_rate: float = 1e-3, decay: float = 0.99) -> torch.optim.Optimizer:
    """RMSProp (Tieleman and Hinton 2012); 1e-3 where torch has 1e-2, which overshoots on normalised networks."""
    return torch.optim.RMSprop(parameters, lr=learning_rate, alpha=decay)


@baseline("rmsprop_bias_corrected")
def rmsprop_bias_corrected(
    parameters: list[Any], *, learning_rate: float = 1e-3, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """RMSProp with a bias-corrected average, the standard RMSProp of RED's paper (Algorithm 3 with r = 1).

    It is Adam without momentum. Torch's own `rmsprop` corrects no bias, so its first steps are longer.

    Args:
        parameters: parameters or parameter groups.
        learning_rate: ℓ, the step size.
        beta2: β₂ of the squares' average.
        eps: ε, added to the root of the average.
    """
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.0, beta2), eps=eps)


@baseline("adadelta")
def adadelta(parameters: list[Any], *, learning_rate: float = 1.0, decay: float = 0.9) -> torch.optim.Optimizer:
    """AdaDelta (Zeiler 2012)."""
    return torch.optim.Adadelta(parameters, lr=learning_rate, rho=decay)


@baseline("adagrad")
def adagrad(parameters: list[Any], *, learning_rate: float = 0.01) -> torch.optim.Optimizer:
    """Adagrad (Duchi et al. 2011)."""
    return torch.optim.Adagrad(parameters, lr=learning_rate)
