"""LLR (*Learning the learning rate for gradient descent by gradient descent*, section 4): Fig. 1 to 14.

Recipes, ablations, and a table for each figure: where its curves end, and the numbers in its text. Initial rates are
the paper's for the second-order method. It leaves numbers of epochs open; here they are about what its figures show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raycurv.data import csv_table
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.resnet import resnet18
from raycurv.recipes.datasets import BOSTON, CIFAR, MNIST, data_component
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import (
    BEST_TEST_ACCURACY,
    BEST_TRAINING_LOSS,
    LEARNING_RATE,
    TEST_LOSS,
    TRAINING_ACCURACY,
    TRAINING_LOSS,
    Statistic,
)
from raycurv.train.configuration import Component, RunConfig, Setting

PAPER = "LLR"
SECOND_ORDER = "llr_second_order"


@experiment(PAPER, "Fig. 1, 2", "Boston housing", "linear regression", epochs=200, samples=BOSTON, gflop=2.6e-8)
def llr_boston(data: str = "boston_housing.csv", standardise: bool = True, scale: Scaling = 1.0) -> RunConfig:
    """Linear regression on 400 rows in one batch, 106 rows held out.

    The paper's figures are of raw features (``standardise=False``), whose rates are five powers of ten apart from those
    of standardised ones. The loss is the mean of the squared errors: the paper prints their sum, on which gradient
    descent from its rate 1e-6 diverges (it must be below 8e-9).

    Args:
        data: the CSV file (OpenML's, or any with a column ``medv``), or its name in RAYCURV_DATA.
        standardise: whether features and target are standardised; raw ones are in double precision.
        scale: fraction of data and epochs; a linear model has no width.
    """
    size = Scale.of(scale)
    settings: dict[str, Setting] = {"target": "medv", "held_out": 106}
    if not standardise:
        settings["standardise"] = False
    return RunConfig(
        name=size.named("llr-boston", not standardise and "raw"),
        model=Component.of(mlp, num_classes=1, widths=()),
        data=data_component(data, size, BOSTON, 1, reader=csv_table, settings=settings),
        precision="fp32" if standardise else "fp64",
        optimizer=SECOND_ORDER,
        optimizer_settings={"learning_rate": 0.01},
        loss="squared_error",
        batch_size=size.rows(BOSTON, 1) or BOSTON,
        epochs=size.passes(200),
        evaluate_every=10,
    )


@experiment(PAPER, "Fig. 3, 4", "MNIST", "logistic regression", epochs=20, samples=MNIST, gflop=1.57e-5)
def llr_mnist_logistic(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """Multi-class logistic regression on pixels in [0, 1], where the paper's rate of 0.4 is reached.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs; a linear model has no width.
    """
    size = Scale.of(scale)
    model = Component.of(mlp, widths=())
    pixels = data_component(data, size, MNIST, 64, settings={"mean": (0.0,), "std": (1.0,)})
    return _run(size.named("llr-mnist-logistic"), model, pixels, 0.01, 64, size.passes(20))


@experiment(PAPER, "Fig. 5, 7", "CIFAR-10", "LeNet, dropout", epochs=50, samples=CIFAR, gflop=0.0013)
def llr_cifar10_lenet(data: str = "cifar10", dropout: float = 0.5, scale: Scaling = 1.0) -> RunConfig:
    """LeNet with dropout after the first two fully connected layers, mini-batches of 32.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        dropout: dropout rate, which the paper does not give.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    sizes: dict[str, Setting] = {"channels": size.sizes(6, 16), "widths": size.sizes(120, 84)}
    model = Component.of(lenet, dropout=dropout, **sizes)
    return _run(
        size.named("llr-cifar10-lenet"), model, data_component(data, size, CIFAR, 32), 0.01, 32, size.passes(50)
    )


@experiment(PAPER, "Fig. 6-9, 11-14", "CIFAR-10", "ResNet-18, dropout", epochs=50, samples=CIFAR, gflop=1.11)
def llr_cifar10_resnet18(
    data: str = "cifar10", dropout: float = 0.5, rate: float = 0.1, scale: Scaling = 1.0
) -> RunConfig:
    """ResNet-18 with two layers of dropout, in front of the last stage and of the classifier; mini-batches of 256.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        dropout: dropout rate; the paper gives neither the rate nor the places of its two layers.
        rate: the initial learning rate: 0.1, 0.05 (figure 11) or 0.01 (figure 8).
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    model = Component.of(resnet18, dropout=dropout, dropout_layers=2, width=size.width)
    name = size.named("llr-cifar10-resnet18", rate != 0.1 and f"{rate:g}")
    return _run(name, model, data_component(data, size, CIFAR, 256), rate, 256, size.passes(50))


@experiment(PAPER, "Fig. 10", "CIFAR-100", "ResNet-18, dropout", epochs=50, samples=CIFAR, gflop=1.11)
def llr_cifar100_resnet18(
    data: str = "cifar100", dropout: float = 0.5, scale: Scaling = 1.0, label_column: str = "fine_label"
) -> RunConfig:
    """As :func:`llr_cifar10_resnet18` on CIFAR-100, from the rate 0.02.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        dropout: dropout rate.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        label_column: name of the shards' label column.
    """
    size = Scale.of(scale)
    model = Component.of(resnet18, dropout=dropout, dropout_layers=2, width=size.width)
    images = data_component(data, size, CIFAR, 256, settings={"label_column": label_column})
    return _run(size.named("llr-cifar100-resnet18"), model, images, 0.02, 256, size.passes(50))


def _run(name: str, model: Component, data: Component, rate: float, batch_size: int, epochs: int) -> RunConfig:
    return RunConfig(
        name,
        model,
        data,
        optimizer=SECOND_ORDER,
        optimizer_settings={"learning_rate": rate},
        batch_size=batch_size,
        epochs=epochs,
        evaluate_training=True,
    )


# --- Ablations and tables ---------------------------------------------------------------------------------------------

_NAMES = {
    "sgd": "basic",
    "llr_first_order": "first order",
    "llr_second_order": "second order",
    "adam": "Adam",
    "momentum=0.9": "β = 0.9",
    "on_validation=True": "on a validation batch",
    "meta_rate=1e-09": "α = 1e-9",
    "meta_rate=1e-16": "α = 1e-16",
    **{f"difference={10.0**-n:g}": f"ε = 1e-{n}" for n in range(2, 8)},
}
_SUMMARY = (TRAINING_LOSS, TRAINING_ACCURACY, TEST_LOSS, BEST_TEST_ACCURACY, LEARNING_RATE)
_TO_59 = Statistic("epochs to 59 %", statistics.epochs_to("test/accuracy", 0.59, above=True))
_TO_PLATEAU = Statistic("epochs to 99 % of its best accuracy", statistics.epochs_to_share("test/accuracy", 0.99))
_RESNET = "llr_cifar10_resnet18"
_ALL = ("llr_boston", "llr_mnist_logistic", "llr_cifar10_lenet", _RESNET, "llr_cifar100_resnet18")
_RATES: Axes = {"learning_rate": (0.1, 0.05, 0.01)}


def _at(rate: float, *optimizers: str) -> dict[str, Axes]:
    return {name: {"learning_rate": (rate,)} for name in optimizers}


_DIFFERENCES: dict[str, Axes] = {
    SECOND_ORDER: {"derivatives": ("differences",), "difference": tuple(10.0**-n for n in range(7, 1, -1))}
}
_ORDERS: dict[str, Axes] = {"sgd": {}, "llr_first_order": {}, SECOND_ORDER: {}}
_MOMENTUM: dict[str, Axes] = {SECOND_ORDER: {"learning_rate": (0.1,), "momentum": (0.9,)}}
STUDIES = (
    Study("llr_orders", PAPER, "Fig. 1-10", _ALL, _ORDERS),
    Study("llr_initial_rates", PAPER, "Fig. 6, 8, 11", (_RESNET,), {SECOND_ORDER: _RATES, "sgd": _RATES}),
    Study("llr_momentum", PAPER, "Fig. 12", (_RESNET,), {**_MOMENTUM, **_at(0.1, "sgd")}),
    Study("llr_difference", PAPER, "section 6.1", ("llr_mnist_logistic", "llr_cifar10_lenet"), _DIFFERENCES),
)


def _figure(
    name: str,
    shows: str,
    recipe: str,
    optimizers: Mapping[str, Axes],
    *,
    reference: Mapping[str, Axes] | None = None,
    run: Axes | None = None,
    options: Axes | None = None,
    setting: tuple[str, ...] = ("momentum", "on_validation"),
    statistics: Sequence[Statistic] = _SUMMARY,
    printed: Mapping[str, Mapping[str, str]] | None = None,
    note: str = "",
) -> Table:
    """A figure: runs on one recipe, and a reference that lacks what `run` changes; `setting` labels rows too."""
    main = Study(name, PAPER, shows, (recipe,), optimizers, run or {}, options=options or {})
    others = (Study(f"{name}, reference", PAPER, shows, (recipe,), reference),) if reference else ()
    return Table(
        f"llr_{name}",
        PAPER,
        shows,
        studies=(main, *others),
        statistics=tuple(statistics),
        rows=("optimizer", *setting),
        names=_NAMES,
        printed=printed or {},
        note=note,
    )


TABLES = (
    _figure(
        "difference",
        "section 6.1",
        "llr_mnist_logistic",
        _DIFFERENCES,
        setting=("difference",),
        note="Rates by finite differences of ε, with the paper's damping δ/(4ε²). The paper takes 1e-5: with a smaller "
        "ε the rate misses changes of the loss, with a larger one it oscillates and training may diverge.",
    ),
    _figure(
        "fig1",
        "Fig. 1, 2",
        "llr_boston",
        {
            **_at(1e-6, "sgd"),
            "llr_first_order": {"learning_rate": (1e-7,), "meta_rate": (1e-9, 1e-16)},
            **_at(0.01, SECOND_ORDER),
        },
        options={"standardise": (False,)},
        setting=("meta_rate",),
        statistics=(TRAINING_LOSS, BEST_TRAINING_LOSS, TEST_LOSS, LEARNING_RATE),
        note="The paper: both orders reach lower losses than the basic method, and the rate of the second has extreme "
        "peaks. Raw features and the paper's rates. Its α = 1e-9 diverges on the mean of the squared errors, since "
        "‖g‖² starts at 1e8; 1e-16 is the largest power of ten that does not on any of four seeds.",
    ),
    _figure(
        "fig3",
        "Fig. 3, 4",
        "llr_mnist_logistic",
        {**_at(0.01, "sgd", SECOND_ORDER), "llr_first_order": {"learning_rate": (0.01,), "meta_rate": (1e-6,)}},
        printed={"second order": {LEARNING_RATE.title: "around 0.4"}},
    ),
    _figure(
        "fig5",
        "Fig. 5, 7",
        "llr_cifar10_lenet",
        _at(0.01, "sgd", SECOND_ORDER),
        statistics=(*_SUMMARY, _TO_59),
        printed={
            "basic": {BEST_TEST_ACCURACY.title: "59", _TO_59.title: "around 35"},
            "second order": {BEST_TEST_ACCURACY.title: "59", _TO_59.title: "less than 10"},
        },
    ),
    _figure(
        "fig6",
        "Fig. 6, 7",
        _RESNET,
        _at(0.1, "sgd", SECOND_ORDER),
        statistics=(*_SUMMARY, _TO_PLATEAU),
        printed={
            "basic": {BEST_TEST_ACCURACY.title: "71", _TO_PLATEAU.title: "40 (plateau)"},
            "second order": {BEST_TEST_ACCURACY.title: "74.4", _TO_PLATEAU.title: "around 15 (plateau)"},
        },
    ),
    _figure(
        "fig8",
        "Fig. 8",
        _RESNET,
        _at(0.01, "sgd", SECOND_ORDER),
        printed={
            "second order": {
                LEARNING_RATE.title: "around 0.05",
                BEST_TEST_ACCURACY.title: "10 to 15 points above basic",
            }
        },
    ),
    _figure("fig9", "Fig. 9", _RESNET, _at(0.1, "sgd", "llr_first_order"), note="The paper: not much of a gain."),
    _figure("fig10", "Fig. 10", "llr_cifar100_resnet18", _at(0.02, "sgd", SECOND_ORDER)),
    _figure("fig11", "Fig. 11", _RESNET, _at(0.05, "sgd", SECOND_ORDER)),
    _figure(
        "fig12",
        "Fig. 12",
        _RESNET,
        _MOMENTUM,
        reference=_at(0.1, "sgd", SECOND_ORDER),
        note="The paper: momentum on the rate brings no particular improvement.",
    ),
    _figure(
        "fig13",
        "Fig. 13",
        _RESNET,
        {SECOND_ORDER: {"learning_rate": (0.1,), "on_validation": (True,)}},
        run={"validation": (0.1,)},
        reference=_at(0.1, "sgd", SECOND_ORDER),
        note="The paper: loss and accuracy in training improve more slowly; less overfitting is not shown.",
    ),
    _figure(
        "fig14",
        "Fig. 14",
        _RESNET,
        _at(0.1, SECOND_ORDER, "adam"),
        note="The paper: ahead of Adam in the first epochs.",
    ),
)
