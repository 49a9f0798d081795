"""The contract between the training loop and every optimizer: one call, one report."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from raycurv.arguments import require
from raycurv.objective import Batch, Objective

Params = nn.Module | Iterable[Any]


@dataclass(frozen=True)
class Horizon:
    """Length of the run and size of the training set.

    A method that depends on either takes ``horizon=Horizon(...)``. Without a horizon it falls back:

    | method | use of the horizon | without a horizon |
    |---|---|---|
    | `red_*_free` | step size rises for a tenth of the run, falls in its last quarter | rises for 100 steps |
    | `ntlr_sgd_free`, `alera_free`, `salera_free`, `llr_free` | hand-over after a tenth of the run | after 100 steps |
    | `red_*` | `scale` decays over the epochs | `scale` stays |
    | `ran_*` | phases count epochs | an epoch is 196 steps |
    | `ntlr_*`, `hypergradient_*` | window of `portion` times the steps of an epoch | window of 100 steps |
    | `salera`, `spalera` | `batch_ratio` is one over the steps of an epoch | `batch_ratio` is 0.01 |
    | `sps`, `sls` | growth per epoch | an epoch is 500 steps |
    | `ademamix` | the slow average grows over the run | it is constant |
    | schedules other than `constant`, `*_cosine`, `*_algoperf` | length of the schedule | refused |

    All other methods ignore it.

    Attributes:
        epochs: passes over the training set.
        steps_per_epoch: optimizer steps in one pass.
        training_samples: size of the training set.
        max_steps: steps after which the run ends even if epochs are left; None is no such limit.

    Raises:
        ValueError: a number below 1.
    """

    epochs: int
    steps_per_epoch: int
    training_samples: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "training_samples"):
            value = getattr(self, name)
            require(f"Horizon.{name}", value, value >= 1, "at least 1")
        require(
            "Horizon.max_steps", self.max_steps, self.max_steps is None or self.max_steps >= 1, "None or at least 1"
        )

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def passes(self) -> int:
        """Passes over the training set that the run begins."""
        return -(-self.steps // self.steps_per_epoch)


@dataclass(frozen=True)
class StepReport:
    """Results of one step. All tensors stay on the device: reading one waits for the device, so read seldom.

    Attributes:
        loss: objective at the batch before the step, global, 0-d.
        scalars: the method's own numbers by name (``learning_rate``, ``momentum``, ``damping``, …), 0-d.
        finite: 0-d bool; False if a number was NaN or infinite and the step was therefore not taken.
    """

    loss: Tensor
    scalars: Mapping[str, Tensor]
    finite: Tensor


class ParameterGroupWithoutRate(dict[str, Any]):
    """A parameter group of a method that has no ``lr``; torch's learning-rate schedulers get a clear error from it."""

    def __missing__(self, key: str) -> Any:
        if key == "lr":
            raise TypeError(_NO_RATE)
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in ("lr", "initial_lr"):
            raise TypeError(_NO_RATE)
        super().__setitem__(key, value)


_NO_RATE = (
    "torch.optim.lr_scheduler needs the setting 'lr' of a parameter group, and this optimizer has none: it sets its "
    "learning rate itself. Train without a scheduler, or schedule the rate of a FirstOrder optimizer, such as "
    "raycurv.optim.FirstOrder(torch.optim.SGD(model.parameters(), lr=0.1))"
)


def _undecorated(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's optimizers without the decorator that keeps torch.compile out: it imports torch's compiler.

    That takes a second in every process. Of no use here, since nothing compiles these methods.
    """
    return getattr(method, "__wrapped__", method)


_ADD_PARAM_GROUP = _undecorated(torch.optim.Optimizer.add_param_group)
_STATE_DICT = _undecorated(torch.optim.Optimizer.state_dict)
_LOAD_STATE_DICT = _undecorated(torch.optim.Optimizer.load_state_dict)


class StepOptimizer(torch.optim.Optimizer):
    """An optimizer whose step takes derivatives from a batch and moves the parameters once.

    Attributes:
        follows_gradient: whether the step is a function of the gradient, so that gradient clipping has a meaning.
        synchronises: whether every step reads numbers from the device (line searches, inner solvers).
        evaluates_other_weights: whether ``evaluation_weights`` swaps in weights with batch statistics of their own.
        needs_validation: whether ``step`` needs ``validation=``, a batch of held-out samples.
        curvature_fraction: share of the batch that curvature is taken from; below 1 the batch is split.
        follows_horizon: whether step sizes depend on the length of the run, so that another length is another run.
    """

    follows_gradient = False
    synchronises = False
    needs_validation = False
    evaluates_other_weights = False
    curvature_fraction = 1.0
    follows_horizon = False

    def __repr__(self) -> str:
        """Class and settings, as in a call of the constructor."""
        given = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return f"{type(self).__name__}({given})"

    def _settings(self) -> dict[str, Any]:
        """Settings of the constructor, each kept in an attribute of the same name."""
        names = list(inspect.signature(type(self)).parameters)[1:]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def __getstate__(self) -> dict[str, Any]:
        """All attributes: torch's optimizers keep their settings in the parameter groups, these keep them here."""
        return self.__dict__.copy()

    @property
    def shared(self) -> dict[str, Any]:
        """State of all parameters together, saved and loaded with the rest."""
        return cast("dict[str, dict[str, Any]]", self.state)["global"]

    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """Take one step on a mini-batch.

        The signature differs from torch's on purpose: a batch gives derivatives that a closure cannot.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State for :meth:`load_state_dict`, with the settings that it belongs to."""
        return {**_STATE_DICT(self), "settings": self._stored_settings()}

    def _stored_settings(self) -> dict[str, Any]:
        """Settings that are plain values: those of the parameter groups, and those of the constructor alone."""
        own = {name: value for name, value in self._settings().items() if not _in_groups(name, self.defaults)}
        return {name: value for name, value in {**self.defaults, **own}.items() if _is_plain(value)}

    def _warn_of_other_settings(self, state_dict: Mapping[str, Any]) -> None:
        """Warn of settings that differ from those of a saved state; states of version 0.1 have none."""
        stored, mine = state_dict.get("settings", {}), self._stored_settings()
        differing = [name for name in mine if name in stored and stored[name] != mine[name]]
        in_groups = [name for name in differing if name in self.defaults]
        others = [name for name in differing if name not in self.defaults]
        for names, result in (
            (in_groups, "the stored values apply, as in torch's optimizers"),
            (others, "the values of now apply; make the optimizer with the stored ones to continue the same run"),
        ):
            texts = ", ".join(f"{name} (stored {stored[name]!r}, now {mine[name]!r})" for name in names)
            if names:
                warnings.warn(
                    f"{type(self).__name__}: the state was saved with other settings: {texts}; {result}", stacklevel=3
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; without a setting ``lr``, learning-rate schedulers are refused."""
        _ADD_PARAM_GROUP(self, param_group)
        self._guard_groups()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy, on the parameters' device: torch does so only for the state of single parameters.

        Warns of settings that the state was saved with and that differ from this optimizer's.
        """
        self._warn_of_other_settings(state_dict)
        defaults = dict(self.defaults)
        _LOAD_STATE_DICT(self, copy.deepcopy(state_dict))
        self.defaults = defaults  # torch adds "differentiable", which would make a loaded state another one
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)  # states saved before the setting moved into the group
        self._guard_groups()
        device = self.param_groups[0]["params"][0].device
        for state in self.state.values():
            state.update({key: value.to(device) for key, value in state.items() if isinstance(value, Tensor)})

    def _guard_groups(self) -> None:
        for i, group in enumerate(self.param_groups):
            if "lr" not in group and not isinstance(group, ParameterGroupWithoutRate):
                self.param_groups[i] = ParameterGroupWithoutRate(group)

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """While entered, the model holds the weights to evaluate; for most methods, those that they train."""
        yield


def _in_groups(name: str, defaults: Mapping[str, Any]) -> bool:
    """Whether a setting of the constructor is one of the parameter groups, where ``learning_rate`` is ``lr``."""
    return name in defaults or (name == "learning_rate" and "lr" in defaults)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold the value without pickling code."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def parameters_of(model_or_params: Params) -> list[Any]:
    """Trainable parameters or parameter groups, as torch's optimizers take them.

    Raises:
        TypeError: `model_or_params` is neither a module nor an iterable of parameters or groups.
        ValueError: there is no parameter.
    """
    if isinstance(model_or_params, nn.Module):
        found: list[Any] = [parameter for parameter in model_or_params.parameters() if parameter.requires_grad]
    elif isinstance(model_or_params, (str, Mapping, Tensor, DataLoader)) or not isinstance(model_or_params, Iterable):
        raise TypeError(_not_parameters(model_or_params))
    else:
        found = list(model_or_params)
    for entry in found:
        if not isinstance(entry, (Tensor, dict, tuple)):
            raise TypeError(_not_parameters(entry, "an iterable with an entry of type "))
    if not found:
        raise ValueError(
            "model_or_params holds no trainable parameter: nothing can be optimised; give a torch.nn.Module, its "
            "parameters or parameter groups"
        )
    return found


def _not_parameters(given: object, where: str = "") -> str:
    hints = {
        str: "an optimizer by name is raycurv.optim.create(name, model)",
        DataLoader: "its batches go to step: optimizer.step(objective.batch(inputs, targets))",
        torch.optim.Optimizer: "raycurv.optim.FirstOrder(optimizer) wraps one of torch",
        Objective: "give its model",
        Tensor: "a single parameter goes into a list",
    }
    hint = next((f"; {text}" for kind, text in hints.items() if isinstance(given, kind)), "")
    return (
        "model_or_params must be a torch.nn.Module, an iterable of its parameters or of parameter groups; it is "
        f"{where}{type(given).__name__}{hint}"
    )


def one_group(name: str, model_or_params: Params) -> list[Any]:
    """Parameters of a method whose numbers belong to all of them together.

    Args:
        name: optimizer named in messages.
        model_or_params: argument of :func:`parameters_of`.

    Raises:
        ValueError: several parameter groups.
    """
    found = parameters_of(model_or_params)
    if isinstance(found[0], dict):
        if len(found) > 1 or set(found[0]) != {"params"}:
            raise ValueError(
                f"{name} finds one step for all parameters together and so takes no parameter groups: give the model "
                "or its parameters; freeze what must not move with requires_grad_(False)"
            )
        return list(found[0]["params"])
    return found


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model contains batch normalisation."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def check_batch(optimizer: StepOptimizer, batch: Batch) -> None:
    """Refuse anything but a batch of an objective over the optimizer's own parameters.

    Raises:
        TypeError: `batch` is no :class:`raycurv.Batch` (a closure, a tensor, …).
        ValueError: the batch's objective has other parameters.
    """
    if not isinstance(batch, Batch):
        raise TypeError(
            f"step takes a batch made by Objective.batch(inputs, targets), not {type(batch).__name__}; closures are "
            "not used"
        )
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    theirs = {id(p) for p in batch.objective.parameters}
    if mine != theirs:
        raise ValueError(
            f"the optimizer was made for {len(mine)} parameters and the batch's objective has {len(theirs)} others or "
            "more: make both from the same model (parameters frozen later must be frozen before both)"
        )
