"""NTLR (*A Newton-based trainable learning rate*, section 3): recipes, ablations, Table 1 and figures 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping

from raycurv.data import multi30k
from raycurv.models.mlp import mlp
from raycurv.models.resnet import resnet50
from raycurv.models.transformer import transformer
from raycurv.models.wide_resnet import wide_resnet
from raycurv.objective.losses import word_counts, word_cross_entropy
from raycurv.recipes import search
from raycurv.recipes.datasets import CIFAR, IMAGENET, MNIST, MULTI30K, data_component, photograph_settings
from raycurv.recipes.printed_table import parse_table
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import BEST_TEST_LOSS, LEARNING_RATE, TEST_ACCURACY, TRAINING_LOSS, Statistic
from raycurv.train.configuration import Component, RunConfig, Setting

PAPER = "NTLR"


@experiment(PAPER, "Fig. 1, 2", "MNIST", "MLP 1000", epochs=20, samples=MNIST, gflop=0.00159)
def ntlr_mnist_mlp(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """One hidden layer of 1000 units, with ReLU, which the paper does not name.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("ntlr-mnist-mlp"),
        model=Component.of(mlp, widths=size.sizes(1000), activation="relu"),
        data=data_component(data, size, MNIST, 128),
        optimizer="ntlr_sgd",
        batch_size=128,
        epochs=size.passes(20),
    )


@experiment(PAPER, "section 3", "CIFAR-10", "Wide-ResNet 16-4", epochs=200, samples=CIFAR, gflop=0.78)
def ntlr_cifar10_wide_resnet(data: str = "cifar10", depth: int = 16, widen: int = 4, scale: Scaling = 1.0) -> RunConfig:
    """A Wide-ResNet; epochs and L2 are those of its own paper, since NTLR's leaves them open.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        depth: 10, 16, 22, 28 or 40.
        widen: factor of the channels in the network's name.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    return _wide_resnet("ntlr-cifar10", Scale.of(scale), data, depth, widen)


@experiment(PAPER, "Fig. 3, Table 1", "CIFAR-100", "Wide-ResNet 16-4", epochs=200, samples=CIFAR, gflop=0.78)
def ntlr_cifar100_wide_resnet(
    data: str = "cifar100",
    depth: int = 16,
    widen: int = 4,
    scale: Scaling = 1.0,
    label_column: str = "fine_label",
) -> RunConfig:
    """As :func:`ntlr_cifar10_wide_resnet` on CIFAR-100.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        depth: 10, 16, 22, 28 or 40.
        widen: factor of the channels in the network's name.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        label_column: name of the shards' label column.
    """
    return _wide_resnet("ntlr-cifar100", Scale.of(scale), data, depth, widen, label_column=label_column)


def _wide_resnet(name: str, size: Scale, data: str, depth: int, widen: int, **settings: Setting) -> RunConfig:
    return RunConfig(
        name=size.named(name, f"wrn-{depth}-{widen}"),
        model=Component.of(wide_resnet, depth=depth, widen=widen, width=size.width),
        data=data_component(data, size, CIFAR, 128, settings={"augmentation": "crop_flip", **settings}),
        optimizer="ntlr_sgd",
        l2=5e-4,
        batch_size=128,
        epochs=size.passes(200),
    )


@experiment(PAPER, "Fig. 4", "ImageNet", "ResNet-50", epochs=80, samples=IMAGENET, gflop=8.18)
def ntlr_imagenet_resnet50(data: str = "imagenet", image_size: int = 224, scale: Scaling = 1.0) -> RunConfig:
    """ResNet-50, 80 epochs of mini-batches of 96.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        image_size: pixels of the square that the network sees.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("ntlr-imagenet-resnet50"),
        model=Component.of(resnet50, width=size.width),
        data=data_component(data, size, IMAGENET, 96, settings=photograph_settings(image_size)),
        optimizer="ntlr_sgd",
        l2=1e-4,
        batch_size=96,
        epochs=size.passes(80),
    )


@experiment(PAPER, "Fig. 5", "Multi30k de-en", "transformer 3+3, 8 heads", epochs=18, samples=MULTI30K, gflop=0.585)
def ntlr_multi30k_transformer(
    data: str = "multi30k", layers: int = 3, max_words: int = 20_000, scale: Scaling = 1.0
) -> RunConfig:
    """German to English, the network and epochs of the PyTorch tutorial that the paper takes its code from.

    The loss is the mean over the words of a batch, since every sentence counts by its words. Words are taken by a
    regular expression in place of the tutorial's language models.

    Args:
        data: folder of ``train.de.gz``, ``train.en.gz`` and the same for ``val``, or a name in RAYCURV_DATA.
        layers: number of layers of the encoder, and of the decoder.
        max_words: size of each vocabulary; every word of Multi30k by default.
        scale: fraction of data and epochs (one number), or of data, epochs and width; vocabularies follow the width.
    """
    size = Scale.of(scale)
    (vocabulary,) = size.sizes(max_words)
    units, hidden = size.sizes(512, 512, multiple=16)
    return RunConfig(
        name=size.named("ntlr-multi30k-transformer", layers != 3 and layers),
        model=Component.of(transformer, source_words=vocabulary, size=units, hidden=hidden, layers=layers),
        data=data_component(data, size, MULTI30K, 128, reader=multi30k, settings={"max_words": vocabulary}),
        optimizer="ntlr_adam",
        loss=f"{word_cross_entropy.__module__}:{word_cross_entropy.__name__}",
        weights=f"{word_counts.__module__}:{word_counts.__name__}",
        batch_size=128,
        epochs=size.passes(18),
    )


# --- Ablations and tables ---------------------------------------------------------------------------------------------

_PORTIONS, _DAMPINGS = (0.1, 0.2, 0.33, 0.5, 1.0), (0.1, 0.2, 0.33, 0.5)  # p and γ
_NESTED: Axes = {"portion": _PORTIONS, "damping": _DAMPINGS}
_BATCHES: Axes = {"batch_size": (64, 128, 256, 512)}
_RATES: Axes = {"learning_rate": tuple(10.0**-i for i in range(1, 6))}
_NINE_RATES: Axes = {"learning_rate": tuple(10.0**-i for i in range(1, 10))}
_THREE_RATES: Axes = {"learning_rate": (1e-1, 1e-2, 1e-3)}
_MILESTONES: Axes = {"learning_rate": (0.1,), "schedule": ("multi_step",)}
_NAMES = {
    "ntlr_sgd": "TLR",
    "ntlr_adam": "TLR on Adam",
    "sgd": "SGD",
    "adam": "Adam",
    "sps": "SPS",
    "sls": "SLS",
    "hypergradient_additive": "additive",
    "hypergradient_multiplicative": "multiplicative",
    **{f"learning_rate={10.0**-i:g}": f"α₀ = 1e-{i}" for i in range(10)},
    **{f"meta_rate={10.0**-i:g}": f"η = 1e-{i}" for i in range(1, 6)},
}
_TO_90 = Statistic("epochs to 90 % of its best accuracy", statistics.epochs_to_share("test/accuracy", 0.9))


def _study(name: str, shows: str, recipe: str, optimizers: Mapping[str, Axes], run: Axes | None = None) -> Study:
    return Study(name, PAPER, shows, (recipe,), optimizers, run or {})


_WRN, _MLP, _TRANSFORMER = "ntlr_cifar100_wide_resnet", "ntlr_mnist_mlp", "ntlr_multi30k_transformer"
_PORTION_DAMPING = _study("ntlr_portion_damping", "Fig. 1", _MLP, {"ntlr_sgd": _NESTED})
_INITIAL_RATES = _study(
    "ntlr_initial_rates", "Fig. 2", _MLP, {"ntlr_sgd": _NINE_RATES, "sgd": {"learning_rate": (0.1,)}}
)
_SEARCH = _study("ntlr_search", "section 3", _MLP, {"ntlr_sgd": {**_NESTED, **_RATES}}, _BATCHES)
_HYPERGRADIENT = _study(
    "ntlr_hypergradient",
    "Table 1",
    _WRN,
    {
        "hypergradient_additive": {**_THREE_RATES, "meta_rate": (1e-1, 1e-2)},
        "hypergradient_multiplicative": {**_THREE_RATES, "meta_rate": (1e-4, 1e-5)},
        "ntlr_sgd": _THREE_RATES,
    },
    _BATCHES,
)
_OPTIMIZERS = _study(
    "ntlr_optimizers", "Fig. 3", _WRN, {"ntlr_sgd": {}, "sgd": _MILESTONES, "adam": {}, "sps": {}, "sls": {}}
)
_IMAGENET = _study(
    "ntlr_imagenet", "Fig. 4", "ntlr_imagenet_resnet50", {"ntlr_sgd": {}, "sgd": _MILESTONES, "adam": {}, "sps": {}}
)
_TRANSLATION = _study(
    "ntlr_translation", "Fig. 5", _TRANSFORMER, {"ntlr_sgd": {}, "ntlr_adam": {}, "sgd": {}, "adam": {}}
)
_WIDE_RESNETS = Study(
    "ntlr_wide_resnets",
    PAPER,
    "section 3",
    ("ntlr_cifar10_wide_resnet", "ntlr_cifar100_wide_resnet"),
    {"ntlr_sgd": _THREE_RATES, "sgd": _MILESTONES},
    _BATCHES,
    options={"depth": (10, 16, 28), "widen": (1, 2, 4)},
)
STUDIES = (
    _PORTION_DAMPING,
    _INITIAL_RATES,
    _SEARCH,
    _HYPERGRADIENT,
    _OPTIMIZERS,
    _IMAGENET,
    _TRANSLATION,
    _WIDE_RESNETS,
)

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
        "ntlr_table1",
        PAPER,
        "Table 1",
        studies=(_HYPERGRADIENT,),
        statistics=(TRAINING_LOSS,),
        rows=("learning_rate",),
        columns=("optimizer", "meta_rate"),
        names=_NAMES,
        printed=parse_table(_TABLE_1),
        note="Mean ± deviation of the training loss over batch sizes 64 to 512, CIFAR-100 and Wide-ResNet 16-4.",
    ),
    Table(
        "ntlr_sensitivity",
        PAPER,
        "section 3",
        studies=(
            _study("ntlr_sensitivity", "section 3", _MLP, {"sgd": _RATES, "ntlr_sgd": _RATES}, {"batch_size": (128,)}),
        ),
        statistics=(TRAINING_LOSS,),
        rows=("optimizer",),
        names=_NAMES,
        printed={"SGD": {"training loss": "0.661 ± 0.774"}, "TLR": {"training loss": "0.095 ± 0.054"}},
        note="Mean ± deviation over initial rates 1e-1 to 1e-5, MNIST and MLP, batches of 128.",
    ),
    Table(
        "ntlr_search",
        PAPER,
        "section 3",
        studies=(_SEARCH,),
        statistics=(TRAINING_LOSS,),
        rows=("portion",),
        columns=("damping",),
        names={f"portion={p:g}": f"p = {p:g}" for p in _PORTIONS} | {f"damping={g:g}": f"γ = {g:g}" for g in _DAMPINGS},
        note="Over initial rates 1e-1 to 1e-5 and batch sizes 64 to 512. The paper takes p = 0.2, γ = 0.33.",
    ),
    Table(
        "ntlr_fig1",
        PAPER,
        "Fig. 1",
        studies=(_PORTION_DAMPING,),
        statistics=(TRAINING_LOSS, LEARNING_RATE),
        rows=("portion", "damping"),
        note="The paper draws the rates for γ = 0.2 over p, and for p = 0.33 over γ.",
    ),
    Table(
        "ntlr_fig2",
        PAPER,
        "Fig. 2",
        studies=(_INITIAL_RATES,),
        statistics=(TRAINING_LOSS, TEST_ACCURACY, LEARNING_RATE),
        rows=("optimizer", "learning_rate"),
        names=_NAMES,
        printed=parse_table(_FIG_2),
        note="The text's numbers are of the largest rate; its exponent is lost, and taken to be −1.",
    ),
    Table(
        "ntlr_fig3",
        PAPER,
        "Fig. 3",
        studies=(_OPTIMIZERS,),
        statistics=(TRAINING_LOSS, TEST_ACCURACY),
        rows=("optimizer",),
        names=_NAMES | {"sgd": "sgd-mstep"},
        note="CIFAR-100, Wide-ResNet 16-4, batches of 128. The paper: sgd-mstep best, TLR on par with it.",
    ),
    Table(
        "ntlr_fig4",
        PAPER,
        "Fig. 4",
        studies=(_IMAGENET,),
        statistics=(TRAINING_LOSS, TEST_ACCURACY, _TO_90),
        rows=("optimizer",),
        names=_NAMES | {"sgd": "sgd-mstep"},
        printed={"TLR": {_TO_90.title: "≈ 30"}},
    ),
    Table(
        "ntlr_fig5",
        PAPER,
        "Fig. 5",
        studies=(
            _study(
                "ntlr_fig5",
                "Fig. 5",
                _TRANSFORMER,
                {
                    "ntlr_sgd": {},
                    "ntlr_adam": {},
                    "sgd": {"learning_rate": search.powers(-3, 0)},
                    "adam": {"learning_rate": search.powers(-5, -2)},
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
        "ntlr_wide_resnets",
        PAPER,
        "section 3",
        studies=(_WIDE_RESNETS,),
        statistics=(TRAINING_LOSS, TEST_ACCURACY),
        rows=("recipe", "depth", "widen", "optimizer", "learning_rate"),
        names=_NAMES | {"sgd": "sgd-mstep", "ntlr_cifar10_wide_resnet": "CIFAR-10", _WRN: "CIFAR-100"},
        note="Mean ± deviation over batch sizes 64 to 512. The paper names no depths and widths; these are ours.",
    ),
)
