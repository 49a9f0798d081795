"""CurveBall's tables: Table 2, figures 2, 3, 7 and 8."""

from __future__ import annotations

import dataclasses

from raycurv.recipes import search
from raycurv.recipes.papers.printing import grid
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import SECONDS, TRAINING_ERROR, TRAINING_LOSS, VALIDATION_ERROR, Statistic

PAPER = "CurveBall"
_POWERS: Axes = {"learning_rate": search.powers(-4, -1)}  # 10⁻ᵏ
_FIRST_ORDER: dict[str, Axes] = {"momentum": _POWERS, "adam": _POWERS}
_RESCALED: Axes = {"damping_interval": (5, None)}
_HE: Axes = {"learning_rate": (0.1,), "schedule": ("multi_step",)}  # He et al. 2016: tenths after 1/2 and 3/4
_WITH_ERROR: Axes = {"evaluate_training": (True,)}
_NAMES = {
    "curveball": "CurveBall", "momentum": "SGD", "adam": "Adam", "hessian_free": "Hessian-free", "kfac": "KFAC",
    "damping_interval=5": "λ rescaled", "damping_interval=None": "λ fixed",
    "cifar10_basic_cnn": "Basic", "cifar10_basic_cnn_bn": "Basic + BN", "cifar10_resnet18": "ResNet-18",
    "cifar10_resnet18_dropout": "ResNet-18, dropout 0.3", "imagenet100_curveball": "VGG-f",
    "imagenet_curveball": "VGG-f, ImageNet", "mnist_tanh_mlp": "MNIST MLP",
}  # fmt: skip
_LAST_ERROR = Statistic("training error, %", statistics.error(statistics.last("training_set/accuracy")), form="{:.2f}")
_MEDIAN_LOSS = Statistic("training loss", statistics.last("train/epoch_loss"), gather="median")
_MEDIAN_ERROR = dataclasses.replace(_LAST_ERROR, gather="median")


_TABLE_2 = """
                      | Basic       | Basic + BN | ResNet-18  | VGG-f       | ResNet-18, dropout 0.3
CurveBall, λ rescaled | 14.1 / 19.9 | 7.6 / 16.3 | 0.7 / 15.3 | 10.3 / 33.5 | / 13.5
CurveBall, λ fixed    | 15.3 / 19.3 | 9.4 / 15.8 | 1.3 / 16.1 | 12.7 / 33.8 |
SGD                   | 18.9 / 21.1 | 10.0 / 16.1 | 2.1 / 12.8 | 32.9 / 41.7 |
Adam                  | 15.7 / 19.7 | 9.6 / 16.1 | 1.4 / 14.0 | 13.2 / 35.9 |
"""


def _table2() -> dict[str, dict[str, str]]:
    """The paper's entries, training / validation, as one column each."""
    titles = (TRAINING_ERROR.title, VALIDATION_ERROR.title)
    return {
        row: {
            f"{column}, {title}": number.strip()
            for column, pair in entries.items()
            for title, number in zip(titles, pair.split("/"), strict=True)
            if number.strip()
        }
        for row, entries in grid(_TABLE_2).items()
    }


TABLES: tuple[Table, ...] = (
    Table(
        "curveball_table2", PAPER, "Table 2",
        studies=(
            Study(
                "curveball_table2", PAPER, "Table 2",
                ("cifar10_basic_cnn", "cifar10_basic_cnn_bn", "imagenet100_curveball"),
                {"curveball": _RESCALED, **_FIRST_ORDER}, _WITH_ERROR,
            ),
            Study(
                "curveball_table2_resnet", PAPER, "Table 2", ("cifar10_resnet18",),
                {"curveball": _RESCALED, "momentum": _HE, "adam": _POWERS}, _WITH_ERROR,
            ),
            Study(
                "curveball_table2_dropout", PAPER, "Table 2", ("cifar10_resnet18_dropout",),
                {"curveball": {"damping_interval": (5,)}}, _WITH_ERROR,
            ),
        ),
        statistics=(TRAINING_ERROR, VALIDATION_ERROR),
        rows=("optimizer", "damping_interval"),
        columns=("recipe", "statistic"),
        best_of=("learning_rate",),
        names=_NAMES,
        printed=_table2(),
        note="The rates of SGD and Adam are the best of 10⁻ᵏ, those of SGD on ResNet-18 its authors' schedule.",
    ),
    Table(
        "curveball_fig2", PAPER, "Fig. 2",
        studies=(
            Study(
                "curveball_fig2", PAPER, "Fig. 2",
                ("cifar10_basic_cnn", "cifar10_basic_cnn_bn", "imagenet100_curveball", "imagenet_curveball"),
                {"curveball": {}, **_FIRST_ORDER}, _WITH_ERROR,
            ),
            Study(
                "curveball_fig2_resnet", PAPER, "Fig. 2", ("cifar10_resnet18",),
                {"curveball": {}, "momentum": _HE, "adam": _POWERS}, _WITH_ERROR,
            ),
            Study(
                "curveball_fig2_mnist", PAPER, "Fig. 2", ("mnist_tanh_mlp",),
                {"curveball": {}, **_FIRST_ORDER, "kfac": {"learning_rate": search.powers(-3, 0)}}, _WITH_ERROR,
            ),
        ),
        statistics=(_LAST_ERROR, TRAINING_LOSS),
        rows=("recipe", "optimizer"),
        best_of=("learning_rate",),
        names=_NAMES,
        note="Training error at the end of the curves; the paper's best ones are in Table 2. It leaves the epochs of "
        "MNIST and ImageNet open.",
    ),
    Table(
        "curveball_fig3_random", PAPER, "Fig. 3 left",
        studies=(
            Study(
                "curveball_fig3_random", PAPER, "Fig. 3 left", ("cifar10_random_cnn",),
                {"curveball": {}, **_FIRST_ORDER}, _WITH_ERROR, {"architecture": tuple(range(50))},
            ),
        ),
        statistics=(_MEDIAN_LOSS, _MEDIAN_ERROR),
        rows=("optimizer", "learning_rate"),
        names=_NAMES,
        note="Median and quartiles over the 50 random networks, every rate for all of them. The paper draws the curves "
        "and prints no number: CurveBall has the lowest.",
    ),
    Table(
        "curveball_fig3_time", PAPER, "Fig. 3 right, 7",
        studies=(
            Study(
                "curveball_fig3_time", PAPER, "Fig. 3 right, 7", ("cifar10_basic_cnn",),
                {"curveball": {}, **_FIRST_ORDER, "hessian_free": {}}, _WITH_ERROR,
            ),
        ),
        statistics=(TRAINING_ERROR, TRAINING_LOSS, SECONDS),
        rows=("optimizer",),
        best_of=("learning_rate",),
        names=_NAMES,
        note="The paper: CurveBall is competitive in time, Hessian-free an order of magnitude slower. The column of "
        "seconds is of the fastest rate.",
    ),
    Table(
        "curveball_fig8", PAPER, "Fig. 8",
        studies=(
            Study(
                "curveball_fig8", PAPER, "Fig. 8", ("cifar10_basic_cnn", "cifar10_basic_cnn_bn"),
                {"curveball": {"momentum": (None, 1.0)}, **_FIRST_ORDER}, _WITH_ERROR,
            ),
        ),
        statistics=(TRAINING_ERROR, TRAINING_LOSS),
        rows=("recipe", "optimizer", "momentum"),
        best_of=("learning_rate",),
        names=_NAMES | {"momentum=None": "ρ found", "momentum=1": "ρ = 1"},
    ),
)  # fmt: skip
