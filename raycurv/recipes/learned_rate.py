"""The experiments of *Learning the learning rate for gradient descent by gradient descent* (section 4), Fig. 1 to 14.

Initial rates are the paper's for the second-order method. It leaves numbers of epochs open; here they are about what
its figures show.
"""

from __future__ import annotations

from raycurv.data import csv_table
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.resnet import resnet18
from raycurv.recipes.datasets import BOSTON, CIFAR, MNIST, rows_of
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig, Setting

SECOND_ORDER = "llr_second_order"


@experiment("LLR", "Fig. 1, 2", "Boston housing", "linear regression", epochs=200, samples=BOSTON, gflop=2.6e-8)
def llr_boston(data: str = "boston_housing.csv", scale: Scaling = 1.0) -> RunConfig:
    """Linear regression on 400 rows in one batch, 106 rows held out; features and target standardised.

    The paper sums the squared errors of raw features, where we take their mean: rates are not comparable.

    Args:
        data: the CSV file (OpenML's, or any with a column ``medv``), or its name in RAYCURV_DATA.
        scale: fraction of data and epochs; a linear model has no width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("llr-boston"),
        model=Component.of(mlp, num_classes=1, widths=()),
        data=rows_of(data, size, BOSTON, 1, reader=csv_table, settings={"target": "medv", "held_out": 106}),
        optimizer=SECOND_ORDER,
        optimizer_settings={"learning_rate": 0.01},
        loss="squared_error",
        batch_size=size.rows(BOSTON, 1) or BOSTON,
        epochs=size.passes(200),
        evaluate_every=10,
    )


@experiment("LLR", "Fig. 3, 4", "MNIST", "logistic regression", epochs=20, samples=MNIST, gflop=1.57e-5)
def llr_mnist_logistic(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """Multi-class logistic regression.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs; a linear model has no width.
    """
    size = Scale.of(scale)
    model = Component.of(mlp, widths=())
    return _run(size.named("llr-mnist-logistic"), model, rows_of(data, size, MNIST, 64), 0.01, 64, size.passes(20))


@experiment("LLR", "Fig. 5, 7", "CIFAR-10", "LeNet, dropout", epochs=50, samples=CIFAR, gflop=0.0013)
def llr_cifar10_lenet(data: str = "cifar10", dropout: float = 0.5, scale: Scaling = 1.0) -> RunConfig:
    """LeNet with dropout after the first two fully connected layers, mini-batches of 32.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        dropout: its rate, which the paper does not give.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    sizes: dict[str, Setting] = {"channels": size.sizes(6, 16), "widths": size.sizes(120, 84)}
    model = Component.of(lenet, dropout=dropout, **sizes)
    return _run(size.named("llr-cifar10-lenet"), model, rows_of(data, size, CIFAR, 32), 0.01, 32, size.passes(50))


@experiment("LLR", "Fig. 6-9, 11-14", "CIFAR-10", "ResNet-18, dropout", epochs=50, samples=CIFAR, gflop=1.11)
def llr_cifar10_resnet18(
    data: str = "cifar10", dropout: float = 0.5, rate: float = 0.1, scale: Scaling = 1.0
) -> RunConfig:
    """ResNet-18 with dropout in front of the classifier, mini-batches of 256.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        dropout: its rate; the paper gives neither it nor the places of its two layers.
        rate: the initial learning rate: 0.1, 0.05 (figure 11) or 0.01 (figure 8).
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    model = Component.of(resnet18, dropout=dropout, width=size.width)
    name = size.named("llr-cifar10-resnet18", rate != 0.1 and f"{rate:g}")
    return _run(name, model, rows_of(data, size, CIFAR, 256), rate, 256, size.passes(50))


@experiment("LLR", "Fig. 10", "CIFAR-100", "ResNet-18, dropout", epochs=50, samples=CIFAR, gflop=1.11)
def llr_cifar100_resnet18(
    data: str = "cifar100", dropout: float = 0.5, scale: Scaling = 1.0, label_column: str = "fine_label"
) -> RunConfig:
    """As :func:`llr_cifar10_resnet18` on CIFAR-100, from the rate 0.02.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        dropout: its rate.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        label_column: of the shards.
    """
    size = Scale.of(scale)
    model = Component.of(resnet18, dropout=dropout, width=size.width)
    images = rows_of(data, size, CIFAR, 256, settings={"label_column": label_column})
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
    )
