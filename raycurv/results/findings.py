"""Findings of a comparison in plain sentences, and the groups of recipes that are shown together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raycurv.results import comparison
from raycurv.results.comparison import MethodRow, NetworkQuartiles
from raycurv.results.conditions import conditions
from raycurv.results.outcomes import Outcome

# Recipes that differ in one of these are other problems, not one problem with another setting.
_PROBLEM = frozenset(("model.target", "data.target", "loss"))


@dataclass(frozen=True)
class RecipeGroup:
    """Recipes that are shown together: one alone, or several that differ in one setting.

    Attributes:
        recipes: names of the recipes.
        setting: name of the setting in which they differ; empty for one recipe.
        values: value of this setting by recipe.
    """

    recipes: tuple[str, ...]
    setting: str = ""
    values: Mapping[str, str] | None = None

    @property
    def title(self) -> str:
        """Names of the recipes."""
        return ", ".join(self.recipes)


def group_recipes(outcomes: Sequence[Outcome]) -> list[RecipeGroup]:
    """Groups of recipes whose configurations differ in at most one setting, in the order of the first runs."""
    common = _common_conditions(outcomes)
    groups: list[RecipeGroup] = []
    for recipe, mine in common.items():
        for place, group in enumerate(groups):
            first = common[group.recipes[0]]
            differing = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
            if len(differing) == 1 and differing[0] not in _PROBLEM and group.setting in ("", differing[0]):
                (name,) = differing
                recipes = (*group.recipes, recipe)
                values = {each: common[each].get(name, "default") for each in recipes}
                groups[place] = RecipeGroup(recipes, name, values)
                break
        else:
            groups.append(RecipeGroup((recipe,)))
    return groups


def _common_conditions(outcomes: Sequence[Outcome]) -> dict[str, dict[str, str]]:
    """Conditions that all runs of a recipe share, by recipe."""
    common: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        mine = conditions(outcome)
        before = common.setdefault(outcome.recipe, mine)
        common[outcome.recipe] = {name: value for name, value in before.items() if mine.get(name) == value}
    return common


def answer(rows: Sequence[MethodRow]) -> str:
    """What a comparison says in one sentence, with optimizers between ``**``; empty if it says nothing.

    With a search the sentence compares untuned optimizers with the best tuned baseline. Without one it names the
    lowest training loss and the highest test accuracy.

    Args:
        rows: rows of one comparison.
    """
    raw = [row for row in rows if row.weights == "raw" and math.isfinite(row.loss)]
    tuned, free = [row for row in raw if row.searched], [row for row in raw if not row.searched]
    if tuned and free:
        return _against_tuned(min(tuned, key=lambda row: row.loss), free)
    if any(row.searched for row in rows) or len(raw) < 2:
        return ""
    return _among_equals(rows, sorted(raw, key=lambda row: row.loss))


def headlines(rows: Sequence[MethodRow]) -> list[str]:
    """A sentence for each comparison: its conclusion with a search, its answer without one.

    Comparisons that have neither share one sentence at the end.
    """
    lines, silent = [], []
    for name in dict.fromkeys(row.comparison for row in rows):
        mine = [row for row in rows if row.comparison == name]
        if any(row.searched for row in mine):
            lines += comparison.conclusions(mine)
        elif found := answer(mine):
            lines.append(f"{name}: {found.replace('**', '')} No baseline was tuned by a search.")
        else:
            silent += mine
    return lines + (comparison.conclusions(silent) if silent else [])


def _against_tuned(best: MethodRow, free: Sequence[MethodRow]) -> str:
    trials = f"{best.searched} trial{'s' * (best.searched != 1)} of search"
    goal = f"the training loss of tuned **{best.optimizer}**, {best.loss:.4g}"
    able = [row for row in free if math.isfinite(row.epochs_to_target)]
    if not able:
        closest = min(free, key=lambda row: row.loss)
        return (
            f"No untuned optimizer reaches {goal} ({trials}); the closest, **{closest.optimizer}**, ends at "
            f"{closest.loss:.4g}."
        )
    counted = best.operations and all(row.operations for row in able)
    fastest = min(able, key=lambda row: row.operations_to_target if counted else row.step_time_to_target)
    time = fastest.step_time_to_target / max(best.step_time, 1e-9)
    costs = [f"{fastest.operations_to_target / best.operations:.2g} times the operations"] if counted else []
    costs.append(f"{time:.2g} times the {'step time' if best.step_seconds and fastest.step_seconds else 'seconds'}")
    return (
        f"Untuned **{fastest.optimizer}** reaches {goal}, with {' and '.join(costs)} that {best.optimizer} and its "
        f"{trials} take."
    )


def _among_equals(rows: Sequence[MethodRow], ranked: Sequence[MethodRow]) -> str:
    first, second = ranked[:2]
    spread = f" ± {first.spread:.2g}" if math.isfinite(first.spread) else ""
    text = (
        f"**{first.method}** ends with the lowest training loss of {len(ranked)} methods, {first.loss:.4g}{spread}, "
        f"before **{second.method}** with {second.loss:.4g}"
    )
    known = [row for row in rows if math.isfinite(row.accuracy)]
    if not known:
        return f"{text}."
    best = max(known, key=lambda row: row.accuracy)
    weights = " with averaged weights" if best.weights == "averaged" else ""
    if (best.method, best.weights) == (first.method, "raw"):
        return f"{text}, and with the highest test accuracy, {best.accuracy:.2%}."
    return f"{text}; the highest test accuracy is {best.accuracy:.2%}, of **{best.method}**{weights}."


def network_answer(rows: Sequence[NetworkQuartiles]) -> str:
    """What a comparison over random networks says, as :func:`answer`."""
    known = [row for row in rows if math.isfinite(row.median)]
    if len(known) < 2:
        return ""
    first = min(known, key=lambda row: row.median)
    return (
        f"**{first.optimizer}** has the lowest median training loss over {first.networks} random networks, "
        f"{first.median:.4g} [{first.lower:.4g}, {first.upper:.4g}], and the lowest on {first.best_on} of them."
    )
