"""What a command line may change about the run that a recipe returns; anything left out stays as the recipe has it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from raycurv.train.configuration import Precision, RunConfig, Setting


@dataclass(frozen=True)
class Overrides:
    """Changes to the run of the recipe. What is left out, None, stays as the recipe has it."""

    optimizer: str | None = None
    """Optimizer: auto, curveball, sgd, momentum, nesterov, adam, adagrad, rmsprop, …"""

    setting: tuple[str, ...] = ()
    """Settings of the optimizer as NAME=VALUE; empty: its defaults, which need no tuning."""

    epochs: int | None = None
    """Passes over the training set."""

    max_steps: int | None = None
    """Steps after which the run ends even if epochs are left."""

    batch_size: int | None = None
    """Samples of one step, over all workers together."""

    l2: float | None = None
    """Factor of ½‖Θ‖² in the objective."""

    loss: str | None = None
    """cross_entropy, squared_error, or package.module:function returning one value per sample."""

    weights: str | None = None
    """package.module:function of the targets, returning what each sample counts for."""

    seed: int | None = None
    """Seed of the initial weights, the order of the data, augmentation and dropout."""

    precision: Precision | None = None
    """Numbers: fp32, fp64, or bf16 (autocast; weights stay in float32)."""

    clip_gradient: float | None = None
    """Largest global norm of the gradient; refused for optimizers that follow no gradient."""

    average_weights: float | None = None
    """Decay, between 0 and 1, of an exponential average of the weights, evaluated beside the raw ones."""

    log_every: int | None = None
    """Steps between two transfers of scalars to the log."""

    checkpoint_every: int | None = None
    """Steps between two checkpoints; one more is written after every epoch."""

    keep_checkpoints: int | None = None
    """Checkpoints that stay on disk."""

    evaluate_every: int | None = None
    """Epochs between two evaluations; the last epoch is always evaluated."""

    validation: float | None = None
    """Share of the training set held out for optimizers that learn from a validation batch at every step."""

    evaluate_training: bool = False
    """Also measure loss and accuracy on the training set, without augmentation, at every evaluation."""

    gradient_norm: bool = False
    """Also log the norm of the gradient, at the cost of one more backward pass at every log interval."""

    batch_error: bool = False
    """Also log the share of the mini-batch that is classified wrongly: one more forward pass at every log interval."""

    def apply(self, config: RunConfig) -> RunConfig:
        """The configuration with everything replaced that is set here.

        Raises:
            ValueError: a value is out of bounds, or a setting is not of the form NAME=VALUE.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "setting"}
        changes = {name: value for name, value in given.items() if value is not None and value is not False}
        if self.optimizer is not None and self.optimizer != config.optimizer:
            changes["optimizer_settings"] = {}  # those of the recipe are another method's
        if self.setting:
            kept = changes.get("optimizer_settings", config.optimizer_settings)
            changes["optimizer_settings"] = {**kept, **dict(map(parse_setting, self.setting))}
        return dataclasses.replace(config, **changes)


def parse_setting(text: str) -> tuple[str, Setting]:
    """``name=value``, the value as JSON if it is, else as it stands.

    Raises:
        ValueError: there is no ``=``, or no name before it.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(f"--setting {text!r} must read NAME=VALUE, such as momentum=0.9")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, tuple(parsed) if isinstance(parsed, list) else parsed
