"""SALERA (*Going as fast as possible, but not faster*, section 3): recipes, the ablation, tables and figures.

Four networks on MNIST and CIFAR-10, 20 epochs (the paper reports the 5th and the last) of mini-batches of 1 ‰ or 1 % of
the training set, in double precision as in the paper. Images are normalised by each channel's mean and deviation on the
training set (the paper: each pixel's). Appendix C is in :mod:`raycurv.benchmarks.alarm_factor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from raycurv.models.salera_networks import m0, m2, m2b, m4b
from raycurv.recipes import search
from raycurv.recipes.datasets import CIFAR, MNIST, data_component
from raycurv.recipes.printed_table import parse_table
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results.statistics import EARLY_TEST_ERROR, FAILED, TEST_ERROR, TEST_LOSS, TRAINING_LOSS
from raycurv.train.configuration import Component, RunConfig, Setting

PAPER = "SALERA"
# Mean and deviation of each channel on the training set.
MNIST_PIXELS: dict[str, Setting] = {"mean": (0.1307,), "std": (0.3081,)}
CIFAR_PIXELS: dict[str, Setting] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


@experiment(PAPER, "Table 1, 2", "MNIST", "M0, softmax regression", epochs=20, samples=MNIST, gflop=1.57e-5)
def salera_mnist_m0(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """M0.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        portion: fraction of the training set in a batch, 0.001 or 0.01 in the paper.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    return _mnist(m0, data, portion, scale)


@experiment(PAPER, "Table 1, 2, Fig. 1", "MNIST", "M2, MLP 500-300", epochs=20, samples=MNIST, gflop=0.00109)
def salera_mnist_m2(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m0` with two hidden layers."""
    return _mnist(m2, data, portion, scale)


@experiment(PAPER, "Table 1, 2", "MNIST", "M2b, MLP 500-300 + BN", epochs=20, samples=MNIST, gflop=0.00109)
def salera_mnist_m2b(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m2` with batch normalisation."""
    return _mnist(m2b, data, portion, scale)


@experiment(PAPER, "Table 1, 2", "MNIST", "M4b, LeNet + BN", epochs=20, samples=MNIST, gflop=0.00778)
def salera_mnist_m4b(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m0` with two convolutions and two hidden layers, batch normalisation in each."""
    return _mnist(m4b, data, portion, scale)


@experiment(PAPER, "Table 1, 2", "CIFAR-10", "M0, softmax regression", epochs=20, samples=CIFAR, gflop=6.14e-5)
def salera_cifar10_m0(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m0` on CIFAR-10."""
    return _cifar10(m0, data, portion, scale)


@experiment(PAPER, "Table 1, 2", "CIFAR-10", "M2, MLP 1500-900", epochs=20, samples=CIFAR, gflop=0.0119)
def salera_cifar10_m2(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m2` on CIFAR-10."""
    return _cifar10(m2, data, portion, scale)


@experiment(PAPER, "Table 1, 2", "CIFAR-10", "M2b, MLP 1500-900 + BN", epochs=20, samples=CIFAR, gflop=0.0119)
def salera_cifar10_m2b(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m2b` on CIFAR-10."""
    return _cifar10(m2b, data, portion, scale)


@experiment(PAPER, "Table 1, 2, Fig. 2", "CIFAR-10", "M4b, LeNet + BN", epochs=20, samples=CIFAR, gflop=0.0155)
def salera_cifar10_m4b(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m4b` on CIFAR-10."""
    return _cifar10(m4b, data, portion, scale)


def _mnist(network: Callable[..., nn.Module], data: str, portion: float, scale: Scaling) -> RunConfig:
    return _run("mnist", network, data, portion, Scale.of(scale), MNIST, MNIST_PIXELS)


def _cifar10(network: Callable[..., nn.Module], data: str, portion: float, scale: Scaling) -> RunConfig:
    return _run("cifar10", network, data, portion, Scale.of(scale), CIFAR, CIFAR_PIXELS)


def _run(
    where: str,
    network: Callable[..., nn.Module],
    data: str,
    portion: float,
    size: Scale,
    samples: int,
    pixels: dict[str, Setting],
) -> RunConfig:
    if not 0 < portion <= 1:
        raise ValueError(f"portion is {portion}; it must be above 0 and at most 1, such as the paper's 0.001 and 0.01")
    batch_size = max(1, round(portion * samples))
    widths: dict[str, Setting] = {} if network is m0 else {"width": size.width}
    return RunConfig(
        name=size.named("salera", where, network.__name__, portion != 0.001 and f"batch-{batch_size}"),
        model=Component.of(network, **widths),
        data=data_component(data, size, samples, batch_size, settings=pixels),
        optimizer="salera",
        batch_size=batch_size,
        epochs=size.passes(20),
        precision="fp64",
        batch_error=True,
    )


# --- Ablations and tables ---------------------------------------------------------------------------------------------

_RECIPES = tuple(f"salera_{data}_{model}" for data in ("mnist", "cifar10") for model in ("m0", "m2", "m2b", "m4b"))
_RATES: Axes = {"learning_rate": search.powers(-5, 0)}  # η₀, 1e-5 to 1 for all of them
_BATCHES: Axes = {"portion": (0.001, 0.01)}
_GRID: Axes = {"memory": (0.001, 0.01, 0.1, 0.25), "gain": (3e-8, 3e-7, 3e-6, 3e-5), **_RATES}  # α, C, η₀
_OURS = ("ag_adam", "alera", "salera", "spalera")
_BASELINES: dict[str, Axes] = {
    "nesterov": {"momentum": (0.8, 0.9, 0.99, 0.999), **_RATES},
    "adagrad": _RATES,
    "adam": {"beta1": (0.8, 0.9, 0.99), "beta2": (0.99, 0.999, 0.9999), **_RATES},
}
# Settings that the paper prints above Table 2.
_PRINTED_SETTINGS: dict[str, Axes] = {
    "nesterov": {"momentum": (0.9,)},
    "adam": {"beta1": (0.8,), "beta2": (0.9999,)},
    "ag_adam": {"memory": (0.001,), "gain": (3e-6,)},
    "alera": {"memory": (0.01,), "gain": (3e-6,)},
    "salera": {"memory": (0.01,), "gain": (3e-6,)},
    "spalera": {"memory": (0.1,), "gain": (3e-8,)},
}
_RUN = ("learning_rate", "portion")  # the paper's run parameters; the others are those of the algorithms
_ALGORITHM = ("momentum", "beta1", "beta2", "memory", "gain")
_NAMES = {
    "nesterov": "NAG",
    "adagrad": "Adagrad",
    "adam": "ADAM",
    "ag_adam": "Ag-Adam",
    "alera": "ALeRA",
    "salera": "SALeRA",
    "spalera": "SPALeRA",
    **{f"sensitivity={n}": f"λ = {n}" for n in (1, 100, 1000)},
    **{f"salera_mnist_{m}": f"MNIST {m.upper().replace('B', 'b')}" for m in ("m0", "m2", "m2b", "m4b")},
    **{f"salera_cifar10_{m}": f"CIFAR {m.upper().replace('B', 'b')}" for m in ("m0", "m2", "m2b", "m4b")},
}


def _study(
    name: str,
    shows: str,
    recipes: tuple[str, ...],
    optimizers: Mapping[str, Axes],
    seeds: int = 5,
    options: Axes | None = None,
) -> Study:
    return Study(name, PAPER, shows, recipes, optimizers, options=options or {}, seeds=seeds)


def _search(name: str, shows: str, optimizers: Sequence[str]) -> Study:
    """The grid of section 3.1."""
    grids = {optimizer: _BASELINES.get(optimizer, _GRID) for optimizer in optimizers}
    return _study(name, shows, _RECIPES, grids, options=_BATCHES)


STUDIES = (_study("salera_main", "Table 1", _RECIPES, {"ag_adam": {}, "alera": {}, "salera": {}, "spalera": {}}),)

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
        "salera_table1",
        PAPER,
        "Table 1",
        studies=(_search("salera_table1", "Table 1", (*_BASELINES, *_OURS)),),
        statistics=(EARLY_TEST_ERROR, TEST_ERROR),
        rows=("recipe", "statistic"),
        columns=("optimizer",),
        best_of=(*_RUN, *_ALGORITHM),
        names=_NAMES,
        printed=parse_table(_TABLE_1),
        note="Test error in per cent after 5 and 20 epochs (a quarter and the end of a scaled run), best over all "
        "settings, mean ± deviation over 5 seeds.",
    ),
    Table(
        "salera_table2",
        PAPER,
        "Table 2",
        studies=(_search("salera_table2", "Table 2", ("nesterov", "adam", *_OURS)),),
        statistics=(EARLY_TEST_ERROR, TEST_ERROR),
        rows=("recipe", "statistic"),
        columns=("optimizer",),
        best_of=_RUN,
        robust=_ALGORITHM,
        names=_NAMES,
        printed=parse_table(_TABLE_2),
        note="From the runs of Table 1: for each method the one setting with the lowest sum of ranks over networks and "
        "epochs, then the best over initial rates and batch sizes. The paper finds momentum 0.9 for NAG, β₁ = 0.8 and "
        "β₂ = 0.9999 for ADAM, α = 0.001 and C = 3e-6 for Ag-Adam, 0.01 and 3e-6 for ALeRA and SALeRA, 0.1 and 3e-8 "
        "for SPALeRA.",
    ),
    Table(
        "salera_table2_printed",
        PAPER,
        "Table 2",
        studies=(
            _study(
                "salera_table2_printed",
                "Table 2",
                _RECIPES,
                {name: {**axes, **_RATES} for name, axes in _PRINTED_SETTINGS.items()},
                options=_BATCHES,
            ),
        ),
        statistics=(EARLY_TEST_ERROR, TEST_ERROR),
        rows=("recipe", "statistic"),
        columns=("optimizer",),
        best_of=_RUN,
        names=_NAMES,
        printed=parse_table(_TABLE_2),
        note="Table 2 for the settings that the paper prints, with a thirteenth of the runs; ours choose no setting.",
    ),
    Table(
        "salera_failures",
        PAPER,
        "section 3.2, Δ",
        studies=(
            _study("salera_failures", "section 3.2", _RECIPES, {"alera": _GRID, "salera": _GRID}, options=_BATCHES),
            _study(
                "salera_delta",
                "section 3.2, Δ",
                _RECIPES,
                {"salera": {**_GRID, "sensitivity": (1, 100, 1000)}},
                options=_BATCHES,
            ),
        ),
        statistics=(FAILED, TEST_ERROR),
        rows=("optimizer", "sensitivity"),
        names=_NAMES,
        printed={
            "ALeRA": {FAILED.title: "18.3"},
            "SALeRA": {FAILED.title: "11.7"},
            "SALeRA, λ = 1": {FAILED.title: "more than 11.7"},
            "SALeRA, λ = 100": {FAILED.title: "about half of 11.7"},
            "SALeRA, λ = 1000": {FAILED.title: "no less than for λ = 100"},
        },
        note="Failed: no end, or a test error above 80 % there, over the grid of section 3.1. SALeRA without a number "
        "is λ = 10. The test error is the mean over all settings that came to an end.",
    ),
    Table(
        "salera_fig1",
        PAPER,
        "Fig. 1",
        studies=(_study("salera_fig1", "Fig. 1", ("salera_mnist_m2",), {"alera": _GRID, "salera": _GRID}, seeds=1),),
        statistics=(TEST_ERROR, TRAINING_LOSS),
        rows=("optimizer", "memory", "gain", "learning_rate"),
        names=_NAMES,
        note="The paper draws one pair of runs in which ALeRA ends above 80 % and SALeRA recovers; it does not say "
        "with which setting.",
    ),
    Table(
        "salera_fig2",
        PAPER,
        "Fig. 2",
        studies=(
            _study(
                "salera_fig2",
                "Fig. 2",
                ("salera_cifar10_m4b",),
                {name: {**_PRINTED_SETTINGS[name], **_RATES} for name in ("ag_adam", "alera", "salera")},
            ),
        ),
        statistics=(TEST_ERROR, TEST_LOSS, TRAINING_LOSS),
        rows=("optimizer",),
        best_of=("learning_rate",),
        names=_NAMES,
        note="The paper: first, second and third in test error; training error near 0 at the end for ALeRA and SALeRA.",
    ),
)
