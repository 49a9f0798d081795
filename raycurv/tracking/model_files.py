"""A trained network as a folder of three files, logged as a model in MLflow. Reading it unpickles nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from raycurv.train.build import build_model
from raycurv.train.configuration import RunConfig
from raycurv.train.export import TrainedModel, trained_model

CONFIG, SHAPE, WEIGHTS = "config.json", "shape.json", "weights.pt"


def save(folder: Path, trained: TrainedModel) -> Path:
    """Write the folder that :func:`load` reads; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {
        "input_shape": list(trained.input_shape),
        "num_classes": trained.num_classes,
        "classes": trained.classes,
        "step": trained.step,
    }
    (folder / CONFIG).write_text(trained.config.to_json())
    (folder / SHAPE).write_text(json.dumps(shape, indent=2))
    torch.save(trained.model.state_dict(), folder / WEIGHTS)
    return folder


def load(folder: Path) -> TrainedModel:
    """Load the network that :func:`save` wrote, in evaluation mode on the CPU."""
    config = RunConfig.from_json((folder / CONFIG).read_text())
    shape = json.loads((folder / SHAPE).read_text())
    model: nn.Module = build_model(config, shape)
    model.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    return trained_model(model, config, shape["step"], shape)
