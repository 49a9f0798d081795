"""A trained network as a folder of three files, logged as a model in MLflow. Reading it unpickles nothing."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from raycurv.train.build import build_model
from raycurv.train.configuration import RunConfig
from raycurv.train.export import TrainedModel, trained_model
from raycurv.train.trust import require_trusted

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


def shipped_modules(folder: Path) -> tuple[str, ...]:
    """Top-level modules that a logged model brings along in its folder ``code``, which MLflow imports itself."""
    code = folder.parent.parent / "code"
    return tuple(path.stem for path in code.iterdir() if path.stem.isidentifier()) if code.is_dir() else ()


def load(folder: Path, trust: Collection[str] | None = None) -> TrainedModel:
    """Load the network that :func:`save` wrote, in evaluation mode on the CPU.

    Args:
        folder: folder of the files.
        trust: modules whose functions the configuration may name; None takes those of ``RAYCURV_TRUST``.

    Raises:
        UntrustedCodeError: the configuration names a function of another module.
    """
    config = RunConfig.from_json((folder / CONFIG).read_text())
    require_trusted(config, "the logged model", trust)
    shape = json.loads((folder / SHAPE).read_text())
    model: nn.Module = build_model(config, shape)
    model.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    return trained_model(model, config, shape["step"], shape)
