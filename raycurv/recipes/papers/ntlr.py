"""NTLR's Table 1, figures 1 to 5, and the numbers of its section 3."""

from __future__ import annotations

from raycurv.recipes import search, studies
from raycurv.recipes.papers.printing import grid
from raycurv.recipes.study import Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import BEST_TEST_LOSS, LEARNING_RATE, TEST_ACCURACY, TRAINING_LOSS, Statistic

PAPER = "NTLR"
_NAMES = {
    "ntlr_sgd": "TLR", "ntlr_adam": "TLR on Adam", "sgd": "SGD", "adam": "Adam", "sps": "SPS", "sls": "SLS",
    "hypergradient_additive": "additive", "hypergradient_multiplicative": "multiplicative",
    **{f"learning_rate={10.0**-i:g}": f"α₀ = 1e-{i}" for i in range(10)},
    **{f"meta_rate={10.0**-i:g}": f"η = 1e-{i}" for i in range(1, 6)},
}  # fmt: skip
_RATES = {"learning_rate": tuple(10.0**-i for i in range(1, 6))}
_MOST = Statistic("epochs to 90 % of its best accuracy", statistics.epochs_to_share("test/accuracy", 0.9))

_TABLE_1 = """
          | additive, η = 1e-1 | additive, η = 1e-2 | multiplicative, η = 1e-4 | multiplicative, η = 1e-5 | TLR
α₀ = 1e-1 | 0.48 ± 0.07        | 0.38 ± 0.26        | 0.57 ± 0.08              | 0.10 ± 0.03              | 0.09 ± 0.01
α₀ = 1e-2 | 0.47 ± 0.06        | 0.59 ± 0.03        | 1.06 ± 0.14              | 0.62 ± 0.24              | 0.16 ± 0.02
α₀ = 1e-3 | 0.36 ± 0.07        | 0.49 ± 0.22        | 1.61 ± 0.14              | 2.02 ± 0.71              | 0.18 ± 0.03
"""
_FIG_2 = """
               | training loss | test accuracy, %
TLR, α₀ = 1e-1 | 0.095         | 96.0
SGD, α₀ = 1e-1 | 0.326         | 92.3
"""

TABLES = (
    Table(
        "ntlr_table1", PAPER, "Table 1",
        studies=(studies.get("ntlr_hypergradient"),),
        statistics=(TRAINING_LOSS,),
        rows=("learning_rate",),
        columns=("optimizer", "meta_rate"),
        names=_NAMES,
        printed=grid(_TABLE_1),
        note="Mean ± deviation of the training loss over batch sizes 64 to 512, CIFAR-100 and Wide-ResNet 16-4.",
    ),
    Table(
        "ntlr_sensitivity", PAPER, "section 3",
        studies=(
            Study(
                "ntlr_sensitivity", PAPER, "section 3", ("ntlr_mnist_mlp",),
                {"sgd": _RATES, "ntlr_sgd": _RATES}, {"batch_size": (128,)},
            ),
        ),
        statistics=(TRAINING_LOSS,),
        rows=("optimizer",),
        names=_NAMES,
        printed={"SGD": {"training loss": "0.661 ± 0.774"}, "TLR": {"training loss": "0.095 ± 0.054"}},
        note="Mean ± deviation over initial rates 1e-1 to 1e-5, MNIST and MLP, batches of 128.",
    ),
    Table(
        "ntlr_search", PAPER, "section 3",
        studies=(studies.get("ntlr_search"),),
        statistics=(TRAINING_LOSS,),
        rows=("portion",),
        columns=("damping",),
        names={f"portion={p:g}": f"p = {p:g}" for p in (0.1, 0.2, 0.33, 0.5, 1.0)}
        | {f"damping={g:g}": f"γ = {g:g}" for g in (0.1, 0.2, 0.33, 0.5)},
        note="Over initial rates 1e-1 to 1e-5 and batch sizes 64 to 512. The paper takes p = 0.2, γ = 0.33.",
    ),
    Table(
        "ntlr_fig1", PAPER, "Fig. 1",
        studies=(studies.get("ntlr_portion_damping"),),
        statistics=(TRAINING_LOSS, LEARNING_RATE),
        rows=("portion", "damping"),
        note="The paper draws the rates for γ = 0.2 over p, and for p = 0.33 over γ.",
    ),
    Table(
        "ntlr_fig2", PAPER, "Fig. 2",
        studies=(studies.get("ntlr_initial_rates"),),
        statistics=(TRAINING_LOSS, TEST_ACCURACY, LEARNING_RATE),
        rows=("optimizer", "learning_rate"),
        names=_NAMES,
        printed=grid(_FIG_2),
        note="The text's numbers are of the largest rate; its exponent is lost, and taken to be −1.",
    ),
    Table(
        "ntlr_fig3", PAPER, "Fig. 3",
        studies=(studies.get("ntlr_optimizers"),),
        statistics=(TRAINING_LOSS, TEST_ACCURACY),
        rows=("optimizer",),
        names=_NAMES | {"sgd": "sgd-mstep"},
        note="CIFAR-100, Wide-ResNet 16-4, batches of 128. The paper: sgd-mstep best, TLR on par with it.",
    ),
    Table(
        "ntlr_fig4", PAPER, "Fig. 4",
        studies=(studies.get("ntlr_imagenet"),),
        statistics=(TRAINING_LOSS, TEST_ACCURACY, _MOST),
        rows=("optimizer",),
        names=_NAMES | {"sgd": "sgd-mstep"},
        printed={"TLR": {_MOST.title: "≈ 30"}},
    ),
    Table(
        "ntlr_fig5", PAPER, "Fig. 5",
        studies=(
            Study(
                "ntlr_fig5", PAPER, "Fig. 5", ("ntlr_multi30k_transformer",),
                {
                    "ntlr_sgd": {}, "ntlr_adam": {},
                    "sgd": {"learning_rate": search.powers(-3, 0)}, "adam": {"learning_rate": search.powers(-5, -2)},
                },
            ),
        ),
        statistics=(TRAINING_LOSS, BEST_TEST_LOSS),
        rows=("optimizer",),
        best_of=("learning_rate",),
        names=_NAMES | {"ntlr_sgd": "TLR on SGD"},
        note="Rates of SGD and Adam are the best of a grid, as in the paper.",
    ),
    Table(
        "ntlr_wide_resnets", PAPER, "section 3",
        studies=(studies.get("ntlr_wide_resnets"),),
        statistics=(TRAINING_LOSS, TEST_ACCURACY),
        rows=("recipe", "learning_rate"),
        names=_NAMES,
    ),
)  # fmt: skip
