"""CurveBall (*Small Steps and Giant Leaps: Minimal Newton Solvers for Deep Learning*): recipes, ablations, tables.

Section 4: images (figures 2, 3, 7 and 8, Table 2) and small degenerate problems (Table 1). On the small problems a step
is one evaluation of the function, the seed decides the start, and ``test/loss`` is the loss without noise: below 1e-4
the problem is solved. Table 1 itself, with a hundred runs of each optimizer, is measured by
:mod:`raycurv.benchmarks.curveball_table1`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from raycurv.data import Data, tensors
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.mlp import mlp
from raycurv.models.random_cnn import random_cnn
from raycurv.models.resnet import resnet18
from raycurv.models.small_problems import DTYPE, RahimiRechtProblem, rosenbrock, two_linear_layers
from raycurv.models.vgg_f import vgg_f
from raycurv.recipes import search
from raycurv.recipes.datasets import (
    CIFAR,
    IMAGENET,
    IMAGENET_100,
    MNIST,
    RANDOM_CLASSES,
    data_component,
    photograph_settings,
)
from raycurv.recipes.printed_table import parse_table
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.recipes.study import Axes, Study
from raycurv.recipes.table import Table
from raycurv.results import statistics
from raycurv.results.statistics import SECONDS, TRAINING_ERROR, TRAINING_LOSS, VALIDATION_ERROR, Statistic
from raycurv.train.configuration import Component, RunConfig, Setting

PAPER = "CurveBall"
STEPS = 500  # steps of a run on the small problems
DAMPING = 1.0  # λ₀ of the authors' code, which Table 1 needs


@experiment(PAPER, "Fig. 2, 3, 5-8, Table 2", "CIFAR-10", "basic CNN", epochs=20, samples=CIFAR, gflop=0.0284)
def cifar10_basic_cnn(
    data: str = "cifar10", batch_norm: bool = False, augment: bool = False, scale: Scaling = 1.0
) -> RunConfig:
    """The basic CNN of footnote 5, mini-batches of 128.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        batch_norm: normalise after every convolution but the last.
        augment: crop and flip training images, which the paper's training errors are measured without.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("cifar10-basic-cnn", batch_norm and "bn"),
        model=Component.of(basic_cnn, batch_norm=batch_norm, width=size.width),
        data=data_component(data, size, CIFAR, 128, settings={"augmentation": "crop_flip" if augment else "none"}),
        optimizer="curveball",
        batch_size=128,
        epochs=size.passes(20),
    )


@experiment(
    "CurveBall", "Fig. 2, 5, 6, 8, Table 2", "CIFAR-10", "basic CNN + BN", epochs=20, samples=CIFAR, gflop=0.0284
)
def cifar10_basic_cnn_bn(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`cifar10_basic_cnn` with batch normalisation."""
    return cifar10_basic_cnn(data, batch_norm=True, scale=scale)


@experiment(PAPER, "Fig. 2, Table 2", "CIFAR-10", "ResNet-18", epochs=20, samples=CIFAR, gflop=1.11)
def cifar10_resnet18(
    data: str = "cifar10", augment: bool = False, dropout: float = 0.0, scale: Scaling = 1.0
) -> RunConfig:
    """ResNet-18, mini-batches of 128.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        augment: crop and flip training images.
        dropout: dropout rate in front of the classifier.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("cifar10-resnet18", dropout and "dropout"),
        model=Component.of(resnet18, dropout=dropout, width=size.width),
        data=data_component(data, size, CIFAR, 128, settings={"augmentation": "crop_flip" if augment else "none"}),
        optimizer="curveball",
        batch_size=128,
        epochs=size.passes(20),
    )


@experiment(PAPER, "Table 2", "CIFAR-10", "ResNet-18, dropout 0.3", epochs=20, samples=CIFAR, gflop=1.11)
def cifar10_resnet18_dropout(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`cifar10_resnet18` with the dropout of Table 2's brackets."""
    return cifar10_resnet18(data, dropout=0.3, scale=scale)


@experiment(PAPER, "Fig. 2", "ImageNet", "VGG-f", epochs=20, samples=IMAGENET, gflop=1.45)
def imagenet_curveball(
    data: str = "imagenet",
    classes: int | None = None,
    class_seed: int = 0,
    image_size: int = 224,
    width: float = 1.0,
    skip_corrupt: bool = False,
    augmentation: str = "short_side_crop_flip",
    scale: Scaling = 1.0,
) -> RunConfig:
    """VGG-f on photographs, with CurveBall and nothing to tune, mini-batches of 256.

    The paper follows Chatfield et al. (2014) for everything but the optimizer and leaves the number of epochs open;
    here it is 20, with their weight decay of 5·10⁻⁴ as L2. Crops are theirs: 224 pixels at random of a shorter side of
    256, flipped half of the time. Deviations: the colours of training images do not vary, and evaluation takes the
    centre crop alone, not the mean over ten crops.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        classes: number of classes to draw, 100 for ImageNet-100; None for all.
        class_seed: seed of the draw of classes.
        image_size: pixels of the square that the network sees.
        width: factor of the network's channels, beside that of `scale`.
        skip_corrupt: leave out and count images that cannot be read.
        augmentation: of :func:`raycurv.data.parquet_images`; ``"resize_crop_flip"`` varies the size of the crop too.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    samples = IMAGENET if classes is None else IMAGENET * classes // 1000
    draw: dict[str, Setting] = {"classes": classes, "class_seed": class_seed, "skip_corrupt": skip_corrupt}
    images = data_component(
        data, size, samples, 256, settings={**photograph_settings(image_size, augmentation), **draw}
    )
    return RunConfig(
        name=size.named("imagenet", classes),
        model=Component.of(vgg_f, width=width * size.width),
        data=images,
        optimizer="curveball",
        l2=5e-4,
        batch_size=256,
        epochs=size.passes(20),
    )


@experiment(PAPER, "Fig. 2, Table 2", "ImageNet-100", "VGG-f", epochs=20, samples=IMAGENET_100, gflop=1.44)
def imagenet100_curveball(
    data: str = "imagenet", class_seed: int = 0, image_size: int = 224, scale: Scaling = 1.0
) -> RunConfig:
    """As :func:`imagenet_curveball` on 100 classes that a seed draws."""
    return imagenet_curveball(data, RANDOM_CLASSES, class_seed, image_size, scale=scale)


@experiment(PAPER, "Fig. 2", "MNIST", "tanh MLP 128-64-32", epochs=20, samples=MNIST, gflop=0.000222)
def mnist_tanh_mlp(data: str = "mnist", martens_grosse: bool = False, scale: Scaling = 1.0) -> RunConfig:
    """The four-layer network of the comparison with KFAC, mini-batches of 64; the paper leaves the epochs open.

    The paper follows Martens and Grosse (2015) in initialisation and normalisation, and so does the study of Fig. 2.
    By default the recipe has torch's initialisation and pixels in [−1, 1], as runs of earlier versions have.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        martens_grosse: sparse initialisation with 15 connections (:func:`raycurv.models.mlp.initialise_sparsely`) and
            pixels in [0, 1].
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    sparse: dict[str, Setting] = {"initialisation": "sparse"} if martens_grosse else {}
    pixels: dict[str, Setting] = {"mean": (0.0,), "std": (1.0,)} if martens_grosse else {}
    return RunConfig(
        name=size.named("mnist-tanh-mlp", martens_grosse and "sparse"),
        model=Component.of(mlp, widths=size.sizes(128, 64, 32), **sparse),
        data=data_component(data, size, MNIST, 64, settings=pixels),
        optimizer="curveball",
        batch_size=64,
        epochs=size.passes(20),
    )


@experiment(PAPER, "Fig. 3", "CIFAR-10", "random CNN 0 … 49", epochs=20, samples=CIFAR, gflop=0.104)
def cifar10_random_cnn(data: str = "cifar10", architecture: int = 0, scale: Scaling = 1.0) -> RunConfig:
    """One of the 50 random networks (appendix B.3), mini-batches of 256; the paper leaves the epochs open.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        architecture: its seed, 0 to 49 for the paper's experiment.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("cifar10-random-cnn", str(architecture)),
        model=Component.of(random_cnn, seed=architecture, width=size.width),
        data=data_component(data, size, CIFAR, 256),
        optimizer="curveball",
        batch_size=256,
        epochs=size.passes(20),
    )


def rosenbrock_noise(low: float, high: float, steps: int, seed: int = 0) -> Data:
    """One noise sample ε a step; without noise, ε = 1, for evaluation."""
    drawn = low + (high - low) * torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    zeros = torch.zeros(steps, 2, dtype=DTYPE)
    return tensors(drawn, zeros, evaluation=(torch.ones(1, dtype=DTYPE), zeros[:1]))


def ill_conditioned_map(widths: tuple[int, int, int], samples: int, condition: float, seed: int = 0) -> Data:
    """Inputs and y = Ax with an ill-conditioned A; evaluated on the same."""
    matrix, inputs, _ = RahimiRechtProblem(widths, samples, condition).draw(seed)
    return tensors(inputs, inputs @ matrix.T, evaluation=(inputs, inputs @ matrix.T))


@experiment(PAPER, "Table 1, Fig. 1", "no noise", "Rosenbrock", epochs=1, samples=STEPS, gflop=1e-8)
def curveball_rosenbrock(scale: Scaling = 1.0, low: float = 1.0, high: float = 1.0) -> RunConfig:
    """The stochastic Rosenbrock function with noise U[low, high]; deterministic by default.

    Args:
        scale: fraction of the steps; the two others have no meaning here.
        low: λ₁.
        high: λ₂.
    """
    size = Scale.of(scale)
    steps = size.rows(STEPS, 1) or STEPS
    return RunConfig(
        name=size.named("rosenbrock", high != low and f"{low:g}-{high:g}"),
        model=Component.of(rosenbrock),
        data=Component.of(rosenbrock_noise, low=low, high=high, steps=steps),
        optimizer="curveball",
        optimizer_settings={"damping": DAMPING},
        loss="squared_error",
        batch_size=1,
        epochs=1,
        precision="fp64",
    )


@experiment(PAPER, "Table 1, Fig. 1", "noise U[0,1]", "Rosenbrock", epochs=1, samples=STEPS, gflop=1e-8)
def curveball_rosenbrock_noise1(scale: Scaling = 1.0) -> RunConfig:
    """As :func:`curveball_rosenbrock` with noise U[0, 1]."""
    return curveball_rosenbrock(scale, 0.0, 1.0)


@experiment(PAPER, "Table 1, Fig. 1", "noise U[0,3]", "Rosenbrock", epochs=1, samples=STEPS, gflop=1e-8)
def curveball_rosenbrock_noise3(scale: Scaling = 1.0) -> RunConfig:
    """As :func:`curveball_rosenbrock` with noise U[0, 3]."""
    return curveball_rosenbrock(scale, 0.0, 3.0)


@experiment(PAPER, "Table 1", "Rahimi-Recht", "linear 6-6-10", epochs=STEPS, samples=1000, gflop=1.92e-7)
def curveball_rahimi_recht(scale: Scaling = 1.0, condition: float = 1e5) -> RunConfig:
    """Two linear layers fitted to an ill-conditioned map, all samples in every step.

    Args:
        scale: fraction of samples, steps and hidden units.
        condition: condition number of the map; the paper does not give the shapes.
    """
    size = Scale.of(scale)
    samples = size.rows(1000, 1) or 1000
    shapes: dict[str, Setting] = {"widths": (6, size.sizes(6)[0], 10)}
    return RunConfig(
        name=size.named("rahimi-recht"),
        model=Component.of(two_linear_layers, **shapes),
        data=Component.of(ill_conditioned_map, samples=samples, condition=condition, **shapes),
        optimizer="curveball",
        optimizer_settings={"damping": DAMPING},
        loss="squared_error",
        batch_size=samples,
        epochs=size.passes(STEPS),
        precision="fp64",
        evaluate_every=10,
    )


# --- Ablations and tables ---------------------------------------------------------------------------------------------

_POWERS: Axes = {"learning_rate": search.powers(-4, -1)}  # 10⁻ᵏ
_FIRST_ORDER: dict[str, Axes] = {"momentum": _POWERS, "adam": _POWERS}
_RESCALED: Axes = {"damping_interval": (5, None)}
_HE: Axes = {"learning_rate": (0.1,), "schedule": ("multi_step",)}  # He et al. 2016: tenths after 1/2 and 3/4
_MARTENS_GROSSE: Axes = {"martens_grosse": (True,)}
_WITH_ERROR: Axes = {"evaluate_training": (True,)}
_NAMES = {
    "curveball": "CurveBall",
    "momentum": "SGD",
    "adam": "Adam",
    "hessian_free": "Hessian-free",
    "kfac": "KFAC",
    "adaptive=True": "adaptive rate, momentum and damping",
    "adaptive=False": "best rate",
    "damping_interval=5": "λ rescaled",
    "damping_interval=None": "λ fixed",
    "cifar10_basic_cnn": "Basic",
    "cifar10_basic_cnn_bn": "Basic + BN",
    "cifar10_resnet18": "ResNet-18",
    "cifar10_resnet18_dropout": "ResNet-18, dropout 0.3",
    "imagenet100_curveball": "VGG-f",
    "imagenet_curveball": "VGG-f, ImageNet",
    "mnist_tanh_mlp": "MNIST MLP",
}
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
        for row, entries in parse_table(_TABLE_2).items()
    }


def _study(
    name: str, shows: str, recipes: Sequence[str], optimizers: Mapping[str, Axes], options: Axes | None = None
) -> Study:
    """Runs that also measure the error on the training set."""
    return Study(name, PAPER, shows, tuple(recipes), optimizers, _WITH_ERROR, options or {})


_PLAIN = ("cifar10_basic_cnn", "cifar10_basic_cnn_bn")
STUDIES = (
    Study("curveball_fixed_momentum", PAPER, "Fig. 8", _PLAIN, {"curveball": {"momentum": (1.0,)}}),
    Study(
        "curveball_fixed_damping",
        PAPER,
        "Table 2",
        (*_PLAIN, "cifar10_resnet18", "imagenet100_curveball"),
        {"curveball": _RESCALED},
    ),
)

TABLES: tuple[Table, ...] = (
    Table(
        "curveball_table2",
        PAPER,
        "Table 2",
        studies=(
            _study(
                "curveball_table2",
                "Table 2",
                (*_PLAIN, "imagenet100_curveball"),
                {"curveball": _RESCALED, **_FIRST_ORDER},
            ),
            _study(
                "curveball_table2_resnet",
                "Table 2",
                ("cifar10_resnet18",),
                {"curveball": _RESCALED, "momentum": _HE, "adam": _POWERS},
            ),
            _study(
                "curveball_table2_dropout",
                "Table 2",
                ("cifar10_resnet18_dropout",),
                {"curveball": {"damping_interval": (5,)}},
            ),
        ),
        statistics=(TRAINING_ERROR, VALIDATION_ERROR),
        rows=("optimizer", "damping_interval"),
        columns=("recipe", "statistic"),
        best_of=("learning_rate",),
        chosen_by=TRAINING_ERROR,
        names=_NAMES,
        printed=_table2(),
        note="The rates of SGD and Adam are those of 10⁻ᵏ with the lowest training error, once for each network; those "
        "of SGD on ResNet-18 are its authors' schedule. The paper searches on the basic CNN and does not say whether "
        "it searches again for other networks: `--axis learning_rate=0.01` takes one rate for all.",
    ),
    Table(
        "curveball_fig2",
        PAPER,
        "Fig. 2",
        studies=(
            _study(
                "curveball_fig2",
                "Fig. 2",
                (*_PLAIN, "imagenet100_curveball", "imagenet_curveball"),
                {"curveball": {}, **_FIRST_ORDER},
            ),
            _study(
                "curveball_fig2_resnet",
                "Fig. 2",
                ("cifar10_resnet18",),
                {"curveball": {}, "momentum": _HE, "adam": _POWERS},
            ),
            _study(
                "curveball_fig2_mnist",
                "Fig. 2",
                ("mnist_tanh_mlp",),
                {
                    "curveball": {},
                    **_FIRST_ORDER,
                    "kfac": {"adaptive": (False,), "momentum": (0.9,), "learning_rate": search.powers(-3, 0)},
                },
                _MARTENS_GROSSE,
            ),
            _study(
                "curveball_fig2_mnist_kfac",
                "Fig. 2",
                ("mnist_tanh_mlp",),
                {"kfac": {"adaptive": (True,)}},
                _MARTENS_GROSSE,
            ),
        ),
        statistics=(_LAST_ERROR, TRAINING_LOSS),
        rows=("recipe", "optimizer", "adaptive"),
        best_of=("learning_rate",),
        chosen_by=TRAINING_ERROR,
        chosen_for=("recipe", "optimizer", "adaptive"),
        names=_NAMES,
        note="Training error at the end of the curves; the paper's best ones are in Table 2. It leaves the epochs of "
        "MNIST and ImageNet open.",
    ),
    Table(
        "curveball_fig3_random",
        PAPER,
        "Fig. 3 left",
        studies=(
            _study(
                "curveball_fig3_random",
                "Fig. 3 left",
                ("cifar10_random_cnn",),
                {"curveball": {}, **_FIRST_ORDER},
                {"architecture": tuple(range(50))},
            ),
        ),
        statistics=(_MEDIAN_LOSS, _MEDIAN_ERROR),
        rows=("optimizer", "learning_rate"),
        names=_NAMES,
        note="Median and quartiles over the 50 random networks, every rate for all of them. The paper draws the curves "
        "and prints no number: CurveBall has the lowest.",
    ),
    Table(
        "curveball_fig3_time",
        PAPER,
        "Fig. 3 right, 7",
        studies=(
            _study(
                "curveball_fig3_time",
                "Fig. 3 right, 7",
                ("cifar10_basic_cnn",),
                {"curveball": {}, **_FIRST_ORDER, "hessian_free": {}},
            ),
        ),
        statistics=(TRAINING_ERROR, TRAINING_LOSS, SECONDS),
        rows=("optimizer",),
        best_of=("learning_rate",),
        chosen_by=TRAINING_ERROR,
        chosen_for=("optimizer",),
        names=_NAMES,
        note="The paper: CurveBall is competitive in time, Hessian-free an order of magnitude slower. All columns are "
        "of the rate with the lowest training error.",
    ),
    Table(
        "curveball_fig8",
        PAPER,
        "Fig. 8",
        studies=(_study("curveball_fig8", "Fig. 8", _PLAIN, {"curveball": {"momentum": (None, 1.0)}, **_FIRST_ORDER}),),
        statistics=(TRAINING_ERROR, TRAINING_LOSS),
        rows=("recipe", "optimizer", "momentum"),
        best_of=("learning_rate",),
        chosen_by=TRAINING_ERROR,
        names=_NAMES | {"momentum=None": "ρ found", "momentum=1": "ρ = 1"},
    ),
)
