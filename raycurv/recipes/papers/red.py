"""RED (*rescaled exponential decay*): recipes, ablations and tables of section 4 and appendices B and C.

``--optimizer`` chooses between red_sgd, red_rmsprop, their momentum and annealed forms and the baselines. A curve of
the paper is the mean of three seeds; no numbers are printed beside the curves. Baselines are searched as in appendix B:
τ₀ ∈ {1, 5}·10ⁿ with a decay per epoch, by the training loss after 20 % of the epochs. The paper's standard RMSProp is
`rmsprop_bias_corrected`, its Algorithm 3 with r = 1.

Section 4 displays losses with the L2 term. A run reports losses without it, and the term beside them
(``train/epoch_loss`` and ``train/epoch_l2_term``, ``test/loss`` and ``test/l2_term``): the tables add both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from raycurv.arguments import require
from raycurv.data import reconstructions
from raycurv.models.autoencoder import autoencoder
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.vgg import vgg
from raycurv.objective.losses import mean_squared_error
from raycurv.recipes import search
from raycurv.recipes.datasets import CIFAR, MNIST, data_component
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import TEST_ACCURACY, TEST_LOSS_WITH_L2, TRAINING_LOSS_WITH_L2, Statistic
from raycurv.train.configuration import Component, RunConfig

PAPER = "RED"
SMOOTH = "softplus5"  # Softplus with β = 5
L2 = 1e-7
BATCH = 256
Reduction = Literal["sum", "mean"]


def _l2_part(l2: float) -> str:
    return "" if l2 == L2 else f"l2-{l2:g}"


@experiment(PAPER, "Fig. 1, 6-8", "MNIST", "dense LeNet 300-100, tanh", epochs=200, samples=MNIST, gflop=0.000532)
def red_mnist_lenet(
    data: str = "mnist", scale: Scaling = 1.0, l2: float = L2, activation: str = "tanh", dense: bool = True
) -> RunConfig:
    """The dense LeNet of Table 3, 784-300-100-10 with tanh.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        l2: factor of ½‖Θ‖².
        activation: activation after every hidden layer.
        dense: False takes the convolutional LeNet-5 instead.
    """
    size = Scale.of(scale)
    name = size.named("red-mnist-lenet", not dense and "conv", activation != "tanh" and activation, _l2_part(l2))
    if dense:
        model = Component.of(mlp, widths=size.sizes(300, 100), activation=activation)
    else:
        sizes = {"channels": size.sizes(6, 16), "widths": size.sizes(120, 84)}
        model = Component.of(lenet, activation=activation, **sizes)
    images = data_component(data, size, MNIST, BATCH)
    return _run(name, model, images, l2, size.passes(200))


@experiment(PAPER, "Fig. 8", "MNIST", "dense LeNet, L2 1e-4", epochs=200, samples=MNIST, gflop=0.000532)
def red_mnist_lenet_l2(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_mnist_lenet` with the stronger L2 term of appendix C.2."""
    return red_mnist_lenet(data, scale, l2=1e-4)


@experiment(PAPER, "Table 3", "MNIST", "LeNet-5, tanh", epochs=200, samples=MNIST, gflop=0.000563)
def red_mnist_lenet5(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_mnist_lenet` with the convolutional network of LeCun et al. (1998), which the paper cites."""
    return red_mnist_lenet(data, scale, dense=False)


@experiment(PAPER, "Fig. 1-4, 6-8, 10-12", "CIFAR-10", "VGG11, Softplus β=5", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11(
    data: str = "cifar10", scale: Scaling = 1.0, l2: float = L2, activation: str = SMOOTH
) -> RunConfig:
    """VGG11 with batch normalisation, images cropped and flipped.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        l2: factor of ½‖Θ‖².
        activation: after every convolution.
    """
    size = Scale.of(scale)
    name = size.named("red-cifar10-vgg11", activation != SMOOTH and activation, _l2_part(l2))
    model = Component.of(vgg, depth=11, activation=activation, width=size.width)
    images = data_component(data, size, CIFAR, BATCH, settings={"augmentation": "crop_flip"})
    return _run(name, model, images, l2, size.passes(500))


@experiment(PAPER, "Fig. 9", "CIFAR-10", "VGG11, ELU", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11_elu(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_cifar10_vgg11` with ELU (appendix C.3)."""
    return red_cifar10_vgg11(data, scale, activation="elu")


@experiment(PAPER, "section 5", "CIFAR-10", "VGG11, ReLU", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11_relu(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_cifar10_vgg11` with ReLU, whose missing second derivative the paper names as a limit."""
    return red_cifar10_vgg11(data, scale, activation="relu")


@experiment(PAPER, "Fig. 8", "CIFAR-10", "VGG11, L2 1e-4", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11_l2(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_cifar10_vgg11` with the stronger L2 term of appendix C.2."""
    return red_cifar10_vgg11(data, scale, l2=1e-4)


@experiment(PAPER, "Fig. 1, 3, 6, 7", "CIFAR-100", "VGG19, Softplus β=5", epochs=500, samples=CIFAR, gflop=0.797)
def red_cifar100_vgg19(
    data: str = "cifar100",
    scale: Scaling = 1.0,
    l2: float = L2,
    activation: str = SMOOTH,
    label_column: str = "fine_label",
) -> RunConfig:
    """VGG19 with batch normalisation, images cropped, flipped and turned by up to 15°.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        l2: factor of ½‖Θ‖².
        activation: after every convolution.
        label_column: name of the shards' label column.
    """
    size = Scale.of(scale)
    name = size.named("red-cifar100-vgg19", activation != SMOOTH and activation, _l2_part(l2))
    model = Component.of(vgg, depth=19, activation=activation, width=size.width)
    images = data_component(
        data, size, CIFAR, BATCH, settings={"augmentation": "crop_flip_rotate", "label_column": label_column}
    )
    return _run(name, model, images, l2, size.passes(500))


@experiment(PAPER, "Fig. 9", "CIFAR-100", "VGG19, ELU", epochs=500, samples=CIFAR, gflop=0.797)
def red_cifar100_vgg19_elu(data: str = "cifar100", scale: Scaling = 1.0, label_column: str = "fine_label") -> RunConfig:
    """As :func:`red_cifar100_vgg19` with ELU (appendix C.3)."""
    return red_cifar100_vgg19(data, scale, activation="elu", label_column=label_column)


@experiment(PAPER, "section 5", "CIFAR-100", "VGG19, ReLU", epochs=500, samples=CIFAR, gflop=0.797)
def red_cifar100_vgg19_relu(
    data: str = "cifar100", scale: Scaling = 1.0, label_column: str = "fine_label"
) -> RunConfig:
    """As :func:`red_cifar100_vgg19` with ReLU."""
    return red_cifar100_vgg19(data, scale, activation="relu", label_column=label_column)


@experiment(PAPER, "Fig. 1, 6-8, 10-12", "MNIST", "autoencoder, ELU", epochs=500, samples=MNIST, gflop=0.00567)
def red_mnist_autoencoder(
    data: str = "mnist",
    scale: Scaling = 1.0,
    l2: float = L2,
    activation: str = "elu",
    reduction: Reduction = "sum",
) -> RunConfig:
    """784-1000-500-250-30 and back, squared error of pixels in [0, 1].

    The paper says MSE. The axes of its figures go up to 10¹, which a sum over the pixels reaches and a mean does not:
    it is a 784th of the sum, and beside it the L2 term of 1e-4 is as large as the loss. RED's steps depend on this
    factor through the L2 term alone; the best rates of its baselines change with it.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        l2: factor of ½‖Θ‖².
        activation: activation between the layers.
        reduction: ``sum`` or ``mean`` over the pixels of an image.
    """
    require("reduction", reduction, reduction in get_args(Reduction), "sum or mean")
    size = Scale.of(scale)
    name = size.named(
        "red-mnist-autoencoder", activation != "elu" and activation, _l2_part(l2), reduction != "sum" and reduction
    )
    model = Component.of(autoencoder, widths=size.sizes(1000, 500, 250, 30), activation=activation)
    images = data_component(data, size, MNIST, BATCH, reader=reconstructions)
    mean = f"{mean_squared_error.__module__}:{mean_squared_error.__name__}"
    return _run(name, model, images, l2, size.passes(500), "squared_error" if reduction == "sum" else mean)


@experiment(PAPER, "Fig. 9", "MNIST", "autoencoder, Softplus", epochs=500, samples=MNIST, gflop=0.00567)
def red_mnist_autoencoder_softplus(data: str = "mnist", scale: Scaling = 1.0, l2: float = L2) -> RunConfig:
    """As :func:`red_mnist_autoencoder` with Softplus (appendix C.3, with L2 1e-7 and 1e-4)."""
    return red_mnist_autoencoder(data, scale, l2, "softplus")


@experiment(PAPER, "Fig. 8, 9", "MNIST", "autoencoder, L2 1e-4", epochs=500, samples=MNIST, gflop=0.00567)
def red_mnist_autoencoder_l2(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_mnist_autoencoder` with the stronger L2 term of appendix C.2."""
    return red_mnist_autoencoder(data, scale, l2=1e-4)


def _run(
    name: str, model: Component, data: Component, l2: float, epochs: int, loss: str = "cross_entropy"
) -> RunConfig:
    return RunConfig(name, model, data, optimizer="red_rmsprop", loss=loss, l2=l2, batch_size=BATCH, epochs=epochs)


# --- Ablations and tables ---------------------------------------------------------------------------------------------

_SMALL = ("red_mnist_lenet", "red_cifar10_vgg11", "red_mnist_autoencoder")
_ALL = ("red_mnist_lenet", "red_cifar10_vgg11", "red_cifar100_vgg19", "red_mnist_autoencoder")
_TWO = ("red_cifar10_vgg11", "red_mnist_autoencoder")
_CLASSIFIER = "red_mnist_lenet"
_BOTH: dict[str, Axes] = {"red_sgd": {}, "red_rmsprop": {}}
_ELL_ETA: Axes = {"scale": (0.5, 1.0, 2.0), "decay": (1.0, 0.5, 0.25)}  # ℓ and η; the figure shows some of them
_L2: Axes = {"l2": (1e-7, 1e-4)}
_RATES = search.GRIDS["red"]["learning_rate"]
_STATISTICS = (TRAINING_LOSS_WITH_L2, TEST_LOSS_WITH_L2, TEST_ACCURACY)  # section 4 displays both with the L2 term
_DESCENTS = Statistic(
    "steps that descend, %, at the end", statistics.percent(statistics.last("optimizer/descent_share")), form="{:.1f}"
)
_FEWEST = Statistic(
    "steps that descend, %, lowest", statistics.percent(statistics.smallest("optimizer/descent_share")), form="{:.1f}"
)
_NAMES = {
    "red_sgd": "RED-SGD",
    "red_rmsprop": "RED-RMSProp",
    "sgd": "SGD, tuned",
    "rmsprop_bias_corrected": "RMSProp, tuned",
    "ran_sgd": "RAn-SGD",
    "ran_rmsprop": "RAn-RMSProp",
    "red_momentum": "RED-SGD with momentum",
    "red_adam": "RED-Adam",
    "momentum": "SGD with momentum, tuned",
    "adam": "Adam, tuned",
    "step_tuned_sgd": "Step-Tuned SGD, tuned",
    "red_mnist_lenet": "MNIST",
    "red_cifar10_vgg11": "CIFAR-10",
    "red_cifar100_vgg19": "CIFAR-100",
    "red_mnist_autoencoder": "autoencoder",
    "red_cifar10_vgg11_elu": "CIFAR-10, ELU",
    "red_cifar100_vgg19_elu": "CIFAR-100, ELU",
    "red_mnist_autoencoder_softplus": "autoencoder, Softplus",
}


def _study(
    name: str,
    shows: str,
    recipes: Sequence[str],
    optimizers: Mapping[str, Axes],
    run: Axes | None = None,
    *,
    tuned: Mapping[str, Axes] | None = None,
    seeds: int = 1,
) -> Study:
    return Study(name, PAPER, shows, tuple(recipes), optimizers, run or {}, tuned=tuned or {}, seeds=seeds)


_SCALE_DECAY = _study("red_scale_decay", "Fig. 2, 10", _TWO, {"red_sgd": _ELL_ETA, "red_rmsprop": _ELL_ETA}, seeds=3)
_ANNEALING = _study("red_annealing", "Fig. 3", _ALL[1:3], {**_BOTH, "ran_sgd": {}, "ran_rmsprop": {}}, seeds=3)
_BETA3 = _study("red_beta3", "Fig. 4", ("red_cifar10_vgg11",), {"red_sgd": {"beta3": (0.0, 0.5, 0.9, 0.99)}}, seeds=3)
_SCALES: Axes = {"scale": (1.0, 0.1)}
_ELU = ("red_cifar10_vgg11_elu", "red_cifar100_vgg19_elu")
_SOFTPLUS = ("red_mnist_autoencoder_softplus",)
STUDIES = (
    _study("red_main", "Fig. 1", _ALL, _BOTH, seeds=3),
    _SCALE_DECAY,
    _ANNEALING,
    _BETA3,
    _study("red_momentum", "Fig. 6, 7", _ALL, {"red_momentum": _SCALES, "red_adam": _SCALES}),
    _study("red_l2", "Fig. 8", _SMALL, _BOTH, _L2, seeds=3),
    _study("red_activation", "Fig. 9", (*_ELU, *_SOFTPLUS), _BOTH, seeds=3),
    _study("red_activation_l2", "Fig. 9", _SOFTPLUS, _BOTH, {"l2": (1e-4,)}, seeds=3),
    _study("red_step_tuned", "Fig. 11, 12", _TWO, {"step_tuned_sgd": {}, "red_sgd": {"decay": (0.5, 0.05)}}),
)


def _searched(optimizers: Sequence[str], decays: Sequence[float]) -> dict[str, Axes]:
    """The grid over τ₀ and d of appendix B for each optimizer."""
    grid: Axes = {"learning_rate": _RATES, "schedule": ("exponential",), "schedule_decay": tuple(decays)}
    return dict.fromkeys(optimizers, grid)


def _compared(
    shows: str, recipes: Sequence[str], optimizers: Mapping[str, Axes], tuned: Sequence[str], run: Axes | None = None
) -> tuple[Study, ...]:
    """RED's methods beside tuned baselines; the grid of the MNIST classifier has other decays than the rest."""
    parts = (
        ("classifier", [r for r in recipes if r == _CLASSIFIER], (0.97, 0.98, 0.99, 1.0)),
        ("others", [r for r in recipes if r != _CLASSIFIER], (0.99, 0.995, 1.0)),
    )
    return tuple(
        _study(f"{shows}, {part}", shows, part_recipes, optimizers, run, tuned=_searched(tuned, decays), seeds=3)
        for part, part_recipes, decays in parts
        if part_recipes
    )


def _table(
    name: str,
    shows: str,
    studies: Sequence[Study],
    rows: Sequence[str] = ("recipe", "optimizer"),
    *,
    note: str = "",
    names: Mapping[str, str] | None = None,
    statistics: Sequence[Statistic] = _STATISTICS,
) -> Table:
    return Table(
        name, PAPER, shows, tuple(studies), tuple(statistics), tuple(rows), names=_NAMES | dict(names or {}), note=note
    )


def _momentum(number: int, scale: float, note: str) -> Table:
    """Figure 6 or 7, which differ in ℓ alone."""
    shows = f"Fig. {number}"
    optimizers: dict[str, Axes] = {"red_momentum": {"scale": (scale,)}, "red_adam": {"scale": (scale,)}}
    studies = _compared(shows, _ALL, optimizers, ("momentum", "adam"))
    return _table(f"red_fig{number}", shows, studies, statistics=(*_STATISTICS, _DESCENTS, _FEWEST), note=note)


_TUNED = ("sgd", "rmsprop_bias_corrected")  # standard RMSProp is Algorithm 3 with r = 1
_STEP_TUNED: dict[str, Axes] = {"step_tuned_sgd": {"learning_rate": _RATES}}
TABLES = (
    _table(
        "red_fig1",
        "Fig. 1",
        _compared("Fig. 1", _ALL, _BOTH, _TUNED),
        note="Fig. 13 to 22 show the same runs as quantiles.",
    ),
    _table(
        "red_fig2",
        "Fig. 2, 10",
        (_SCALE_DECAY,),
        ("recipe", "optimizer", "scale", "decay"),
        names={f"scale={x:g}": f"ℓ = {x:g}" for x in (0.5, 1.0, 2.0)}
        | {f"decay={x:g}": f"η = {x:g}" for x in (0.25, 0.5, 1.0)},
        note="The paper: ℓ = 1, η = 1/2 is among the best on training loss; ℓ = 2 has 1 % more test accuracy on "
        "CIFAR-10 with RMSProp.",
    ),
    _table("red_fig3", "Fig. 3", (_ANNEALING,)),
    _table(
        "red_fig4",
        "Fig. 4",
        (_BETA3,),
        ("optimizer", "beta3"),
        names={f"beta3={x:g}": f"β₃ = {x:g}" for x in (0.0, 0.5, 0.9, 0.99)},
        note="The paper: β₃ from 0.5 to 0.99 makes little difference, 0 is unstable.",
    ),
    _momentum(
        6, 1.0, "The paper: with ℓ = 1 RED hardly converges, and up to 20 % of the steps on CIFAR-10 do not descend."
    ),
    _momentum(7, 0.1, "The paper: with ℓ = 1 − β₁ RED is stable, and every direction on CIFAR descends."),
    _table(
        "red_fig8",
        "Fig. 8",
        _compared("Fig. 8", _SMALL, _BOTH, _TUNED, _L2),
        ("recipe", "l2", "optimizer"),
        note="The paper: the smaller the L2 term, the better RED converges.",
    ),
    _table(
        "red_fig9",
        "Fig. 9",
        (*_compared("Fig. 9", _ELU, _BOTH, _TUNED), *_compared("Fig. 9, L2", _SOFTPLUS, _BOTH, _TUNED, _L2)),
        ("recipe", "l2", "optimizer"),
    ),
    _table(
        "red_fig11",
        "Fig. 11",
        (
            *_compared("Fig. 11", _TWO, {"red_sgd": {}}, ("sgd",), _L2),
            _study("Fig. 11, Step-Tuned", "Fig. 11", _TWO, {}, _L2, tuned=_STEP_TUNED, seeds=3),
        ),
        ("recipe", "l2", "optimizer"),
        note="The paper: Step-Tuned is ahead on CIFAR-10's training loss alone.",
    ),
    _table(
        "red_fig12",
        "Fig. 12",
        _compared("Fig. 12", _TWO, {"red_sgd": {"decay": (0.5, 0.05)}}, ("sgd",), _L2),
        ("recipe", "l2", "optimizer", "decay"),
        names={"decay=0.5": "η = 1/2", "decay=0.05": "η = 1/20"},
        note="The paper: η = 1/2 is always ahead of η = 1/20.",
    ),
)
