"""NTLR: Newton steps on the learning rate from directions averaged over windows, around any torch optimizer.

*Newton-Based Trainable Learning Rate* (Retsinas, Sfikas, Filntisis, Maragos).

Every K steps (a share p of the training set), with u_old and u_new the average directions of the last two windows
(differences of the weights, divided by the rate α of the window), eq. 8 becomes

    α ← α (1 + γ ⟨u_old, u_new⟩ / (‖u_old‖² − ⟨u_old, u_new⟩))

The rate stays where the denominator, a second derivative, is not positive; the factor is at most 100. The first-order
rules of Table 1 follow the same scheme, both with the meta rate η:

    α ← α + η ⟨u_old, u_new⟩,    α ← α (1 + η cos(u_old, u_new))

Symbols: p ``portion``, γ ``damping``, α₀ ``learning_rate``, η ``meta_rate``.

What the paper leaves open, and deviations:

- K is p times the steps of a pass; without a horizon 100 steps (p = 0.20 of MNIST with batches of 128 is 94).
- The public code swaps the defaults of p and γ, leaves out the bound of 100, and tests the sign of ‖u_old‖² in place of
  the denominator's; this code follows the paper.
- "Average" is taken literally: u is divided by K too. NTLR and the multiplicative rule do not depend on it; the meta
  rate of the additive rule then does not depend on K.
- The rate is a number on the host, as torch's optimizers need it: three inner products are read once a window (five
  times a pass), nothing in the other steps. An inner product that is not finite leaves the rate.
- α₀: the paper starts anywhere from 1e-9 to 0.1. Defaults 0.01 around SGD and 1e-3 around Adam, where one would start
  by hand: too small a start is corrected within windows, too large a one costs (Fig. 2).
- η: additive 0.1, the column of Table 1 that depends least on α₀. Multiplicative 0.1; the paper's 1e-4 and 1e-5 move
  the rate by less than 0.1 % in a pass, as its rule is printed. The first-order rules change the rate at most by 100
  times up or down, so that it stays positive, which the paper does not mention.
- The rate has no upper bound (the paper's final remark): where SGD diverges within the first windows (Rosenbrock at the
  default), so does this, and over hundreds of windows on one and the same batch the rate may grow without limit.
- Around Adam, windows must be longer than Adam's own memory of 1/(1 − β₁) = 10 steps. The directions of shorter windows
  share most of their gradients: their cosines are 0.6 to 1 whatever the rate is, so that it grows without end. With
  windows of 2 to 5 steps (few steps in a pass) losses reach 1e13. A warning says so; the rule stays the paper's.
- A step whose loss or gradient is not finite is taken with a gradient of zero, as around the plain optimizer.
- A scheduler of torch that multiplies the rate composes with the rule; one that sets the rate undoes it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, one_group
from raycurv.optim.baselines.first_order import FirstOrder
from raycurv.optim.gradient_clipping import require_clip_gradient
from raycurv.optim.registry import register, register_variant

_LARGEST_FACTOR = 100.0
_WINDOW = 100  # K without a horizon


@dataclass(frozen=True)
class WindowDirections:
    """Inner products of the average directions of the last two windows.

    Attributes:
        cross: ⟨u_old, u_new⟩.
        old: ‖u_old‖².
        new: ‖u_new‖².
    """

    cross: float
    old: float
    new: float

    @property
    def cosine(self) -> float:
        """cos(u_old, u_new), 0 where one of them is zero."""
        norms = math.sqrt(self.old) * math.sqrt(self.new)
        return self.cross / norms if norms > 0 else 0.0


Rule = Callable[[float, WindowDirections], float]


def newton(damping: float) -> Rule:
    """Eq. 8 as a factor, which does not depend on the rate."""

    def factor(rate: float, u: WindowDirections) -> float:
        curvature = u.old - u.cross
        return min(1 + damping * u.cross / curvature, _LARGEST_FACTOR) if curvature > 0 else 1.0

    return factor


def additive(meta_rate: float) -> Rule:
    """α ← α + η ⟨u_old, u_new⟩ as a factor."""
    return lambda rate, u: _bounded(1 + meta_rate * u.cross / rate)


def multiplicative(meta_rate: float) -> Rule:
    """α ← α (1 + η cos(u_old, u_new)) as a factor."""
    return lambda rate, u: _bounded(1 + meta_rate * u.cosine)


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)


def averaged_steps(inner: torch.optim.Optimizer) -> float:
    """Steps over which an optimizer averages its direction: 1/(1 − β₁) or 1/(1 − momentum), or 1."""
    group = inner.param_groups[0]
    kept = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
    return round(1 / (1 - kept), 6)


class WindowedRate(FirstOrder):
    """Any torch optimizer, with a learning rate that follows the directions of windows.

    Windows shorter than the memory of the inner optimizer (10 steps of Adam) are warned of: the rate may then grow
    without end, since successive directions share most of their gradients.

    Args:
        inner: optimizer with one parameter group and a setting ``lr``.
        rule: maps the rate and the directions to a factor for the rate; :func:`newton` is NTLR.
        window: K, steps between two updates.
        clip_gradient: largest global norm of the gradient, or None.
        largest_rate: bound of the rate, or None.

    Raises:
        ValueError: several parameter groups, no rate to adapt, or `window` below 1.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        rule: Rule,
        window: int,
        clip_gradient: float | None = None,
        largest_rate: float | None = None,
    ) -> None:
        name = type(inner).__name__
        if len(inner.param_groups) > 1 or not isinstance(inner.param_groups[0].get("lr"), float):
            raise ValueError(f"{name}: a windowed rate needs one parameter group, with a number as its lr")
        require(f"{name}: window", window, window >= 1, "at least 1")
        if window < (memory := averaged_steps(inner)):
            warnings.warn(
                f"the window of the learning rate has {window} steps, fewer than the {memory:g} over which {name} "
                "averages its direction: directions of successive windows then agree whatever the rate is, so that it "
                "may grow without end. Take a larger portion or smaller batches, or ntlr_sgd",
                stacklevel=2,
            )
        super().__init__(inner, clip_gradient)
        self._rule, self.window, self.largest_rate = rule, window, largest_rate

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One step of the inner optimizer; after the last step of a window, the rule."""
        group, state = self.param_groups[0], self.shared
        if not state:
            state.update(steps=0, start=self._weights())
        report = super().step(batch)
        state["steps"] += 1
        if state["steps"] < self.window:
            return report
        now = self._weights()
        direction = (state["start"] - now) / (group["lr"] * self.window)
        old, state["previous"] = state.get("previous"), direction
        state["start"], state["steps"] = now, 0
        if old is None:
            return report
        pairs = [torch.dot(u, v) for u, v in ((old, direction), (old, old), (direction, direction))]
        u = WindowDirections(*torch.stack(pairs).tolist())
        factor = self._rule(group["lr"], u) if all(map(math.isfinite, (u.cross, u.old, u.new))) else 1.0
        if self.largest_rate is not None:
            factor = min(factor, self.largest_rate / group["lr"])
        group["lr"] *= factor
        found = {"learning_rate_factor": factor, "cosine": u.cosine}
        tensors = {key: torch.tensor(value, dtype=torch.float64, device=now.device) for key, value in found.items()}
        return StepReport(report.loss, {**report.scalars, **tensors}, report.finite)

    def _weights(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.param_groups[0]["params"]])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the inner optimizer and of the window, on the parameters' device."""
        super().load_state_dict(copy.deepcopy(state_dict))
        device, state = self.param_groups[0]["params"][0].device, self.shared
        state.update({key: value.to(device) for key, value in state.items() if isinstance(value, Tensor)})


class _WindowedMethod(WindowedRate):
    """A windowed rate around an optimizer of its own; base of the registered methods."""

    __repr__ = StepOptimizer.__repr__  # settings of the method, not of the inner optimizer

    def __init__(
        self,
        name: str,
        inner: Callable[..., torch.optim.Optimizer],
        model_or_params: Params,
        horizon: Horizon | None,
        rule: Rule,
        *,
        learning_rate: float,
        portion: float,
        clip_gradient: float | None,
        largest_rate: float | None = None,
    ) -> None:
        require_positive(f"{name}: learning_rate", learning_rate)
        require_positive(f"{name}: portion", portion)
        require_clip_gradient(name, clip_gradient)
        if largest_rate is not None:
            allowed = f"None or at least the learning_rate {learning_rate:g}"
            require(f"{name}: largest_rate", largest_rate, largest_rate >= learning_rate, allowed)
        window = _WINDOW if horizon is None else max(1, round(portion * horizon.steps_per_epoch))
        parameters = one_group(name, model_or_params)
        super().__init__(inner(parameters, lr=float(learning_rate)), rule, window, clip_gradient, largest_rate)
        self.horizon, self.learning_rate, self.portion = horizon, learning_rate, portion


@register("ntlr_sgd")
class NTLR(_WindowedMethod):
    """NTLR around stochastic gradient descent (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give K.
        learning_rate: α₀.
        portion: p, share of the training set between two updates of the rate.
        damping: γ, in [0, 1]; 0 leaves the rate.
        clip_gradient: largest global norm of the gradient, or None.
        largest_rate: bound of the rate; None for none, as in the paper.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.01,  # α₀
        portion: float = 0.20,  # p
        damping: float = 0.33,  # γ
        clip_gradient: float | None = None,
        largest_rate: float | None = None,
    ) -> None:
        require("ntlr_sgd: damping", damping, 0 <= damping <= 1, "in [0, 1]")
        super().__init__(
            "ntlr_sgd",
            torch.optim.SGD,
            model_or_params,
            horizon,
            newton(damping),
            learning_rate=learning_rate,
            portion=portion,
            clip_gradient=clip_gradient,
            largest_rate=largest_rate,
        )
        self.damping = damping


@register("ntlr_adam")
class NTLRAdam(_WindowedMethod):
    """NTLR around Adam, for windows of at least 10 steps (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give K.
        learning_rate: α₀.
        portion: p, share of the training set between two updates of the rate.
        damping: γ, in [0, 1]; 0 leaves the rate.
        beta1: decay rate of Adam's first moment.
        beta2: decay rate of Adam's second moment.
        clip_gradient: largest global norm of the gradient, or None.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 1e-3,  # α₀
        portion: float = 0.20,  # p
        damping: float = 0.33,  # γ
        beta1: float = 0.9,
        beta2: float = 0.999,
        clip_gradient: float | None = None,
    ) -> None:
        require("ntlr_adam: damping", damping, 0 <= damping <= 1, "in [0, 1]")
        super().__init__(
            "ntlr_adam",
            partial(torch.optim.Adam, betas=(beta1, beta2)),
            model_or_params,
            horizon,
            newton(damping),
            learning_rate=learning_rate,
            portion=portion,
            clip_gradient=clip_gradient,
        )
        self.damping, self.beta1, self.beta2 = damping, beta1, beta2


class Hypergradient(_WindowedMethod):
    """A first-order rule of Table 1 around stochastic gradient descent (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give K.
        rule: form of the update, "additive" or "multiplicative".
        learning_rate: α₀.
        portion: p, share of the training set between two updates of the rate.
        meta_rate: η.
        clip_gradient: largest global norm of the gradient, or None.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        rule: Literal["additive", "multiplicative"] = "multiplicative",
        learning_rate: float = 0.01,  # α₀
        portion: float = 0.20,  # p
        meta_rate: float = 0.1,  # η
        clip_gradient: float | None = None,
    ) -> None:
        require("Hypergradient: rule", rule, rule in _RULES, f"one of {', '.join(_RULES)}")
        name = f"hypergradient_{rule}"
        require(f"{name}: meta_rate", meta_rate, 0 <= meta_rate < math.inf, "finite and at least 0")
        super().__init__(
            name,
            torch.optim.SGD,
            model_or_params,
            horizon,
            _RULES[rule](meta_rate),
            learning_rate=learning_rate,
            portion=portion,
            clip_gradient=clip_gradient,
        )
        self.rule, self.meta_rate = rule, meta_rate


_RULES = {"additive": additive, "multiplicative": multiplicative}
for _rule in _RULES:
    register_variant(
        f"hypergradient_{_rule}", Hypergradient, f"The {_rule} first-order rule around SGD.", fixed={"rule": _rule}
    )
