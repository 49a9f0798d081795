"""Model, loss and optimizer out of a configuration, and a check of it before anything heavy starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from raycurv import optim
from raycurv.data import Data
from raycurv.train.configuration import Component, RunConfig

# Arguments that a model may leave to the run, which fills them in from the data.
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
    """The network of a configuration, on the CPU, in the precision of its weights.

    Raises:
        ValueError: a setting of the model is unknown or missing.
        TypeError: the component does not build a module.
    """
    offered: dict[str, Any] = {"input_shape": tuple(shape["input_shape"])}
    if shape["num_classes"] is not None:
        offered["num_classes"] = shape["num_classes"]
    model = config.model.build(**offered)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{config.model.target!r} built a {type(model).__name__}; a model must be a torch.nn.Module")
    return model.double() if config.precision == "fp64" else model


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
