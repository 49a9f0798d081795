"""One case of the survey: a model, its inputs, and the verdict about its derivatives."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from raycurv.curvature import UnsupportedOperator
from raycurv.objective import InconsistentModel, Objective

# A kink of the model within a step spoils its second difference; a smaller step has fewer kinks and more rounding.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
SLOPE, CURVATURE = 1e-5, 1e-3  # relative errors that are allowed


@dataclass(frozen=True)
class Case:
    """A model of the survey.

    Attributes:
        group: where it comes from.
        name: its name there.
        build: makes the model and its inputs, a pytree of tensors with the batch as first dimension.
        call: ``call(model, inputs)`` runs it; None is ``model(inputs)``.
    """

    group: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]]
    call: Callable[[nn.Module, Any], Any] | None = None


class NotComparedError(Exception):
    """The model could not be built or called, or torch's own backward pass fails: no verdict."""


def verdict(case: Case, seconds: int = 120) -> tuple[str, str]:
    """``right``, ``wrong``, ``refused`` or ``not compared``, and why."""
    try:
        with limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compared(case)
    except NotComparedError as error:
        return "not compared", str(error)[:200]
    except TimeoutError:
        return "not compared", f"takes more than {seconds} s"
    except (UnsupportedOperator, InconsistentModel) as error:
        return "refused", str(error)[:300]
    except Exception as error:
        return "refused", f"{type(error).__name__}: {error}"[:300]


def compared(case: Case) -> tuple[str, str]:
    """The verdict from the largest relative errors of slopes and curvatures.

    Raises:
        NotComparedError: the model cannot be run by torch alone.
    """
    torch.manual_seed(0)
    try:
        model, inputs = case.build()
        model = model.double().train()
        inputs = pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, inputs)
        samples = len(pytree.tree_leaves(inputs)[0])

        def call(model: nn.Module, inputs: Any) -> Tensor:
            with InDouble():
                return one_tensor(model(inputs) if case.call is None else case.call(model, inputs), samples)

        twin = copy.deepcopy(model)
        torch.manual_seed(1)
        outputs = call(twin, inputs)
        scale = float(outputs.detach().square().mean().sqrt()) or 1.0
        if not math.isfinite(scale):
            raise NotComparedError("its outputs are not finite")
        (outputs / scale).square().mean().backward()
        by_torch = [None if p.grad is None else p.grad.clone() for p in twin.parameters() if p.requires_grad]
    except NotComparedError:
        raise
    except TimeoutError:
        raise
    except Exception as error:
        raise NotComparedError(f"{type(error).__name__}: {error}") from error
    del twin, outputs

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs / scale).square().flatten(1).mean(1)

    objective = Objective(model, loss, call=call)
    batch = objective.batch(inputs, torch.zeros(samples))
    torch.manual_seed(1)
    value, gradient = batch.value_and_gradient()
    drawn = [torch.randn_like(p) * (p.std() if p.numel() > 1 else 1) for p in objective.parameters]
    direction = objective.direction(drawn)
    length = float(direction.dot(direction)) ** 0.5 / sum(p.numel() for p in objective.parameters) ** 0.25
    direction = direction.scaled(torch.tensor(1 / max(1e-6, length)))
    forward, recorded = batch.taylor_along(direction), batch.linearise(record=True).taylor(direction)
    slopes = {"gradient": gradient.dot(direction), "taylor_along": forward.slope, "push": recorded.slope}
    curvatures = {"taylor_along": forward.curvature, "linearise": recorded.curvature}
    errors: dict[str, float] = {}
    for h in STEPS:
        far2, far1, mid, near1, near2 = batch.values_along(direction, [-2 * h, -h, 0.0, h, 2 * h])
        slope = (far2 - 8 * far1 + 8 * near1 - near2) / (12 * h)
        second = (-far2 + 16 * far1 - 30 * mid + 16 * near1 - near2) / (12 * h**2)
        rounding = 1e-15 * float(value.abs()) / h**2
        for name, found in slopes.items():
            error = float((found - slope).abs() / (slope.abs() + 1e-6 * value.abs()))
            keep_least(errors, f"slope by {name}", error / SLOPE)
        for name, found in curvatures.items():
            allowed = CURVATURE * float(second.abs()) + 1e-6 * float(value.abs()) + 100 * rounding
            keep_least(errors, f"curvature by {name}", float((found - second).abs()) / allowed)
    if errors["slope by gradient"] > 1:
        same = all(torch.allclose(g, 0 * g if t is None else t) for g, t in zip(gradient, by_torch, strict=True))
        agree = all(abs(found - slopes["gradient"]) <= SLOPE * abs(slopes["gradient"]) for found in slopes.values())
        if same and (agree or errors["slope by taylor_along"] <= 1):
            # Parts without gradients, rounding, or a defect of torch: there is nothing to compare curvature with.
            raise NotComparedError("torch's own gradient is not that of the values")
    wrong = [f"{name} {error:.1e} times the tolerance" for name, error in errors.items() if not error <= 1]
    return ("wrong", "; ".join(wrong)) if wrong else ("right", "")


def keep_least(errors: dict[str, float], name: str, error: float) -> None:
    errors[name] = min(errors.get(name, math.inf), error if math.isfinite(error) else math.inf)


def one_tensor(outputs: Any, samples: int) -> Tensor:
    """All real outputs with the batch as first dimension, side by side, (B, …)."""
    leaves = outputs.to_tuple() if hasattr(outputs, "to_tuple") else outputs
    found = [
        leaf.reshape(samples, -1)
        for leaf in pytree.tree_leaves(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() and len(leaf) == samples
    ]
    if not found or (not any(tensor.requires_grad for tensor in found) and torch.is_grad_enabled()):
        raise NotComparedError("it returns no tensor with the batch as first dimension")
    return torch.cat([tensor.double() for tensor in found], 1)


class InDouble(TorchFunctionMode):
    """Casts to lower precision, of which models are full, become casts to float64: differences need every digit."""

    LOWER = (torch.float32, torch.float16, torch.bfloat16)
    CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = {name: self.wide(value) for name, value in (kwargs or {}).items()}
        return (Tensor.double if func in self.CASTS else func)(*map(self.wide, args), **named)

    def wide(self, value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in self.LOWER else value


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
