"""The contract between the training loop and every optimizer: one call, one report."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from raycurv.objective import Batch


@dataclass(frozen=True)
class Horizon:
    """What a method may know of the run that it is part of.

    Attributes:
        epochs: passes over the training set.
        steps_per_epoch: steps of one pass.
        training_samples: size of the training set.

    Raises:
        ValueError: a number below 1.
    """

    epochs: int
    steps_per_epoch: int
    training_samples: int

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "training_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"Horizon.{name} is {getattr(self, name)!r}; it must be at least 1")


@dataclass(frozen=True)
class StepReport:
    """What one step found. Everything stays on the device: reading a number waits for the device, so read seldom.

    Attributes:
        loss: the objective at the batch before the step, global, 0-d.
        scalars: the method's own numbers by name (``learning_rate``, ``momentum``, ``damping``, …), 0-d.
        finite: 0-d bool; False if a number was NaN or infinite and the step was therefore not taken.
    """

    loss: Tensor
    scalars: Mapping[str, Tensor]
    finite: Tensor


class StepOptimizer(torch.optim.Optimizer):
    """An optimizer that asks a batch what it needs and moves the parameters once.

    Attributes:
        follows_gradient: its step is a function of the gradient, so that clipping the gradient has a meaning.
        synchronises: it reads numbers from the device in every step (line searches, inner solvers).
        evaluates_other_weights: ``evaluation_weights`` swaps others in, whose batch statistics are others, too.
        needs_validation: ``step`` wants ``validation=``, a batch of held-out samples.
        curvature_fraction: share of the batch from which it takes curvature; below 1 it answers batches in parts.
    """

    follows_gradient = False
    synchronises = False
    needs_validation = False
    evaluates_other_weights = False
    curvature_fraction = 1.0

    def __getstate__(self) -> dict[str, Any]:
        """Everything: torch's optimizers keep their settings in the parameter groups, these in attributes."""
        return self.__dict__.copy()

    @property
    def shared(self) -> dict[str, Any]:
        """The state that belongs to all parameters together, saved and loaded with the rest."""
        return cast("dict[str, dict[str, Any]]", self.state)["global"]

    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """Take one step on a mini-batch.

        The signature differs from torch's on purpose: a batch answers questions that a closure cannot.
        """
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy, on the parameters' device: torch does so for the state of single parameters alone."""
        super().load_state_dict(copy.deepcopy(state_dict))
        device = self.param_groups[0]["params"][0].device
        for state in self.state.values():
            state.update({key: value.to(device) for key, value in state.items() if isinstance(value, Tensor)})

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """While entered, the model holds the weights to evaluate; most methods evaluate those that they train."""
        yield


def parameters_of(model_or_params: nn.Module | Iterable[Any]) -> list[Any]:
    """Trainable parameters or parameter groups, as torch's optimizers take them.

    Raises:
        ValueError: there are none.
    """
    if isinstance(model_or_params, nn.Module):
        found: list[Any] = [parameter for parameter in model_or_params.parameters() if parameter.requires_grad]
    else:
        found = list(model_or_params)
    if not found:
        raise ValueError("model_or_params holds no trainable parameter: nothing can be optimised")
    return found


def one_group(name: str, model_or_params: nn.Module | Iterable[Any]) -> list[Any]:
    """The parameters of a method whose numbers belong to all of them together.

    Raises:
        ValueError: several parameter groups.
    """
    found = parameters_of(model_or_params)
    if isinstance(found[0], dict):
        if len(found) > 1 or set(found[0]) != {"params"}:
            raise ValueError(
                f"{name} finds one step for all parameters together and so takes no parameter groups: give the model "
                f"or "
                "its parameters; freeze what must not move with requires_grad_(False)"
            )
        return list(found[0]["params"])
    return found


def check_batch(optimizer: StepOptimizer, batch: Batch) -> None:
    """Refuse anything but a batch of an objective over the optimizer's own parameters.

    Raises:
        TypeError: `batch` is no :class:`raycurv.Batch` (a closure, a tensor, …).
        ValueError: the batch's objective has other parameters.
    """
    if not isinstance(batch, Batch):
        raise TypeError(
            f"step takes a batch made by Objective.batch(inputs, targets), not {type(batch).__name__}; closures are "
            f"not used"
        )
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    theirs = {id(p) for p in batch.objective.parameters}
    if mine != theirs:
        raise ValueError(
            f"the optimizer was made for {len(mine)} parameters and the batch's objective has {len(theirs)} others or "
            f"more: "
            "make both from the same model (parameters frozen later must be frozen before both)"
        )
