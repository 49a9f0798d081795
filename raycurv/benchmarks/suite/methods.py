"""Methods of the suite, each at one setting for every task, and tuned baselines, whose setting is searched per task.

Settings have the terms of *How far away are truly hyperparameter-free learning algorithms?* (arXiv 2505.24005):
`default` is the one of the package or paper, `calibrated` was found on other problems for all of them at once, and
`tuned` is the best of a grid on the very task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raycurv.arguments import unknown
from raycurv.train.configuration import Setting

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class SuiteMethod:
    """One method.

    Attributes:
        name: name of the method, and of its row.
        optimizer: name of the registered optimizer.
        settings: settings of the optimizer; those of a tuned method are in `grid`.
        kind: ``default``, ``calibrated`` or ``tuned``.
        grid: settings to try on every task.
        costly: whether the method runs on costly tasks too.
    """

    name: str
    optimizer: str
    settings: Settings = field(default_factory=dict)
    kind: Literal["default", "calibrated", "tuned"] = "default"
    grid: tuple[Settings, ...] = ()
    costly: bool = False

    @property
    def points(self) -> tuple[Settings, ...]:
        """Settings to run."""
        return self.grid or (self.settings,)


def _rates(*rates: float) -> tuple[Settings, ...]:
    """Each rate constant and with a one-cycle schedule."""
    constant = tuple({"learning_rate": rate} for rate in rates)
    return constant + tuple({**point, "schedule": "one_cycle"} for point in constant)


ONE_CYCLE = "one_cycle"

BASELINES = (
    SuiteMethod("momentum, tuned", "momentum", kind="tuned", grid=_rates(0.01, 0.03, 0.1, 0.3), costly=True),
    SuiteMethod("adam, tuned", "adam", kind="tuned", grid=_rates(1e-3, 3e-3, 1e-2)),
    SuiteMethod("adam", "adam", {"learning_rate": 1e-3}),
    SuiteMethod("adam, one cycle 3e-3", "adam", {"learning_rate": 3e-3, "schedule": ONE_CYCLE}, "calibrated"),
    SuiteMethod("sgd", "sgd"),
    SuiteMethod("momentum", "momentum"),
    SuiteMethod("schedule-free AdamW", "schedule_free_adamw", costly=True),
    SuiteMethod("schedule-free AdamW, AlgoPerf", "schedule_free_adamw_algoperf", kind="calibrated"),
    SuiteMethod("schedule-free SGD", "schedule_free_sgd"),
    SuiteMethod("schedule-free+", "schedule_free_plus"),
    SuiteMethod("schedule-free NorMuon", "schedule_free_normuon"),
    SuiteMethod("prodigy", "prodigy", costly=True),
    SuiteMethod("prodigy, cosine", "prodigy_cosine"),
    SuiteMethod("d-adaptation", "dadapt_adam"),
    SuiteMethod("dog", "dog"),
    SuiteMethod("adamw, cosine", "adamw_cosine", costly=True),
    SuiteMethod("nadamw, AlgoPerf", "nadamw_algoperf", kind="calibrated"),
    SuiteMethod("momo-adam", "momo_adam"),
    SuiteMethod("mechanic, adam", "mechanic_adam"),
    SuiteMethod("muon", "muon"),
    SuiteMethod("soap", "soap"),
    SuiteMethod("ademamix", "ademamix"),
    SuiteMethod("gen, adam", "gen_adam"),
    SuiteMethod("cdat, adam", "cdat_adam"),
    SuiteMethod("cdat, sgd", "cdat_sgd"),
    SuiteMethod("rmsprop", "rmsprop"),
    SuiteMethod("sps", "sps"),
    SuiteMethod("sls", "sls"),
)
OWN = (
    SuiteMethod("auto", "auto", costly=True),
    SuiteMethod("curveball", "curveball", costly=True),
    SuiteMethod("curveball_free", "curveball_free"),
    SuiteMethod("red_sgd", "red_sgd"),
    SuiteMethod("red_rmsprop", "red_rmsprop"),
    SuiteMethod("red_momentum", "red_momentum"),
    SuiteMethod("red_adam", "red_adam"),
    SuiteMethod("ran_rmsprop", "ran_rmsprop"),
    SuiteMethod("ntlr_sgd", "ntlr_sgd"),
    SuiteMethod("ntlr_adam", "ntlr_adam"),
    SuiteMethod("ntlr_sgd_free", "ntlr_sgd_free"),
    SuiteMethod("alera", "alera"),
    SuiteMethod("salera", "salera"),
    SuiteMethod("spalera", "spalera"),
    SuiteMethod("salera_free", "salera_free"),
    SuiteMethod("ag_adam", "ag_adam"),
    SuiteMethod("llr_first_order", "llr_first_order"),
    SuiteMethod("llr_second_order", "llr_second_order"),
    SuiteMethod("llr_free", "llr_free"),
)
METHODS = (*BASELINES, *OWN)
GROUPS = {"baselines": BASELINES, "own": OWN}


def select(names: Sequence[str]) -> tuple[SuiteMethod, ...]:
    """Methods by name, or those of a group: ``baselines`` or ``own``. Without names, all.

    Raises:
        ValueError: there is no method of a name.
    """
    known = {method.name: method for method in METHODS}
    chosen: set[str] = set()
    for name in names:
        if name not in known and name not in GROUPS:
            raise ValueError(unknown("method", name, [*GROUPS, *known]))
        chosen |= {method.name for method in GROUPS.get(name, ())} or {name}
    return tuple(method for method in METHODS if not names or method.name in chosen)
