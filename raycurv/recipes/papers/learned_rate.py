"""The figures of *Learning the learning rate*: what its curves end at, and the numbers that its text gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import BEST_TEST_ACCURACY, LEARNING_RATE, TEST_LOSS, TRAINING_LOSS, Statistic

PAPER = "LLR"
_NAMES = {
    "sgd": "basic", "llr_first_order": "first order", "llr_second_order": "second order", "adam": "Adam",
    "momentum=0.9": "β = 0.9", "on_validation=True": "on a validation batch",
}  # fmt: skip
_SUMMARY = (TRAINING_LOSS, TEST_LOSS, BEST_TEST_ACCURACY, LEARNING_RATE)
_TO_59 = Statistic("epochs to 59 %", statistics.epochs_to("test/accuracy", 0.59, above=True))
_TO_PLATEAU = Statistic("epochs to 99 % of its best accuracy", statistics.epochs_to_share("test/accuracy", 0.99))
_RESNET = "llr_cifar10_resnet18"


def _at(rate: float, *optimizers: str) -> dict[str, Axes]:
    return {name: {"learning_rate": (rate,)} for name in optimizers}


def _figure(
    name: str, shows: str, recipe: str, optimizers: Mapping[str, Axes], *, reference: Mapping[str, Axes] | None = None,
    run: Axes | None = None, statistics: Sequence[Statistic] = _SUMMARY,
    printed: Mapping[str, Mapping[str, str]] | None = None, note: str = "",
) -> Table:  # fmt: skip
    """A figure: runs on one recipe, and a reference that lacks what `run` changes."""
    main = Study(name, PAPER, shows, (recipe,), optimizers, run or {})
    others = (Study(f"{name}, reference", PAPER, shows, (recipe,), reference),) if reference else ()
    return Table(
        f"llr_{name}", PAPER, shows, (main, *others), tuple(statistics), ("optimizer", "momentum", "on_validation"),
        names=_NAMES, printed=printed or {}, note=note,
    )  # fmt: skip


TABLES = (
    _figure(
        "fig1", "Fig. 1, 2", "llr_boston", {**_at(0.1, "sgd", "llr_second_order"), "llr_first_order": {}},
        statistics=(TRAINING_LOSS, TEST_LOSS, LEARNING_RATE),
        note="The paper: both orders reach lower losses than the basic method. Its rates are of raw features.",
    ),
    _figure(
        "fig3", "Fig. 3, 4", "llr_mnist_logistic",
        {**_at(0.01, "sgd", "llr_second_order"), "llr_first_order": {"learning_rate": (0.01,), "meta_rate": (1e-6,)}},
        printed={"second order": {LEARNING_RATE.title: "around 0.4"}},
    ),
    _figure(
        "fig5", "Fig. 5, 7", "llr_cifar10_lenet", _at(0.01, "sgd", "llr_second_order"), statistics=(*_SUMMARY, _TO_59),
        printed={
            "basic": {BEST_TEST_ACCURACY.title: "59", _TO_59.title: "around 35"},
            "second order": {BEST_TEST_ACCURACY.title: "59", _TO_59.title: "less than 10"},
        },
    ),
    _figure(
        "fig6", "Fig. 6, 7", _RESNET, _at(0.1, "sgd", "llr_second_order"), statistics=(*_SUMMARY, _TO_PLATEAU),
        printed={
            "basic": {BEST_TEST_ACCURACY.title: "71", _TO_PLATEAU.title: "40 (plateau)"},
            "second order": {BEST_TEST_ACCURACY.title: "74.4", _TO_PLATEAU.title: "around 15 (plateau)"},
        },
    ),
    _figure(
        "fig8", "Fig. 8", _RESNET, _at(0.01, "sgd", "llr_second_order"),
        printed={"second order": {
            LEARNING_RATE.title: "around 0.05", BEST_TEST_ACCURACY.title: "10 to 15 points above basic",
        }},
    ),
    _figure("fig9", "Fig. 9", _RESNET, _at(0.1, "sgd", "llr_first_order"), note="The paper: not much of a gain."),
    _figure("fig10", "Fig. 10", "llr_cifar100_resnet18", _at(0.02, "sgd", "llr_second_order")),
    _figure("fig11", "Fig. 11", _RESNET, _at(0.05, "sgd", "llr_second_order")),
    _figure(
        "fig12", "Fig. 12", _RESNET, {"llr_second_order": {"learning_rate": (0.1,), "momentum": (0.9,)}},
        reference=_at(0.1, "sgd", "llr_second_order"),
        note="The paper: momentum on the rate brings no particular improvement.",
    ),
    _figure(
        "fig13", "Fig. 13", _RESNET, {"llr_second_order": {"learning_rate": (0.1,), "on_validation": (True,)}},
        run={"validation": (0.1,)}, reference=_at(0.1, "sgd", "llr_second_order"),
        note="The paper: loss and accuracy in training improve more slowly; less overfitting is not shown.",
    ),
    _figure(
        "fig14", "Fig. 14", _RESNET, _at(0.1, "llr_second_order", "adam"),
        note="The paper: ahead of Adam in the first epochs.",
    ),
)  # fmt: skip
