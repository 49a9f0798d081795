"""Everything that can be said against a configuration before anything heavy starts."""

from __future__ import annotations

from torch import nn

from raycurv import optim
from raycurv.train.configuration import RunConfig
from raycurv.train.run import build_optimizer, resolve_loss, resolve_weights

# What a model and a data set are offered, and may leave to the loop to fill in.
OFFERED = ("num_classes", "input_shape")


def check(config: RunConfig) -> None:
    """Refuse a configuration that would fail on the workers: nothing is read and no network is built.

    Raises:
        ValueError: a component cannot be imported or does not take its settings; the optimizer or one of its
            settings is unknown, out of bounds or without meaning for it.
    """
    config.model.check(*OFFERED)
    config.data.check()
    resolve_loss(config.loss)
    resolve_weights(config.weights)
    # On a network of one weight, so that the optimizer itself says what is wrong.
    horizon = optim.Horizon(epochs=config.epochs, steps_per_epoch=1, training_samples=config.batch_size)
    model = nn.Linear(1, 1)
    build_optimizer(config, model.double() if config.precision == "fp64" else model, horizon)
