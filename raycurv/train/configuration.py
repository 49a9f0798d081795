"""What a run is: frozen, validated before anything starts, and written beside the run as JSON.

Everything in a :class:`RunConfig` is a number, a string or a :class:`Component` (a function by its import path and the
keyword arguments to call it with), so a configuration travels to any worker and comes back from any run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from raycurv.train.moved_paths import current_path, former_path

Precision = Literal["fp32", "fp64", "bf16"]
_WITHOUT_EFFECT = ("name", "log_every", "checkpoint_every", "keep_checkpoints",
                   "gradient_norm", "batch_error", "stop_after", "change_horizon")  # on what is measured  # fmt: skip
Setting = bool | int | float | str | None | tuple[Any, ...]


@dataclass(frozen=True)
class Component:
    """A function by its import path, and the keyword arguments to call it with.

    Attributes:
        target: ``"package.module:function"``; a path of an earlier version becomes the one of today.
        settings: keyword arguments; numbers, strings, booleans, ``None`` or tuples of them.
    """

    target: str
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module, _, name = self.target.partition(":")
        if not module or not name:
            raise ValueError(f"Component.target must read 'package.module:function', not {self.target!r}")
        object.__setattr__(self, "target", current_path(self.target))
        object.__setattr__(self, "settings", _tuples(self.settings))
        try:
            json.dumps(self.settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Component({self.target!r}) has settings that cannot be written down as JSON: {error}"
            ) from error

    @classmethod
    def of(cls, function: Callable[..., Any], **settings: Setting) -> Component:
        """The component of an importable function.

        Raises:
            ValueError: the function cannot be imported by another process (a lambda, a closure, ``__main__``).
        """
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or "<" in name:
            raise ValueError(
                f"{name} of {module} cannot be imported by a worker: move it to the top level of a module "
                "that lies in the working directory of the job"
            )
        return cls(f"{module}:{name}", settings)

    def resolve(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            ValueError: there is no such module or no such function in it.
            ModuleNotFoundError: the module is there, and something that it imports is not.
        """
        module, _, name = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module + ".").startswith(error.name + "."):
                raise
            raise ValueError(f"{self.target!r}: there is no module {error.name!r} on the Python path") from error
        for part in name.split("."):
            if not hasattr(found, part):
                raise ValueError(f"{self.target!r}: module {module!r} has no {name!r}")
            found = getattr(found, part)
        if not callable(found):
            raise ValueError(f"{self.target!r} is {type(found).__name__}, not a function")
        return found

    def build(self, **offered: Any) -> Any:
        """Call the function with its settings, and with those of `offered` that it takes and that are not set.

        Raises:
            ValueError: a setting is unknown to the function, or a needed one is missing.
        """
        return self.resolve()(**self._bound(offered))

    def check(self, *offered: str) -> None:
        """Import the function and see that it takes its settings, without calling it.

        Args:
            offered: names that :meth:`build` will be given.

        Raises:
            ValueError: as :meth:`resolve` and :meth:`build` would.
        """
        self._bound(dict.fromkeys(offered))

    def _bound(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(self.resolve())
        parameters = signature.parameters
        taken = {name: value for name, value in offered.items() if name in parameters and name not in self.settings}
        try:
            signature.bind(**self.settings, **taken)
        except TypeError as error:
            allowed = ", ".join(parameters) or "none"
            raise ValueError(f"{self.target!r}: {error}; its settings are: {allowed}") from error
        return {**self.settings, **taken}


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with tuples for lists, which JSON makes of them."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value

    return {name: frozen(value) for name, value in settings.items()}


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"RunConfig.{name} is {value!r}; it must be {allowed}")


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        name: names the run in MLflow and its folder; letters, digits, ``-``, ``_`` and ``.``.
        model: builds the network; ``num_classes`` and ``input_shape`` are filled from the data unless set.
        data: builds a :class:`raycurv.data.Data` (training and evaluation sets).
        optimizer: name of a registered optimizer; ``auto`` has nothing to tune.
        optimizer_settings: keyword arguments of the optimizer; empty means its defaults.
        loss: ``"cross_entropy"``, ``"squared_error"``, or ``"package.module:function"`` returning one value per sample.
        weights: ``"package.module:function"`` of the targets, returning what each sample counts for in the objective
            and in evaluation (:func:`raycurv.objective.losses.word_counts` for sentences); None counts all alike.
        l2: factor of ½‖Θ‖² in the objective.
        batch_size: samples of one step, over all workers.
        epochs: passes over the training set.
        max_steps: length of the run in steps, if that is less than its epochs; schedules end there.
        stop_after: steps after which this sitting ends with a checkpoint, for a later resume; schedules ignore it.
        change_horizon: let a resumed run have other epochs or max_steps although its step sizes depend on them.
        seed: seed of the initial weights, the order of the data, augmentation and dropout.
        precision: ``fp32``, ``fp64``, or ``bf16`` (autocast; weights stay in float32).
        clip_gradient: largest global norm of the gradient; only for optimizers that follow a gradient.
        average_weights: decay of an exponential average of the weights, evaluated and saved beside the raw ones.
        log_every: steps between two transfers of scalars from the device to the log.
        checkpoint_every: steps between checkpoints; one is also written at the end of every epoch.
        keep_checkpoints: how many checkpoints stay on disk.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        validation: share of the training set that is held out for optimizers that learn from a validation batch at
            every step; 0 is none. Only sets that fit in memory.
        evaluate_training: at every evaluation also go over the training set, without augmentation: its loss and
            accuracy are ``training_set/loss`` and ``training_set/accuracy``.
        gradient_norm: also log the norm of the gradient at every log interval (one more backward pass then).
        batch_error: also log the share of wrongly classified samples of the mini-batch at every log interval (one more
            forward pass then).
    """

    name: str
    model: Component
    data: Component
    optimizer: str = "auto"
    optimizer_settings: Mapping[str, Setting] = field(default_factory=dict)
    loss: str = "cross_entropy"
    weights: str | None = None
    l2: float = 0.0
    batch_size: int = 128
    epochs: int = 10
    max_steps: int | None = None
    stop_after: int | None = None
    change_horizon: bool = False
    seed: int = 0
    precision: Precision = "fp32"
    clip_gradient: float | None = None
    average_weights: float | None = None
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    evaluate_every: int = 1
    validation: float = 0.0
    evaluate_training: bool = False
    gradient_norm: bool = False
    batch_error: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer_settings", _tuples(self.optimizer_settings))
        allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
        named = 0 < len(self.name) <= 128 and set(self.name) <= allowed and self.name[0] not in ".-"
        _require(named, "name", self.name, "1 to 128 letters, digits, '-', '_' or '.', not starting with '.' or '-'")
        for name in ("batch_size", "epochs", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number of at least 1")
        for name in ("max_steps", "stop_after"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "None or at least 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2⁶³−1")
        _require(math.isfinite(self.l2) and self.l2 >= 0, "l2", self.l2, "a finite number of at least 0")
        _require(self.precision in get_args(Precision), "precision", self.precision, "one of fp32, fp64, bf16")
        _require(0 <= self.validation < 1, "validation", self.validation, "0, or a share below 1 (0.1 is usual)")
        clip, average = self.clip_gradient, self.average_weights
        _require(clip is None or (math.isfinite(clip) and clip > 0), "clip_gradient", clip, "None or a positive number")
        _require(
            average is None or 0 < average < 1, "average_weights", average, "None or between 0 and 1 (0.99 is usual)"
        )
        if self.loss not in ("cross_entropy", "squared_error"):
            object.__setattr__(self, "loss", Component(self.loss).target)
        if self.weights is not None:
            object.__setattr__(self, "weights", Component(self.weights).target)

    def to_json(self) -> str:
        """The configuration as indented JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @property
    def digest(self) -> str:
        """The same for all runs that measure the same numbers, whatever they are called and how often they log.

        It is made of the first path that each function had, so that it is the same in every version.
        """
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in _WITHOUT_EFFECT}
        for component in (values["model"], values["data"]):
            component["target"] = former_path(component["target"])
        values["loss"] = former_path(self.loss)
        values["weights"] = None if self.weights is None else former_path(self.weights)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: unknown or missing fields, or values out of bounds.
        """
        values = json.loads(text)
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"RunConfig has no field {', '.join(unknown)}; its fields are {', '.join(sorted(known))}")
        for name in ("model", "data"):
            values[name] = Component(**values[name])
        return cls(**values)
