"""Evaluation of trained networks from checkpoints or from MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from raycurv.data import locate
from raycurv.train import CheckpointStore, Precision, TrainedModel, evaluate, load_trained_model
from raycurv.train.build import build_metrics, data_shape, resolve_loss, resolve_weights


def load(
    model: str,
    *,
    averaged: bool,
    best: bool = False,
    tracking_uri: str | None,
    runs: str,
    trust: Collection[str] | None = None,
) -> TrainedModel:
    """Load a trained network.

    Args:
        model: folder or address of its checkpoints, or ``runs:/ID/model`` or ``models:/NAME/VERSION`` in MLflow.
        averaged: load the average of its weights.
        best: load its best checkpoint, not its newest.
        tracking_uri: MLflow's server or data base; None is the file in `runs`.
        runs: folder of all runs.
        trust: modules whose functions the model may name; None takes those of ``RAYCURV_TRUST``.

    Raises:
        UntrustedCodeError: the model names a function of another module.
        ValueError: `averaged` or `best` is set for a logged model, which has one set of weights.
    """
    if not model.startswith(("runs:/", "models:/")):
        return load_trained_model(CheckpointStore(model), averaged=averaged, best=best, trust=trust)
    if averaged or best:
        flag = "--averaged" if averaged else "--best"
        raise ValueError(f"{flag} needs a folder of checkpoints: a logged model holds one set of weights")
    from raycurv.tracking.logged_model import fetch

    return fetch(model, tracking_uri, runs, trust)


def measure(
    trained: TrainedModel, data: str | None, *, batch_size: int, device: str, precision: Precision | None
) -> dict[str, Any]:
    """Evaluate a network on the evaluation set.

    Args:
        trained: the network.
        data: folder of the data; None for the data of its training.
        batch_size: samples per batch.
        device: device of torch.
        precision: floating-point format; None for the one of its training.

    Returns:
        Number of samples, loss and other metrics by name.

    Raises:
        ValueError: the data have no evaluation set, or are not of the kind that the network was trained on.
    """
    config = trained.config
    component = config.data
    if data is not None:
        component = dataclasses.replace(component, settings={**component.settings, "path": locate(data)})
    found = component.build()
    if found.evaluation is None:
        raise ValueError(f"{component.target!r} has no evaluation set")
    shape = data_shape(found)
    if tuple(shape["input_shape"]) != trained.input_shape or shape["num_classes"] != trained.num_classes:
        raise ValueError(
            f"the network takes {trained.input_shape} and has {trained.num_classes} classes; the data have "
            f"{tuple(shape['input_shape'])} and {shape['num_classes']}"
        )
    values = evaluate(
        trained.model.to(device),
        found.evaluation,
        loss=resolve_loss(config.loss),
        weights=resolve_weights(config.weights),
        metrics=build_metrics(config.metrics, shape),
        batch_size=batch_size,
        device=device,
        precision=precision or config.precision,
    )
    return {"samples": len(found.evaluation), **values}
