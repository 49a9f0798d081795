"""Options of a command line about the run that a recipe returns; anything left out stays as the recipe has it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

from raycurv.arguments import format_setting
from raycurv.service.cluster import Cluster
from raycurv.train.configuration import RunConfig, Setting
from raycurv.train.trust import allow, default_trust

T = TypeVar("T")
_PARTS = ("name", "model", "data", "optimizer_settings", "metrics")  # of a recipe alone, or settings


def _with_fields_of_a_run(kind: type[T]) -> type[T]:
    """Make a frozen dataclass with the fields of :class:`RunConfig` that are plain values, before its own.

    A switch keeps its default. Any other field is None until it is given.
    """
    hints, own = get_type_hints(RunConfig), kind.__annotations__
    fields = [field for field in dataclasses.fields(RunConfig) if field.name not in _PARTS]
    switches = {field.name for field in fields if hints[field.name] is bool}
    kind.__annotations__ = {f.name: bool if f.name in switches else hints[f.name] | None for f in fields} | own
    for field in fields:
        default = field.default if field.name in switches else None
        setattr(kind, field.name, dataclasses.field(default=default, metadata=field.metadata))
    return dataclass(frozen=True)(kind)


@_with_fields_of_a_run
class RunOptions:
    """The run, where it differs from the recipe."""

    DOCUMENTED_BY: ClassVar[type] = RunConfig

    setting: tuple[str, ...] = dataclasses.field(default=(), metadata={"values": "NAME=VALUE …"})
    """Settings of the optimizer; without any, its defaults, which need no tuning."""

    metrics: tuple[str, ...] = dataclasses.field(default=(), metadata={"values": "NAME …"})
    """Metrics that evaluations measure beside loss and accuracy: top5, f1, mse, perplexity, or package.module:function
    of your own or of torchmetrics."""

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that were given."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]  # of the decorator
            if field.name != "setting" and getattr(self, field.name) != field.default
        }

    def apply(self, config: RunConfig) -> RunConfig:
        """The configuration with everything replaced that was given.

        Raises:
            ValueError: a value is out of bounds, or a setting is not of the form NAME=VALUE.
        """
        changes = self.changes
        if changes.get("optimizer", config.optimizer) != config.optimizer:
            changes["optimizer_settings"] = {}  # those of the recipe are another method's
        if self.setting:
            kept = changes.get("optimizer_settings", config.optimizer_settings)
            changes["optimizer_settings"] = {**kept, **parse_settings("--setting", self.setting)}
        return dataclasses.replace(config, **changes)


def parse_setting(text: str) -> tuple[str, Setting]:
    """``name=value``, the value as JSON if it is, else as it stands.

    Raises:
        ValueError: there is no ``=``, or no name before it.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(f"{text!r} must read NAME=VALUE, such as momentum=0.9")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, tuple(parsed) if isinstance(parsed, list) else parsed


def parse_settings(flag: str, texts: Sequence[str]) -> dict[str, Setting]:
    """Settings by name, from texts of the form NAME=VALUE.

    Args:
        flag: flag that they were given to, for messages.
        texts: the texts.

    Raises:
        ValueError: a text is not of this form, or a name is given twice.
    """
    found: dict[str, Setting] = {}
    for name, value in map(parse_setting, texts):
        if name in found:
            raise ValueError(
                f"{flag} has {name!r} twice, as {format_setting(found[name])} and {format_setting(value)}: give it once"
                f"{f', with all values as {name}=[…]' if flag == '--axis' else ''}"
            )
        found[name] = value
    return found


def recipe_options(option: tuple[str, ...], scale: tuple[float, ...] = ()) -> dict[str, Any]:
    """The arguments of a recipe from ``--option`` and ``--scale``.

    Raises:
        ValueError: an option is not of the form NAME=VALUE, or is given twice.
    """
    return {**parse_settings("--option", option), **({"scale": scale} if scale else {})}


def trusting(cluster: Cluster, recipe: str) -> Cluster:
    """The cluster of a command, which trusts the module of the recipe that it names, and those of ``--trust``."""
    module, mark, _ = recipe.partition(":")
    allow((*cluster.trust, *([module] if mark else [])))
    return dataclasses.replace(cluster, trust=default_trust())


def variants(config: RunConfig, compare: tuple[str, ...]) -> list[RunConfig]:
    """The run, then the same one with each of the optimizers of `compare` at its defaults, on the same batches.

    Raises:
        ValueError: an optimizer is compared with itself.
    """
    if len({config.optimizer, *compare}) <= len(compare):
        given = " ".join(compare)
        raise ValueError(f"--compare {given} must name different optimizers, and not {config.optimizer!r}")
    others = [
        dataclasses.replace(config, optimizer=name, optimizer_settings={}, clip_gradient=None) for name in compare
    ]
    return [config, *others]
