"""The configuration of a run: frozen, validated before anything starts, and stored beside the run as JSON.

Every value of a :class:`RunConfig` is a number, a string or a :class:`Component` (a function by its import path, and
its keyword arguments). So a configuration can be sent to any worker and read back from any run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, get_args

from raycurv.arguments import require, require_run_name, require_whole, unknown
from raycurv.train.metric_names import NAMED_METRICS, larger_is_better
from raycurv.train.moved_paths import current_path, former_path

Precision = Literal["fp32", "fp64", "bf16", "fp16"]
BestMode = Literal["max", "min"]
BatchNorm = Literal["synchronised", "local"]
# Fields that change no measured number.
_NO_EFFECT = (
    "name", "log_every", "checkpoint_every", "keep_checkpoints", "gradient_norm", "batch_error", "stop_after",
    "change_horizon", "best_metric", "best_mode", "check_consistency",
)  # fmt: skip
# Fields of later versions. At their defaults they are not part of the digest, which stored runs carry.
_LATER: dict[str, Any] = {
    "evaluate_every_steps": None,
    "evaluate_training_samples": None,
    "metrics": {},
    "micro_batch": None,
    "start_from": None,
    "freeze": (),
    "batch_norm": "synchronised",
    "drop_last": False,
    "compile": False,
}
_PRETRAINED = ("torchvision", "timm", "transformers")  # packages with pretrained networks by name
Setting = bool | int | float | str | None | tuple[Any, ...]


@dataclass(frozen=True)
class Component:
    """A function by its import path, and its keyword arguments.

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
            raise ValueError(f"Component({self.target!r}) has settings that JSON cannot hold: {error}") from error

    @classmethod
    def of(cls, function: Callable[..., Any], **settings: Setting) -> Component:
        """Name an importable function.

        Raises:
            ValueError: the function cannot be imported by another process (a lambda, a closure, ``__main__``).
        """
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or "<" in name:
            raise ValueError(
                f"{name} of {module} cannot be imported by a worker: move it to the top level of a module in the "
                "working directory of the job"
            )
        return cls(f"{module}:{name}", settings)

    def resolve(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            ValueError: there is no such module or no such function in it.
            ModuleNotFoundError: the module exists, and one of its imports does not.
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
            if isinstance(found, ModuleType):
                raise ValueError(f"{self.target!r} passes through the module {found.__name__!r}; name its own path")
        if not callable(found):
            raise ValueError(f"{self.target!r} is {type(found).__name__}, not a function")
        return found

    def build(self, **offered: Any) -> Any:
        """Call the function with its settings.

        Args:
            **offered: further arguments; those that the function does not take, or that are set, are left out.

        Raises:
            ValueError: the function does not take a setting, or a required one is missing.
        """
        return self.resolve()(**self._bound(offered))

    def check(self, *offered: str) -> None:
        """Import the function and check that it takes its settings, without calling it.

        Args:
            *offered: names of the arguments that :meth:`build` will offer.

        Raises:
            ValueError: there is no such function, it does not take a setting, or a required one is missing.
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
    """The settings with tuples in place of lists; JSON has lists alone."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value

    return {name: frozen(value) for name, value in settings.items()}


def metric_components(metrics: Mapping[str, str | Component] | Sequence[str]) -> dict[str, Component]:
    """Components of metrics by name, from a mapping or from names and import paths.

    Raises:
        ValueError: a name is unknown, given twice, or cannot be a part of a metric's name.
    """
    if isinstance(metrics, str):
        raise ValueError(f"RunConfig.metrics is {metrics!r}; it must be a tuple such as ({metrics!r},), or a mapping")
    pairs = [*metrics.items()] if isinstance(metrics, Mapping) else [(_metric_name(text), text) for text in metrics]
    found: dict[str, Component] = {}
    for name, given in pairs:
        holds = bool(re.fullmatch(r"[A-Za-z0-9_.-]+", name)) and name not in ("loss", "accuracy")
        require("the name of a metric", name, holds, "letters, digits, '_', '-' or '.', and not loss or accuracy")
        if name in found:
            raise ValueError(f"RunConfig.metrics has {name!r} twice; give each metric a name of its own in a mapping")
        found[name] = given if isinstance(given, Component) else _metric_component(given)
    return found


def _metric_name(text: str) -> str:
    return text.rpartition(":")[2].rpartition(".")[2] if ":" in text else text


def _metric_component(text: str) -> Component:
    if ":" in text:
        return Component(text)
    if text not in NAMED_METRICS:
        raise ValueError(f"{unknown('metric', text, NAMED_METRICS)}; your own is package.module:function")
    return Component(*NAMED_METRICS[text])


def pretrained_name(start: str) -> tuple[str, str] | None:
    """Package and name of ``torchvision:NAME``, ``timm:NAME`` or ``transformers:NAME``; None for an address."""
    package, colon, name = start.partition(":")
    return (package, name) if colon and package in _PRETRAINED else None


def _absolute(start: str) -> str:
    """The address of weights, which workers in other folders understand; names of pretrained networks stay."""
    return start if "://" in start or pretrained_name(start) else os.path.abspath(os.path.expanduser(start))


@dataclass(frozen=True)
class RunConfig:
    """The configuration of one training run.

    Attributes:
        name: name of the run in MLflow and of its folder; letters, digits, ``-``, ``_`` and ``.``.
        model: function that builds the network; ``num_classes`` and ``input_shape`` come from the data unless set.
        data: function that builds a :class:`raycurv.data.Data` (training and evaluation sets).
        optimizer: name of a registered optimizer (:func:`raycurv.optim.names`); ``auto`` has nothing to tune.
        optimizer_settings: keyword arguments of the optimizer; empty means its defaults.
        loss: ``"cross_entropy"``, ``"squared_error"``, or ``"package.module:function"`` returning one value per sample.
        weights: ``"package.module:function"`` of the targets, returning the weight of each sample in the objective and
            in evaluation (:func:`raycurv.objective.losses.word_counts` for sentences); None weights all equally.
        metrics: metrics that evaluations measure beside loss and accuracy: a mapping of names to components, or a
            sequence of ``"top5"``, ``"f1"``, ``"mse"``, ``"perplexity"`` and ``"package.module:function"``, which is
            named after its function. They change no update.
        l2: factor of ½‖Θ‖² in the objective.
        batch_size: samples per step, over all workers.
        micro_batch: samples of a worker's share that are computed at once, for batches that do not fit in memory; None
            computes all of them at once. Updates are the same up to rounding, except that batch normalisation takes the
            statistics of each micro-batch.
        drop_last: leave out the last batch of an epoch where it is smaller than the others. Samples that it would hold
            are drawn anew in the next epoch. CurveBall takes a full step on a batch of any size.
        epochs: passes over the training set.
        max_steps: length of the run in steps, if that is less than its epochs; schedules end there.
        stop_after: steps after which this sitting ends with a checkpoint, for a later resume; schedules ignore it.
        change_horizon: allow a resumed run other epochs or max_steps although its step sizes depend on them.
        start_from: weights to start from: the checkpoints of a run, a file of torch (a state_dict) or safetensors, or
            torchvision:NAME, timm:NAME or transformers:NAME. Tensors of another size are reported and drawn anew.
        freeze: patterns of the names of parameters that stay as they are, such as ``features.*``.
        seed: seed of the initial weights, the data order, augmentation and dropout.
        precision: ``fp32``, ``fp64``, or ``bf16`` or ``fp16`` (autocast; weights stay in float32). With ``fp16``,
            derivatives are scaled (:mod:`raycurv.objective.loss_scale`); a step whose gradient overflows is not taken.
        batch_norm: statistics of batch normalisation with several workers: ``synchronised``, those of the global batch;
            or ``local``, those of each worker's share. Local ones are faster, and make the result depend on the number
            of workers.
        compile: compile the passes of a step (:mod:`raycurv.objective.compiled_steps`): faster steps, after seconds to
            minutes at the second one. Results are equal up to rounding. It needs a C++ compiler and has no effect with
            several workers.
        clip_gradient: largest global norm of the gradient; only for optimizers that follow a gradient.
        average_weights: decay of an exponential average of the weights, evaluated and saved beside the raw ones.
        log_every: steps between two transfers of scalars from the device to the log.
        checkpoint_every: steps between checkpoints; one is also written at the end of every epoch.
        keep_checkpoints: number of checkpoints to keep.
        best_metric: metric of evaluations, such as ``test/f1``, whose best checkpoint is kept too; the logged model is
            then the one of that checkpoint. None keeps the newest ones alone.
        best_mode: ``max`` or ``min``, whether the largest or the smallest value is the best; None for metrics that come
            along, such as accuracy, f1 and loss.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        evaluate_every_steps: steps between evaluations, in place of `evaluate_every`; the last step is always
            evaluated.
        validation: fraction of the training set held out for optimizers that use a validation batch at every step; 0
            holds out nothing. Only for sets that fit in memory.
        evaluate_training: at every evaluation also measure the training set, without augmentation, as
            ``training_set/loss`` and ``training_set/accuracy``.
        evaluate_training_samples: number of training samples, the first ones, that `evaluate_training` measures; None
            measures all. Only for sets that fit in memory.
        gradient_norm: log the norm of the gradient at every log interval, at the cost of a backward pass.
        batch_error: log the error rate of the mini-batch at every log interval, at the cost of a forward pass.
        check_consistency: compute the first batch twice, and refuse a model whose outputs differ. Switch it off for a
            model that is meant to do so.
    """

    name: str
    model: Component
    data: Component
    optimizer: str = "auto"
    optimizer_settings: Mapping[str, Setting] = field(default_factory=dict)
    loss: str = "cross_entropy"
    weights: str | None = None
    metrics: Mapping[str, Component] = field(default_factory=dict)
    l2: float = 0.0
    batch_size: int = 128
    micro_batch: int | None = None
    drop_last: bool = False
    epochs: int = 10
    max_steps: int | None = None
    stop_after: int | None = None
    change_horizon: bool = False
    start_from: str | None = field(default=None, metadata={"values": "WEIGHTS"})
    freeze: tuple[str, ...] = field(default=(), metadata={"values": "PATTERN …"})
    seed: int = 0
    precision: Precision = "fp32"
    batch_norm: BatchNorm = "synchronised"
    compile: bool = False
    clip_gradient: float | None = None
    average_weights: float | None = None
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    best_metric: str | None = None
    best_mode: BestMode | None = None
    evaluate_every: int = 1
    evaluate_every_steps: int | None = None
    validation: float = 0.0
    evaluate_training: bool = False
    evaluate_training_samples: int | None = None
    gradient_norm: bool = False
    batch_error: bool = False
    check_consistency: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer_settings", _tuples(self.optimizer_settings))
        object.__setattr__(self, "metrics", metric_components(self.metrics))
        require_run_name("RunConfig.name", self.name)
        self._check_start()
        for name in ("batch_size", "epochs", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every"):
            require_whole(f"RunConfig.{name}", getattr(self, name), 1)
        clip, average = self.clip_gradient, self.average_weights
        steps, measured = self.evaluate_every_steps, self.evaluate_training_samples
        for name, holds, allowed in (
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "None or at least 1"),
            ("micro_batch", self.micro_batch is None or self.micro_batch >= 1, "None or at least 1"),
            ("stop_after", self.stop_after is None or self.stop_after >= 1, "None or at least 1"),
            ("evaluate_every_steps", steps is None or steps >= 1, "None or at least 1"),
            ("evaluate_training_samples", measured is None or measured >= 1, "None or at least 1"),
            ("best_mode", self.best_mode in (None, *get_args(BestMode)), "None, 'max' or 'min'"),
            ("seed", 0 <= self.seed < 2**63, "a whole number from 0 to 2⁶³−1"),
            ("l2", 0 <= self.l2 < math.inf, "a finite number of at least 0"),
            ("precision", self.precision in get_args(Precision), "one of fp32, fp64, bf16, fp16"),
            ("batch_norm", self.batch_norm in get_args(BatchNorm), "one of synchronised, local"),
            ("validation", 0 <= self.validation < 1, "0, or a fraction below 1 (0.1 is usual)"),
            ("clip_gradient", clip is None or 0 < clip < math.inf, "None or a positive number"),
            ("average_weights", average is None or 0 < average < 1, "None or between 0 and 1 (0.99 is usual)"),
        ):
            require(f"RunConfig.{name}", getattr(self, name), holds, allowed)
        if self.loss not in ("cross_entropy", "squared_error"):
            object.__setattr__(self, "loss", Component(self.loss).target)
        if self.weights is not None:
            object.__setattr__(self, "weights", Component(self.weights).target)
        self._check_best()

    @property
    def largest_is_best(self) -> bool:
        """Whether the best value of ``best_metric`` is the largest one."""
        if self.best_mode is not None:
            return self.best_mode == "max"
        return bool(larger_is_better(self.best_metric or ""))

    def _check_best(self) -> None:
        metric = self.best_metric
        if metric is None:
            require("RunConfig.best_mode", self.best_mode, self.best_mode is None, "None without a best_metric")
            return
        sets = ["test", *(["training_set"] if self.evaluate_training else [])]
        sets += [] if self.average_weights is None else [f"averaged/{name}" for name in sets]
        known = ["train/epoch_loss", *(f"{s}/{m}" for s in sets for m in ("loss", "accuracy", *self.metrics))]
        if not any(metric == name or metric.startswith(f"{name}/") for name in known):
            raise ValueError(f"RunConfig.best_metric: {unknown('metric', metric, known)}")
        if self.best_mode is None and larger_is_better(metric) is None:
            raise ValueError(
                f"RunConfig.best_metric is {metric!r}, whose better values are not known: "
                "give best_mode, 'max' or 'min' (--best-mode)"
            )

    def _check_start(self) -> None:
        freeze = (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze)
        object.__setattr__(self, "freeze", freeze)
        require("RunConfig.freeze", freeze, all(freeze), "patterns of parameter names, such as features.*")
        require("RunConfig.start_from", self.start_from, self.start_from != "", "None, an address or a name")
        if self.start_from is not None:
            object.__setattr__(self, "start_from", _absolute(self.start_from))

    def to_json(self) -> str:
        """The configuration as indented JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @property
    def digest(self) -> str:
        """Identifier of what the run measures: equal for runs that differ in name and logging alone.

        It is made of the first import path of each function, so it is equal in every version.
        """
        absent = {name for name, default in _LATER.items() if getattr(self, name) == default}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in absent.union(_NO_EFFECT)}
        for component in (values["model"], values["data"]):
            component["target"] = former_path(component["target"])
        values["loss"] = former_path(self.loss)
        values["weights"] = None if self.weights is None else former_path(self.weights)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read the text of :meth:`to_json`, also of an earlier version.

        Raises:
            ValueError: it is no configuration, has unknown or missing fields, or values out of bounds.
        """
        try:
            found = cls._of(json.loads(text))
            found.to_json()  # finds what is nested too deep to be stored
            return found
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is no configuration of a run: {type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, values: dict[str, Any]) -> RunConfig:
        fields = {f.name for f in dataclasses.fields(cls)}
        if extra := sorted(set(values) - fields):
            raise ValueError(f"RunConfig has no field {', '.join(extra)}; its fields are {', '.join(sorted(fields))}")
        for name in ("model", "data"):
            values[name] = Component(**values[name])
        metrics = values.get("metrics", {})
        values["metrics"] = {name: Component(**component) for name, component in metrics.items()}
        return cls(**values)
