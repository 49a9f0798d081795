"""Model, loss and optimizer out of a configuration, and a check of it before anything heavy starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from raycurv import optim
from raycurv.data import Data, Source
from raycurv.train.configuration import Component, RunConfig
from raycurv.train.evaluation_metrics import Metric, require_metric
from raycurv.train.frozen_parameters import freeze

# Arguments that a model or a metric may leave to the run, which fills them in from the data.
FILLED_IN = ("num_classes", "input_shape")


def check(config: RunConfig) -> None:
    """Refuse a configuration that would fail on the workers: nothing is read and no network is built.

    Raises:
        ValueError: a component cannot be imported or does not take its settings; the optimizer or one of its
            settings is unknown, out of bounds or without meaning for it.
    """
    config.model.check(*FILLED_IN)
    config.data.check()
    resolve_loss(config.loss)
    resolve_weights(config.weights)
    for name, component in config.metrics.items():
        _check_metric(name, component)
    # On a network of one weight, so that the optimizer checks its own settings.
    horizon = optim.Horizon(epochs=config.epochs, steps_per_epoch=1, training_samples=config.batch_size)
    model = nn.Linear(1, 1)
    build_optimizer(config, model.double() if config.precision == "fp64" else model, horizon)


def data_shape(data: Data) -> dict[str, Any]:
    """Shape of the data: the arguments of the model, and what a resumed run must find again."""
    return {
        "num_classes": None if data.train.classes is None else len(data.train.classes),
        "classes": None if data.train.classes is None else list(data.train.classes),
        "input_shape": list(data.train.input_shape),
        "training_samples": len(data.train),
    }


def build_model(config: RunConfig, shape: dict[str, Any]) -> nn.Module:
    """The network of a configuration, on the CPU, in the precision of its weights, with its parameters frozen.

    Raises:
        ValueError: a setting of the model is unknown or missing, or a pattern of `freeze` does not fit.
        TypeError: the component does not build a module.
    """
    model = config.model.build(**_offered(shape))
    if not isinstance(model, nn.Module):
        raise TypeError(f"{config.model.target!r} built a {type(model).__name__}; a model must be a torch.nn.Module")
    freeze(model, config.freeze)
    return model.double() if config.precision == "fp64" else model


def require_outputs(config: RunConfig, training: Source) -> None:
    """Refuse a model that would keep its default number of classes although the targets are real numbers.

    Args:
        config: configuration of the run.
        training: the training set; one that is streamed is not looked at.

    Raises:
        ValueError: the model takes ``num_classes`` with a default, and neither the data nor a setting gives it.
    """
    parameter = inspect.signature(config.model.resolve()).parameters.get("num_classes")
    if parameter is None or not isinstance(parameter.default, int) or "num_classes" in config.model.settings:
        return
    if training.classes is not None or not training.in_memory:
        return
    _, targets = training.read(np.zeros(1, np.int64), seed=0, epoch=0, training=False)
    if targets.is_floating_point():
        outputs = targets[0].numel()
        raise ValueError(
            f"the targets of {config.data.target!r} are {outputs} real numbers, and {config.model.target!r} would keep "
            f"its default of {parameter.default} outputs: set num_classes={outputs} in the settings of the model"
        )


def build_optimizer(config: RunConfig, model: nn.Module, horizon: optim.Horizon) -> optim.StepOptimizer:
    """The optimizer of a configuration.

    Raises:
        ValueError: its name or one of its settings is unknown or out of bounds, or it needs a validation set.
    """
    settings: dict[str, Any] = dict(config.optimizer_settings)
    if config.clip_gradient is not None:
        settings["clip_gradient"] = config.clip_gradient
    optimizer = optim.create(config.optimizer, model, horizon=horizon, **settings)
    if optimizer.needs_validation and config.validation == 0:
        raise ValueError(
            f"optimizer {config.optimizer!r} needs a validation batch at every step: hold out a fraction of the "
            "training set for it (--validation 0.1)"
        )
    return optimizer


def resolve_loss(name: str) -> str | Callable[[Tensor, Tensor], Tensor]:
    """The loss of a configuration: a name, or the function at an import path.

    Raises:
        ValueError: there is no such function.
    """
    return Component(name).resolve() if ":" in name else name


def resolve_weights(name: str | None) -> Callable[[Tensor], Tensor] | None:
    """The function of the sample weights; None where all samples have equal weights.

    Raises:
        ValueError: there is no such function.
    """
    return None if name is None else Component(name).resolve()


def build_metrics(metrics: Mapping[str, Component], shape: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of a configuration by name.

    A function of (outputs, targets) is a metric itself, with its settings. A class, or a function that can be called
    without outputs and targets, makes the metric; ``num_classes`` and ``input_shape`` come from the data unless set.

    Raises:
        ValueError: there is no such function, it does not take a setting, or it makes no metric.
    """
    found = {}
    for name, component in metrics.items():
        offered = _offered(shape)
        found[name] = component.build(**offered) if _makes_metric(component, offered) else _with_settings(component)
        require_metric(name, found[name])
    return found


def _check_metric(name: str, component: Component) -> None:
    """Refuse a metric that could not be built.

    Raises:
        ValueError: there is no such function, or it takes neither outputs and targets nor its settings alone.
    """
    try:
        if _makes_metric(component, FILLED_IN):
            component.check(*FILLED_IN)
            if _makes_metric(component, ()):  # without data, so that its settings can be checked now
                require_metric(name, component.build())
            return
        parameters = inspect.signature(component.resolve())
    except (ValueError, ModuleNotFoundError) as error:
        hint = "; the extra `metrics` brings torchmetrics" if component.target.startswith("torchmetrics") else ""
        raise ValueError(f"metric {name!r}: {error}{hint}") from error
    try:
        parameters.bind(None, None, **component.settings)
    except TypeError as error:
        raise ValueError(
            f"metric {name!r}: {component.target!r} takes {parameters}; with its settings "
            f"{dict(component.settings)} it must take (outputs, targets), or nothing more and make the metric"
        ) from error


def _makes_metric(component: Component, offered: Collection[str]) -> bool:
    if isinstance(component.resolve(), type) and offered:
        return True
    try:
        component.check(*offered)
    except ValueError:
        return False
    return True


def _with_settings(component: Component) -> Callable[[Tensor, Tensor], Any]:
    function = component.resolve()
    return partial(function, **component.settings) if component.settings else function


def _offered(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the data fill in."""
    offered: dict[str, Any] = {"input_shape": tuple(shape["input_shape"])}
    return offered if shape["num_classes"] is None else offered | {"num_classes": shape["num_classes"]}
