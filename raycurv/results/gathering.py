"""Figures of a run that gathers others: those of its best member, and the headline of the comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raycurv.results.comparison import ACCURACY, LOSS, MethodRow, compare_methods
from raycurv.results.outcomes import Outcome


def best_run(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The finished run with the largest test accuracy, or the smallest training loss where accuracy is not measured.

    Final runs go before runs of a search. None if no run has finished with a finite result.
    """
    finished = [o for o in outcomes if o.status == "finished"]
    for stage in (("final",), tuple(o.stage for o in finished)):
        ranked = [o for o in finished if o.stage in stage and any(map(math.isfinite, _rank(o)))]
        if ranked:
            return max(ranked, key=_rank)
    return None


def gathered_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Metrics of a gathering run: the last ones of its best member, counts of runs, and the headline's ratios.

    The ratios are compute and step time of the best tuned baseline, with its search, over those of the fastest untuned
    run to the same training loss. They are there for one comparison with a search.
    """
    best = best_run(outcomes)
    found = {"headline/runs": float(len(outcomes))}
    found["headline/failed"] = float(sum(o.status in ("failed", "diverged", "out of time") for o in outcomes))
    if best is not None:
        for point in best.points:
            found |= point.values
        found |= {"result/seconds": best.seconds, "result/operations": best.operations}
        found |= {"result/step_seconds": best.step_seconds, "result/startup_seconds": best.startup_seconds}
    rows = [row for row in compare_methods(outcomes) if row.weights == "raw"]
    if len({row.comparison for row in rows}) == 1:
        found |= _ratios(rows)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _ratios(rows: Sequence[MethodRow]) -> dict[str, float]:
    tuned = [row for row in rows if row.searched and math.isfinite(row.loss)]
    free = [row for row in rows if not row.searched and math.isfinite(row.epochs_to_target)]
    if not tuned or not free:
        return {}
    baseline = min(tuned, key=lambda row: row.loss)
    counted = baseline.operations and all(row.operations for row in free)
    fastest = min(free, key=lambda row: row.operations_to_target if counted else row.step_time_to_target)
    found = {"headline/step_time_ratio": baseline.step_time / max(fastest.step_time_to_target, 1e-9)}
    if counted:
        found["headline/operations_ratio"] = baseline.operations / fastest.operations_to_target
    return found


def _rank(outcome: Outcome) -> tuple[float, float]:
    accuracy, loss = outcome.last(ACCURACY), outcome.last(LOSS)
    return _or_least(accuracy), _or_least(None if loss is None else -loss)


def _or_least(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else -math.inf
