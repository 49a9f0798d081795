"""Caveats of a comparison of runs: missing, mixed or non-finite values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raycurv.results.comparison import ACCURACY, LOSS
from raycurv.results.outcomes import Outcome

L2_TERM = "train/epoch_l2_term"
NAMED = 5  # largest number of runs named in one sentence
# Shown by other tables, or different for every run without effect on its result.
_OTHERWISE = ("name", "seed", "optimizer", "checkpoint_every", "log_every", "keep_checkpoints")


def list_caveats(outcomes: Sequence[Outcome]) -> list[str]:
    """Caveats of these runs as sentences; empty if there are none."""
    return [
        *_mixed(outcomes),
        *_unmeasured(outcomes),
        *_with_l2_term(outcomes),
        *_with_local_batch_norm(outcomes),
        *_infinite(outcomes),
    ]


def configuration_differences(
    outcomes: Sequence[Outcome], settings: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str, str]]:
    """Settings that differ between runs of one recipe, except optimizer and seed.

    Args:
        outcomes: the runs.
        settings: name of a run → its flat configuration.

    Returns:
        Recipe, setting, and its values with the number of runs that have them.
    """
    rows = []
    for recipe, mine in _by_recipe(outcomes).items():
        known = [(o, settings[o.name]) for o in mine if o.name in settings]
        for name in dict.fromkeys(name for _, found in known for name in found):
            if name in _OTHERWISE or name.startswith("optimizer_settings."):
                continue
            values: dict[str, list[Outcome]] = {}
            for outcome, found in known:
                values.setdefault(found.get(name, "not set"), []).append(outcome)
            if len(values) > 1:
                rows.append((recipe, name, ", ".join(f"{value} ({_who(runs)})" for value, runs in values.items())))
    return rows


def _mixed(outcomes: Sequence[Outcome]) -> list[str]:
    recipes = list(_by_recipe(outcomes))
    if len(recipes) < 2:
        return []
    return [f"These are runs of {len(recipes)} recipes ({', '.join(recipes)}); each recipe is compared for itself."]


def _unmeasured(outcomes: Sequence[Outcome]) -> list[str]:
    """Caveats of finished runs without a metric that is expected of their recipe."""
    found = []
    for recipe, mine in _by_recipe(outcomes).items():
        finished = [o for o in mine if o.status == "finished"]
        for metric in (LOSS, ACCURACY):
            without = [o for o in finished if o.last(metric) is None]
            if without and (metric == LOSS or len(without) < len(finished)):
                found.append(f"{recipe}: {metric} was not measured in {_named(without, len(finished))}.")
    return found


def _with_l2_term(outcomes: Sequence[Outcome]) -> list[str]:
    """Caveats of training losses that contain the L2 term, beside others that do not."""
    found = []
    for recipe, mine in _by_recipe(outcomes).items():
        measured = [o for o in mine if o.last(LOSS) is not None]
        without = [o for o in measured if o.last(L2_TERM) is None]
        if 0 < len(without) < len(measured):
            found.append(
                f"{recipe}: {L2_TERM} was not measured in {_named(without, len(measured))}; "
                f"in version 0.1 it is part of {LOSS}."
            )
    return found


def _with_local_batch_norm(outcomes: Sequence[Outcome]) -> list[str]:
    """Caveats of runs whose batch normalisation takes the statistics of each worker's share."""
    found = []
    for recipe, mine in _by_recipe(outcomes).items():
        local = [o for o in mine if o.conditions.get("batch_norm") == "local"]
        if local:
            found.append(
                f"{recipe}: batch normalisation takes the statistics of each worker's share (batch_norm=local) in "
                f"{_named(local, len(mine))}, so that their results depend on the number of workers."
            )
    return found


def _infinite(outcomes: Sequence[Outcome]) -> list[str]:
    found = []
    for recipe, mine in _by_recipe(outcomes).items():
        for metric in dict.fromkeys(name for o in mine for p in o.points for name in p.values):
            odd = [o for o in mine if any(not math.isfinite(p.values.get(metric, 0.0)) for p in o.points)]
            if odd:
                found.append(
                    f"{recipe}: {metric} is NaN or infinite at some time in {_named(odd, len(mine))}; such values are "
                    "neither drawn nor averaged."
                )
    return found


def _by_recipe(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault(o.recipe, []).append(o)
    return groups


def _named(some: Sequence[Outcome], count: int) -> str:
    names = ", ".join(o.name for o in some[:NAMED]) + (", …" if len(some) > NAMED else "")
    return f"{len(some)} of {count} runs ({names})"


def _who(runs: Sequence[Outcome]) -> str:
    methods = list(dict.fromkeys(o.optimizer for o in runs))
    shown = ", ".join(methods[:NAMED]) + (", …" if len(methods) > NAMED else "")
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {shown}"
