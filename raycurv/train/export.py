"""A trained network from a checkpoint, without its data set."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raycurv import optim
from raycurv.train.averaging import AveragedWeights, overwrite
from raycurv.train.build import build_model, build_optimizer
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.configuration import RunConfig
from raycurv.train.trust import require_trusted

_MOST_VALUES = 2**31  # of one sample and its outputs, a bound on what a damaged checkpoint may ask for


@dataclass(frozen=True)
class TrainedModel:
    """A network with the weights that its run evaluates, in evaluation mode on the CPU.

    Attributes:
        model: the network.
        config: configuration of its run.
        step: number of updates.
        input_shape: shape of one sample.
        num_classes: number of classes; None where the targets are not classes.
        classes: names of the classes, in the order of the outputs.
    """

    model: nn.Module
    config: RunConfig
    step: int
    input_shape: tuple[int, ...]
    num_classes: int | None
    classes: tuple[str, ...] | None = None


def load_trained_model(
    store: CheckpointStore, *, averaged: bool = False, best: bool = False, trust: Collection[str] | None = None
) -> TrainedModel:
    """Build the network of a run with the weights of its newest, or of its best checkpoint.

    Args:
        store: the checkpoints of the run.
        averaged: take the exponential average of the weights, with its running statistics of the last evaluation.
        best: take the checkpoint with the best value of the run's ``best_metric``.
        trust: modules whose functions the checkpoint may name, beside those of this package; None takes those of
            ``RAYCURV_TRUST``. Their code runs.

    Raises:
        UntrustedCodeError: the checkpoint names a function of another module.
        CheckpointError: there is no such checkpoint, it cannot be read, or it holds no average.
        ValueError: the model's component cannot be built.
    """
    state = store.load_best() if best else store.load()
    if state is None:
        raise CheckpointError(f"there is no checkpoint in {store.uri}")
    return trained_from(state, f"the checkpoint in {store.uri}", averaged=averaged, trust=trust)


def trained_from(
    state: dict[str, Any], origin: str, *, averaged: bool = False, trust: Collection[str] | None = None
) -> TrainedModel:
    """:func:`load_trained_model` for the content of a checkpoint, whose origin is named in messages.

    Raises:
        UntrustedCodeError: the checkpoint names a function of another module.
        CheckpointError: the checkpoint holds no average, or its parts do not fit each other.
        ValueError: the model's component cannot be built.
    """
    with _fitting(origin):
        config = RunConfig.from_json(state["config"])
        require_trusted(config, origin, trust)
        shape = _checked_shape(state["data"])
        with torch.random.fork_rng(devices=[]):
            model = build_model(config, shape)
        _load_weights(model, config, state, averaged)
        return trained_model(model, config, state["step"], shape)


@contextmanager
def _fitting(origin: str) -> Iterator[None]:
    """Errors of parts of a checkpoint that lack something, or do not fit each other.

    Raises:
        CheckpointError: in place of them.
        ValueError: as it came.
    """
    try:
        yield
    except (CheckpointError, ValueError):
        raise
    except Exception as error:  # the code of any network, with settings that may be damaged
        raise CheckpointError(
            f"{origin} holds no network that fits its configuration: {type(error).__name__}: {error}"
        ) from error


def _checked_shape(shape: dict[str, Any]) -> dict[str, Any]:
    """The shape of the data, as :func:`raycurv.train.build.data_shape` gives it.

    Raises:
        TypeError: it is none.
    """
    sides, classes = shape["input_shape"], shape["num_classes"]
    whole = all(type(side) is int and side > 0 for side in (*sides, 1 if classes is None else classes))
    if not whole or math.prod(sides) * (classes or 1) >= _MOST_VALUES:
        raise TypeError(f"its data have the shape {sides!r} and {classes!r} classes")
    return shape


def _load_weights(model: nn.Module, config: RunConfig, state: dict[str, Any], averaged: bool) -> None:
    """Put the weights that a run evaluates, or their average, into the model."""
    model.load_state_dict(state["model"])
    if averaged:
        _copy_average(model, config, state)
    else:
        optimizer = build_optimizer(config, model, optim.Horizon(**state["horizon"]))
        optimizer.load_state_dict(state["optimizer"])
        with optimizer.evaluation_weights():
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        if state["evaluation_buffers"]:
            overwrite(list(model.buffers()), state["evaluation_buffers"])


def trained_model(model: nn.Module, config: RunConfig, step: int, shape: dict[str, Any]) -> TrainedModel:
    """A trained network with the shape of its data, as `data_shape` gives it."""
    classes = None if shape["classes"] is None else tuple(shape["classes"])
    return TrainedModel(model.eval(), config, step, tuple(shape["input_shape"]), shape["num_classes"], classes)


def _copy_average(model: nn.Module, config: RunConfig, state: dict[str, Any]) -> None:
    if config.average_weights is None:
        raise CheckpointError(
            f"run {config.name!r} did not average its weights; load the raw ones, or set average_weights"
        )
    average = AveragedWeights(model, config.average_weights)
    average.load_state_dict(state["average"])
    average.copy_to_model()
