"""How the runs of a launch ended, as outcomes like those of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycurv.arguments import format_settings
from raycurv.results.outcomes import EvaluationPoint, Outcome, Status

if TYPE_CHECKING:
    from raycurv.service.plan import PlannedRun
    from raycurv.train.configuration import RunConfig
    from raycurv.train.records import Result


def outcome_of(run: PlannedRun, result: Result) -> Outcome:
    """A run that came to its end."""
    told = result.evaluations
    began = told[-1].time - result.seconds if told else 0.0
    points = tuple(EvaluationPoint(r.epoch, r.step, r.time - began, dict(r.values)) for r in told)
    return Outcome(
        run.config.name, run.recipe, run.config.optimizer, setting_of(run.config), run.config.seed, points=points,
        steps=result.steps, seconds=result.seconds,
    )  # fmt: skip


def lost(run: PlannedRun, how: Status, why: str) -> Outcome:
    """A run that did not."""
    config = run.config
    return Outcome(
        config.name, run.recipe, config.optimizer, setting_of(config), config.seed, status=how, reason=why
    )  # fmt: skip


def setting_of(config: RunConfig) -> str:
    """What is set of the optimizer, as text; empty for its defaults."""
    return format_settings(dict(sorted(config.optimizer_settings.items())))
