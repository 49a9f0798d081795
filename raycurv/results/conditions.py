"""Groups of runs that differ in their seed alone: the seeds of one method under equal conditions.

The conditions of a run are all fields of its configuration that change a number. Left out are the name, the seed, the
optimizer with its settings (which are compared), the folders of the data, and what is only logged, kept or measured.
`stop_after` is left out too: a run that was continued equals one without an interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycurv.results.outcomes import Outcome
from raycurv.train.configuration import RunConfig
from raycurv.train.moved_paths import current_path

_LEFT_OUT = frozenset(
    (
        "name", "seed", "optimizer", "log_every", "gradient_norm", "batch_error", "stop_after", "change_horizon",
        "checkpoint_every", "keep_checkpoints", "best_metric", "best_mode", "evaluate_every", "evaluate_every_steps",
        "evaluate_training", "evaluate_training_samples", "check_consistency",
    )
)  # fmt: skip
_LEFT_OUT_BELOW = ("optimizer_settings.", "metrics.")
LENGTH = frozenset(("epochs", "max_steps", "steps"))
# A setting at its default may be missing, since an earlier version did not have it.
_DEFAULTS = {f.name: str(f.default) for f in dataclasses.fields(RunConfig) if f.name != "epochs"}


def conditions_of(settings: Mapping[str, str]) -> dict[str, str]:
    """The conditions of a run.

    Args:
        settings: flat configuration, such as ``{"batch_size": "64", "model.settings.widths": "[32]"}``.
    """
    return {
        name: _plain(name, value)
        for name, value in sorted(settings.items())
        if name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_BELOW) and not _is_default(name, value)
    }


def conditions_of_config(config: RunConfig) -> dict[str, str]:
    """The conditions of a run that has this configuration."""
    return conditions_of(_flat(json.loads(config.to_json())))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: str(value)}
    return found


def _is_default(name: str, value: str) -> bool:
    default = _DEFAULTS.get(name)
    return value == default or (default == "()" and value == "[]")  # JSON has lists alone


def _plain(name: str, value: str) -> str:
    if name in ("model.target", "data.target", "loss", "weights"):
        return current_path(value) if ":" in value else value
    return value.rstrip("/").rpartition("/")[2] if name.startswith("data.settings.") else value


@dataclass(frozen=True)
class RunGroup:
    """Runs of one method that differ in their seed alone.

    Attributes:
        runs: the runs, oldest first.
        conditions: their common conditions.
        differing: those of the conditions that differ between the groups of the recipe, as text.
    """

    runs: tuple[Outcome, ...]
    conditions: Mapping[str, str]
    differing: str = ""

    @property
    def method(self) -> str:
        """Optimizer, its setting and the differing conditions."""
        first = self.runs[0]
        return " ".join(filter(None, (first.optimizer, first.setting, self.differing)))


def group_runs(outcomes: Iterable[Outcome]) -> list[RunGroup]:
    """Groups of runs with equal recipe, optimizer, setting, conditions and, where they finished, steps."""
    found: dict[tuple[object, ...], list[Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.recipe, outcome.optimizer, outcome.setting, frozen(conditions(outcome)))
        found.setdefault(key, []).append(outcome)
    groups = [group for runs in found.values() for group in _by_length(runs)]
    texts = differing_conditions([(group.runs[0].recipe, group.conditions) for group in groups])
    return [dataclasses.replace(group, differing=text) for group, text in zip(groups, texts, strict=True)]


def conditions(outcome: Outcome) -> dict[str, str]:
    """Conditions of a run, with the number of a random network."""
    network = {"network": outcome.labels["network"]} if "network" in outcome.labels else {}
    return {**outcome.conditions, **network}


def without_length(found: Mapping[str, str]) -> dict[str, str]:
    """Conditions without the length of the run; a search may be shorter than the final runs."""
    return {name: value for name, value in found.items() if name not in LENGTH}


def differing_conditions(found: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Conditions that differ from those of another entry of the same recipe, as text.

    Args:
        found: recipe and conditions of each entry.
    """
    return [", ".join(f"{name}={value}" for name, value in mine.items()) for mine in differing_values(found)]


def differing_values(found: Sequence[tuple[str, Mapping[str, str]]]) -> list[dict[str, str]]:
    """Conditions that differ from those of another entry of the same recipe: short name → value, for each entry.

    Args:
        found: recipe and conditions of each entry.
    """
    entries: dict[str, list[Mapping[str, str]]] = {}
    for recipe, mine in found:
        entries.setdefault(recipe, []).append(mine)
    shown = {recipe: _differing(some) for recipe, some in entries.items()}
    values = [{name: mine.get(name, _DEFAULTS.get(name)) for name in shown[recipe]} for recipe, mine in found]
    return [{_short(name): value for name, value in mine.items() if value is not None} for mine in values]


def _differing(found: Sequence[Mapping[str, str]]) -> list[str]:
    names = dict.fromkeys(name for mine in found for name in mine)
    shown = [name for name in names if len({mine.get(name) for mine in found}) > 1]
    return [name for name in shown if not name.startswith("model.")] if "network" in shown else shown


def _short(name: str) -> str:
    return name.replace(".settings.", ".")


def frozen(found: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Conditions as a key."""
    return tuple(sorted(found.items()))


def _by_length(runs: Sequence[Outcome]) -> list[RunGroup]:
    """Runs by the steps that they finished; a run that did not finish goes with the first group."""
    same, steps = conditions(runs[0]), list(dict.fromkeys(run.steps for run in runs if run.status == "finished"))
    if len(steps) < 2:
        return [RunGroup(tuple(runs), same)]
    found: dict[int, list[Outcome]] = {count: [] for count in steps}
    for run in runs:
        found[run.steps if run.status == "finished" else steps[0]].append(run)
    return [RunGroup(tuple(part), {**same, "steps": str(count)}) for count, part in found.items()]
