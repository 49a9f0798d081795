"""SALERA's Tables 1 and 2, figures 1 and 2, failed runs and the Δ study, appendix C."""

from __future__ import annotations

from raycurv.recipes import search
from raycurv.recipes.papers.printing import grid
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results.statistics import EARLY_TEST_ERROR, FAILED, TEST_ERROR, TEST_LOSS, TRAINING_LOSS

PAPER = "SALERA"
_RECIPES = tuple(f"salera_{data}_{model}" for data in ("mnist", "cifar10") for model in ("m0", "m2", "m2b", "m4b"))
_RATES = {"learning_rate": search.powers(-5, 0)}  # η₀, 1e-5 to 1 for all of them
_BATCHES: Axes = {"portion": (0.001, 0.01)}
_GRID: Axes = {"memory": (0.001, 0.01, 0.1, 0.25), "gain": (3e-8, 3e-7, 3e-6, 3e-5), **_RATES}  # α, C, η₀
_BASELINES: dict[str, Axes] = {
    "nesterov": {"momentum": (0.8, 0.9, 0.99, 0.999), **_RATES},
    "adagrad": _RATES,
    "adam": {"beta1": (0.8, 0.9, 0.99), "beta2": (0.99, 0.999, 0.9999), **_RATES},
}
_ROBUST: dict[str, Axes] = {
    "nesterov": {"momentum": (0.9,)},
    "adam": {"beta1": (0.8,), "beta2": (0.9999,)},
    "ag_adam": {"memory": (0.001,), "gain": (3e-6,)},
    "alera": {"memory": (0.01,), "gain": (3e-6,)},
    "salera": {"memory": (0.01,), "gain": (3e-6,)},
    "spalera": {"memory": (0.1,), "gain": (3e-8,)},
}
_SEARCHED = ("learning_rate", "momentum", "beta1", "beta2", "memory", "gain", "portion")
_NAMES = {
    "nesterov": "NAG", "adagrad": "Adagrad", "adam": "ADAM", "ag_adam": "Ag-Adam", "alera": "ALeRA",
    "salera": "SALeRA", "spalera": "SPALeRA", **{f"sensitivity={n}": f"λ = {n}" for n in (1, 100, 1000)},
    **{f"salera_{d}_{m}": f"{shown} {m.upper().replace('B', 'b')}"
       for d, shown in (("mnist", "MNIST"), ("cifar10", "CIFAR")) for m in ("m0", "m2", "m2b", "m4b")},
}  # fmt: skip

# The papers' entries: test error in per cent, mean (deviation).
_TABLE_1 = """
                  | NAG | Adagrad | ADAM | Ag-Adam | ALeRA | SALeRA | SPALeRA
MNIST M0, 5 ep.   | 7.75 (.14) | 7.73 (.06) | 7.72 (.12) | 7.31 (.09) | 7.51 (.09) | 7.51 (.09) | 8.03 (.09)
MNIST M0, 20 ep.  | 7.59 (.07) | 7.51 (.09) | 7.43 (.10) | 7.29 (.09) | 7.43 (.03) | 7.44 (.04) | 7.60 (.08)
MNIST M2, 5 ep.   | 1.95 (.17) | 2.00 (.06) | 2.07 (.11) | 1.93 (.17) | 1.86 (.11) | 1.87 (.05) | 1.93 (.14)
MNIST M2, 20 ep.  | 1.58 (.08) | 1.71 (.08) | 1.56 (.06) | 1.57 (.04) | 1.55 (.10) | 1.59 (.09) | 1.55 (.09)
MNIST M2b, 5 ep.  | 1.82 (.13) | 1.72 (.07) | 1.81 (.07) | 1.66 (.08) | 1.59 (.08) | 1.59 (.08) | 1.78 (.08)
MNIST M2b, 20 ep. | 1.47 (.10) | 1.48 (.06) | 1.57 (.94) | 1.53 (.05) | 1.43 (.04) | 1.48 (.09) | 1.50 (.09)
MNIST M4b, 5 ep.  | .85 (.08) | 1.02 (.09) | .89 (.31) | .91 (.06) | .82 (.30) | .82 (.30) | .82 (.14)
MNIST M4b, 20 ep. | .72 (.09) | .82 (.08) | .80 (.08) | .79 (.05) | .63 (.05) | .64 (.07) | .63 (.11)
CIFAR M0, 5 ep.   | 60.37 (.55) | 60.49 (.71) | 60.60 (.45) | 59.62 (.27) | 59.89 (.19) | 59.69 (.33) | 61.32 (.65)
CIFAR M0, 20 ep.  | 59.73 (.19) | 59.76 (.36) | 59.81 (.24) | 59.34 (.24) | 59.31 (.11) | 59.31 (.25) | 59.71 (.48)
CIFAR M2, 5 ep.   | 45.82 (.93) | 44.81 (.62) | 45.68 (.39) | 44.91 (.42) | 44.69 (17.58) | 44.42 (.24) | 45.74 (.85)
CIFAR M2, 20 ep.  | 45.08 (.32) | 43.59 (.51) | 44.43 (.50) | 43.25 (.40) | 43.19 (.21) | 42.72 (.41) | 44.48 (.65)
CIFAR M2b, 5 ep.  | 45.01 (.84) | 44.18 (.62) | 44.30 (.96) | 43.33 (.33) | 43.08 (.17) | 43.08 (.17) | 44.92 (.89)
CIFAR M2b, 20 ep. | 42.50 (.48) | 43.79 (.25) | 43.60 (.64) | 42.72 (.33) | 42.12 (.15) | 42.50 (.29) | 43.23 (.27)
CIFAR M4b, 5 ep.  | 27.74 (.48) | 34.93 (.96) | 28.50 (.68) | 25.60 (.29) | 28.61 (.50) | 28.61 (.50) | 29.61 (.99)
CIFAR M4b, 20 ep. | 27.45 (.39) | 29.15 (.67) | 27.84 (.59) | 25.30 (.18) | 26.35 (.64) | 25.93 (.64) | 27.94 (.22)
"""

_TABLE_2 = """
                  | NAG | ADAM | Ag-Adam | ALeRA | SALeRA | SPALeRA
MNIST M0, 5 ep.   | 7.91 (.14) | 7.87 (.25) | 7.86 (.20) | 7.96 (.13) | 7.96 (.13) | 8.06 (.10)
MNIST M0, 20 ep.  | 7.59 (.07) | 7.45 (.08) | 7.34 (.08) | 7.53 (.10) | 7.53 (.06) | 7.60 (.08)
MNIST M2, 5 ep.   | 1.95 (.17) | 2.30 (.17) | 2.04 (.15) | 1.89 (.07) | 1.87 (.05) | 1.94 (.13)
MNIST M2, 20 ep.  | 1.64 (.06) | 1.59 (.06) | 1.80 (.45) | 1.68 (.04) | 1.68 (.05) | 1.63 (.05)
MNIST M2b, 5 ep.  | 1.85 (.05) | 1.93 (.09) | 1.99 (.11) | 1.71 (.11) | 1.72 (.04) | 1.80 (.08)
MNIST M2b, 20 ep. | 1.47 (.10) | 1.62 (.09) | 1.82 (.26) | 1.59 (.05) | 1.59 (.05) | 1.52 (.02)
MNIST M4b, 5 ep.  | .85 (.08) | 1.03 (.08) | 1.08 (.13) | .99 (.11) | .99 (.14) | .94 (.09)
MNIST M4b, 20 ep. | .76 (.12) | .80 (.08) | .91 (.08) | .83 (.01) | .83 (.01) | .63 (.11)
CIFAR M0, 5 ep.   | 60.73 (.44) | 60.74 (.39) | 60.55 (.49) | 60.46 (.81) | 60.43 (.42) | 61.71 (.76)
CIFAR M0, 20 ep.  | 59.73 (.19) | 60.08 (.22) | 59.34 (.24) | 59.31 (.11) | 59.37 (.10) | 59.79 (.57)
CIFAR M2, 5 ep.   | 46.62 (.12) | 45.71 (.54) | 45.15 (.15) | 44.84 (17.52) | 45.01 (.14) | 46.08 (.90)
CIFAR M2, 20 ep.  | 45.08 (.32) | 44.44 (.61) | 44.30 (.42) | 43.92 (1.43) | 43.68 (.25) | 44.62 (.56)
CIFAR M2b, 5 ep.  | 45.48 (.67) | 44.90 (.50) | 43.33 (.33) | 44.15 (.29) | 44.49 (.18) | 45.45 (.57)
CIFAR M2b, 20 ep. | 43.86 (.52) | 43.60 (.64) | 43.11 (.35) | 42.70 (.31) | 42.70 (.31) | 43.51 (.80)
CIFAR M4b, 5 ep.  | 27.74 (.48) | 29.34 (.83) | 28.15 (.21) | 28.61 (.50) | 28.61 (.50) | 30.09 (.73)
CIFAR M4b, 20 ep. | 27.70 (.76) | 28.00 (.72) | 27.46 (.54) | 27.60 (.26) | 27.60 (.26) | 28.05 (.43)
"""

TABLES: tuple[Table, ...] = (
    Table(
        "salera_table1", PAPER, "Table 1",
        studies=(
            Study(
                "salera_table1", PAPER, "Table 1", _RECIPES,
                {**_BASELINES, "ag_adam": _GRID, "alera": _GRID, "salera": _GRID, "spalera": _GRID},
                options=_BATCHES, seeds=5,
            ),
        ),
        statistics=(EARLY_TEST_ERROR, TEST_ERROR),
        rows=("recipe", "statistic"),
        columns=("optimizer",),
        best_of=_SEARCHED,
        names=_NAMES,
        printed=grid(_TABLE_1),
        note="Test error in per cent after 5 and 20 epochs (a quarter and the end of a scaled run), best over all "
        "settings, mean ± deviation over 5 seeds.",
    ),
    Table(
        "salera_table2", PAPER, "Table 2",
        studies=(
            Study(
                "salera_table2", PAPER, "Table 2", _RECIPES,
                {name: {**axes, **_RATES} for name, axes in _ROBUST.items()}, options=_BATCHES, seeds=5,
            ),
        ),
        statistics=(EARLY_TEST_ERROR, TEST_ERROR),
        rows=("recipe", "statistic"),
        columns=("optimizer",),
        best_of=("learning_rate", "portion"),
        names=_NAMES,
        printed=grid(_TABLE_2),
        note="As Table 1 for each method's robust setting, best over initial rates and batch sizes alone.",
    ),
    Table(
        "salera_failures", PAPER, "section 3.2, Δ",
        studies=(
            Study(
                "salera_failures", PAPER, "section 3.2", _RECIPES, {"alera": _GRID, "salera": _GRID}, options=_BATCHES,
                seeds=5,
            ),
            Study(
                "salera_delta", PAPER, "section 3.2, Δ", _RECIPES, {"salera": {**_GRID, "sensitivity": (1, 100, 1000)}},
                options=_BATCHES, seeds=5,
            ),
        ),
        statistics=(FAILED, TEST_ERROR),
        rows=("optimizer", "sensitivity"),
        names=_NAMES,
        printed={
            "ALeRA": {FAILED.title: "18.3"}, "SALeRA": {FAILED.title: "11.7"},
            "SALeRA, λ = 1": {FAILED.title: "more than 11.7"},
            "SALeRA, λ = 100": {FAILED.title: "about half of 11.7"},
            "SALeRA, λ = 1000": {FAILED.title: "no less than for λ = 100"},
        },
        note="Failed: no end, or a test error above 80 % there, over the grid of section 3.1. SALeRA without a number "
        "is λ = 10. The test error is the mean over all settings that came to an end.",
    ),
    Table(
        "salera_fig1", PAPER, "Fig. 1",
        studies=(
            Study(
                "salera_fig1", PAPER, "Fig. 1", ("salera_mnist_m2",), {"alera": _GRID, "salera": _GRID},
            ),
        ),
        statistics=(TEST_ERROR, TRAINING_LOSS),
        rows=("optimizer", "memory", "gain", "learning_rate"),
        names=_NAMES,
        note="The paper draws one pair of runs in which ALeRA ends above 80 % and SALeRA recovers; it does not say "
        "with which setting.",
    ),
    Table(
        "salera_fig2", PAPER, "Fig. 2",
        studies=(
            Study(
                "salera_fig2", PAPER, "Fig. 2", ("salera_cifar10_m4b",),
                {name: {**_ROBUST[name], **_RATES} for name in ("ag_adam", "alera", "salera")}, seeds=5,
            ),
        ),
        statistics=(TEST_ERROR, TEST_LOSS, TRAINING_LOSS),
        rows=("optimizer",),
        best_of=("learning_rate",),
        names=_NAMES,
        note="The paper: first, second and third in test error; training error near 0 at the end for ALeRA and SALeRA.",
    ),
)  # fmt: skip
