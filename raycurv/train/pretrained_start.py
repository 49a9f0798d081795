"""Initial weights of a run from other weights: what fits is copied, the rest is drawn anew and reported."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raycurv.data import DataError
from raycurv.train.build import FILLED_IN, build_model, data_shape
from raycurv.train.configuration import RunConfig
from raycurv.train.trust import trusted_by
from raycurv.train.weight_files import StartError, Weights, read_weights

_SHOWN = 4  # names in a message


@dataclass(frozen=True)
class StartReport:
    """What a model got from other weights.

    Attributes:
        source: where the weights came from.
        loaded: names of the model's parameters and buffers that were copied.
        drawn_anew: those of another shape, as ``name (shape there) → (shape here)``.
        missing: those that the weights do not have.
        unused: names of weights that the model does not have.
        renamed: prefix of the weights' names and the prefix that takes its place; both empty if names are equal.
    """

    source: str
    loaded: tuple[str, ...]
    drawn_anew: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    renamed: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        """One sentence for the log."""
        total = len(self.loaded) + len(self.drawn_anew) + len(self.missing)
        parts = [f"starts from {self.source}: {len(self.loaded)} of {total} tensors"]
        if any(self.renamed):
            parts.append("names {!r}… read as {!r}…".format(*self.renamed))
        for what, names in (
            ("of another size and drawn anew", self.drawn_anew),
            ("not there and drawn anew", self.missing),
            ("not used", self.unused),
        ):
            if names:
                parts.append(f"{what}: {_some(names)}")
        return "; ".join(parts)


def load_start(model: nn.Module, start: str, trust: Collection[str] | None = None) -> StartReport:
    """Copy weights into a model where name and shape are equal.

    A prefix that most names of the weights or of the model have, such as ``module.`` or ``backbone.``, may differ.

    Args:
        model: the model, with the weights that it keeps elsewhere.
        start: argument of :func:`~raycurv.train.weight_files.read_weights`.
        trust: modules whose functions a checkpoint may name; None takes those of ``RAYCURV_TRUST``.

    Raises:
        UntrustedCodeError: a checkpoint names a function of another module.
        StartError: the weights cannot be read, or no parameter of the model fits.
    """
    return copy_weights(model, read_weights(start, trust), start)


def copy_weights(model: nn.Module, weights: Weights, source: str) -> StartReport:
    """:func:`load_start` for weights that have been read.

    Raises:
        StartError: no parameter of the model fits.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    old, new = _prefixes(weights, own)
    found = {new + name.removeprefix(old): value for name, value in weights.items() if name.startswith(old)}
    loaded = [name for name, value in own.items() if name in found and _fits(found[name], value)]
    if not {name for name, _ in model.named_parameters()} & set(loaded):
        raise StartError(
            f"start_from: no parameter of {source} fits the model. It has {_some(_described(weights))}; the model has "
            f"{_some(_described(own))}"
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(found[name])
    other = [name for name in own if name in found and name not in loaded]
    return StartReport(
        source,
        tuple(loaded),
        tuple(f"{name} {tuple(found[name].shape)} → {tuple(own[name].shape)}" for name in other),
        tuple(name for name in own if name not in found),
        tuple(name for name in weights if new + name.removeprefix(old) not in own or not name.startswith(old)),
        (old, new),
    )


def check_start(config: RunConfig) -> None:
    """Refuse weights that cannot be loaded, and patterns that freeze nothing or everything, before anything starts.

    Builds the network, and the data where the network needs their shape. Data that this machine cannot read are no
    error here: the workers read them.

    Raises:
        ValueError: the weights or the patterns do not fit the network.
    """
    if config.start_from is None and not config.freeze:
        return
    with torch.random.fork_rng(devices=[]):
        shape: dict[str, Any] = {"num_classes": None, "input_shape": ()}
        if _needs_data(config):
            try:
                shape = data_shape(config.data.build())
            except (DataError, OSError):
                return
        model = build_model(config, shape)
    if config.start_from is not None:
        load_start(model, config.start_from, trusted_by(config))


def _needs_data(config: RunConfig) -> bool:
    taken = inspect.signature(config.model.resolve()).parameters
    return any(name in taken and name not in config.model.settings for name in FILLED_IN)


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _prefixes(weights: Weights, own: Weights) -> tuple[str, str]:
    """Prefix to take from the weights' names and prefix to put in its place, by the number of tensors that then fit."""

    def fitting(old: str, new: str) -> int:
        pairs = ((new + name.removeprefix(old), value) for name, value in weights.items() if name.startswith(old))
        return sum(name in own and _fits(value, own[name]) for name, value in pairs)

    candidates = [(old, new) for old in _common(list(weights)) for new in _common(list(own))]
    return max(candidates, key=lambda pair: fitting(*pair))  # the first one of equals: no prefix


def _common(names: Sequence[str]) -> list[str]:
    """No prefix, and the longer and longer ones that more than half of the names have."""
    found = [""]
    while True:
        counts: dict[str, int] = {}
        for name in names:
            head, dot, _ = name.removeprefix(found[-1]).partition(".")
            if name.startswith(found[-1]) and dot:
                counts[found[-1] + head + dot] = counts.get(found[-1] + head + dot, 0) + 1
        longer = [prefix for prefix, count in counts.items() if 2 * count > len(names)]
        if not longer:
            return found
        found += longer


def _described(weights: Weights) -> list[str]:
    return [f"{name} {tuple(value.shape)}" for name, value in weights.items()]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
