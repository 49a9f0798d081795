"""SALERA's experiments (*Going as fast as possible, but not faster*, section 3): Tables 1 and 2, figures 1 and 2.

Four networks on MNIST and CIFAR-10, 20 epochs (the paper reports the 5th and the last) of mini-batches of 1 ‰ or 1 % of
the training set, in double precision as in the paper. Images are normalised by each channel's mean and deviation on the
training set (the paper: each pixel's).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from raycurv.models.salera_networks import m0, m2, m2b, m4b
from raycurv.recipes.datasets import CIFAR, MNIST, rows_of
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig, Setting

# Mean and deviation of each channel on the training set.
MNIST_PIXELS: dict[str, Setting] = {"mean": (0.1307,), "std": (0.3081,)}
CIFAR_PIXELS: dict[str, Setting] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


@experiment("SALERA", "Table 1, 2", "MNIST", "M0, softmax regression", epochs=20, samples=MNIST, gflop=1.57e-5)
def salera_mnist_m0(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """M0.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        portion: of the training set in a batch: 0.001 or 0.01.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    return _mnist(m0, data, portion, scale)


@experiment("SALERA", "Table 1, 2", "MNIST", "M2, MLP 500-300", epochs=20, samples=MNIST, gflop=0.00109)
def salera_mnist_m2(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m0` with two hidden layers."""
    return _mnist(m2, data, portion, scale)


@experiment("SALERA", "Table 1, 2", "MNIST", "M2b, MLP 500-300 + BN", epochs=20, samples=MNIST, gflop=0.00109)
def salera_mnist_m2b(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m2` with batch normalisation."""
    return _mnist(m2b, data, portion, scale)


@experiment("SALERA", "Table 1, 2, Fig. 1", "MNIST", "M4b, LeNet + BN", epochs=20, samples=MNIST, gflop=0.00778)
def salera_mnist_m4b(data: str = "mnist", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m0` with two convolutions and two hidden layers, batch normalisation in each."""
    return _mnist(m4b, data, portion, scale)


@experiment("SALERA", "Table 1, 2", "CIFAR-10", "M0, softmax regression", epochs=20, samples=CIFAR, gflop=6.14e-5)
def salera_cifar10_m0(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m0` on CIFAR-10."""
    return _cifar10(m0, data, portion, scale)


@experiment("SALERA", "Table 1, 2", "CIFAR-10", "M2, MLP 1500-900", epochs=20, samples=CIFAR, gflop=0.0119)
def salera_cifar10_m2(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m2` on CIFAR-10."""
    return _cifar10(m2, data, portion, scale)


@experiment("SALERA", "Table 1, 2", "CIFAR-10", "M2b, MLP 1500-900 + BN", epochs=20, samples=CIFAR, gflop=0.0119)
def salera_cifar10_m2b(data: str = "cifar10", portion: float = 0.001, scale: Scaling = 1.0) -> RunConfig:
    """As :func:`salera_mnist_m2b` on CIFAR-10."""
    return _cifar10(m2b, data, portion, scale)


@experiment("SALERA", "Table 1, 2, Fig. 2", "CIFAR-10", "M4b, LeNet + BN", epochs=20, samples=CIFAR, gflop=0.0155)
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
        data=rows_of(data, size, samples, batch_size, settings=pixels),
        optimizer="salera",
        batch_size=batch_size,
        epochs=size.passes(20),
        precision="fp64",
    )
