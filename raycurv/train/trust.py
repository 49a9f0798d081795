"""Whether a configuration from outside may be loaded: a checkpoint or a logged model names functions to be called.

A stored configuration may name the functions of this package that are listed here, and those of modules that the user
trusts. Every other name is refused before anything is imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from raycurv.train.configuration import RunConfig
from raycurv.train.metric_names import NAMED_METRICS

_MODELS = (
    *("airbench:airbench", "autoencoder:autoencoder", "basic_cnn:basic_cnn", "gpt:gpt", "lenet:lenet", "mlp:mlp"),
    *("random_cnn:random_cnn", "resnet:resnet18", "resnet:resnet50", "salera_networks:m0", "salera_networks:m2"),
    *("salera_networks:m2b", "salera_networks:m4b", "small_problems:rosenbrock", "small_problems:two_linear_layers"),
    *("transformer:transformer", "vgg:vgg", "vgg_f:vgg_f", "vision_transformer:vision_transformer"),
    "wide_resnet:wide_resnet",
)
_DATA = (
    *("csv_table:csv_table", "label_noise:noisy_images", "parquet:parquet_images", "reconstruction:reconstructions"),
    *("translation:multi30k", "translation:multi30k_text"),
)
_LOSSES = ("mean_squared_error", "word_cross_entropy", "word_counts")
_PROBLEMS = ("ill_conditioned_map", "rosenbrock_noise")
REGISTERED = frozenset(
    (
        *(f"raycurv.models.{name}" for name in _MODELS),
        *(f"raycurv.data.{name}" for name in _DATA),
        *(f"raycurv.objective.losses:{name}" for name in _LOSSES),
        *(f"raycurv.recipes.papers.curveball:{name}" for name in _PROBLEMS),
        *(target for target, _ in NAMED_METRICS.values()),
    )
)


class UntrustedCodeError(ValueError):
    """A configuration from outside names a function that nobody has allowed; the message says how to allow it."""


def default_trust() -> tuple[str, ...]:
    """Modules in ``RAYCURV_TRUST``, separated by commas."""
    return tuple(name for name in os.environ.get("RAYCURV_TRUST", "").replace(",", " ").split() if name)


def allow(modules: Iterable[str]) -> None:
    """Trust further modules in this process and in those that it starts."""
    os.environ["RAYCURV_TRUST"] = ",".join(dict.fromkeys((*default_trust(), *modules)))


def trusted_by(config: RunConfig) -> tuple[str, ...]:
    """What a run trusts that this process has built: its own functions, and the modules in ``RAYCURV_TRUST``."""
    return (*default_trust(), *targets(config))


def targets(config: RunConfig) -> tuple[str, ...]:
    """Import paths of all functions that a configuration names."""
    named = [config.model.target, config.data.target, *(component.target for component in config.metrics.values())]
    return tuple(dict.fromkeys([*named, *(text for text in (config.loss, config.weights) if text and ":" in text)]))


def require_trusted(config: RunConfig, origin: str, trust: Collection[str] | None = None) -> None:
    """Refuse a configuration from outside that names functions which nobody has allowed. Nothing is imported.

    Args:
        config: the configuration.
        origin: where it comes from, for the message.
        trust: allowed modules, with the modules below them, or functions as ``"package.module:function"``; None takes
            those of ``RAYCURV_TRUST``.

    Raises:
        UntrustedCodeError: it names another function.
    """
    allowed = default_trust() if trust is None else trust
    for target in targets(config):
        module = target.partition(":")[0]
        if target in REGISTERED or target in allowed or any(f"{module}.".startswith(f"{name}.") for name in allowed):
            continue
        raise UntrustedCodeError(
            f"{origin} names {target!r}, which is no model, data, loss or metric of raycurv: to load it would run code "
            f"of {module!r}. If you trust that module, allow it with --trust {module}, the argument trust, or "
            "RAYCURV_TRUST"
        )
