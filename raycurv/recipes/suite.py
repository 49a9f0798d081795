"""Tasks of the benchmark suite that no paper of this package has: small enough for one core, of many kinds.

:mod:`raycurv.benchmarks.suite.tasks` gives each a number of steps and a target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raycurv.data import csv_table, multi30k_text, noisy_images, reconstructions
from raycurv.models.airbench import airbench
from raycurv.models.autoencoder import autoencoder
from raycurv.models.gpt import gpt
from raycurv.models.mlp import mlp
from raycurv.models.vision_transformer import vision_transformer
from raycurv.objective.losses import mean_squared_error, word_counts, word_cross_entropy
from raycurv.recipes.datasets import BOSTON, CIFAR, MNIST, MULTI30K, data_component
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig

PAPER = "suite"
WORDS = 1000  # vocabulary of the language model
TEXT_LENGTH = 16  # words of a sentence at most


@experiment(PAPER, "AlgoPerf's MNIST", "MNIST", "sigmoid MLP 128", epochs=10, samples=MNIST, gflop=0.000203)
def mnist_algoperf(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """AlgoPerf's MNIST workload (Dahl et al. 2023): one hidden layer, 50,000 images, batches of 64.

    The other 10,000 training images are the validation batches of methods that take them.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("mnist-algoperf"),
        model=Component.of(mlp, widths=size.sizes(128), activation="sigmoid"),
        data=data_component(data, size, MNIST, 77),  # 64 after the split
        batch_size=64,
        epochs=size.passes(10),
        validation=1 / 6,
    )


@experiment(PAPER, "FOB's MNIST", "MNIST", "sigmoid MLP 128", epochs=30, samples=MNIST, gflop=0.000203)
def mnist_fob(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As the MNIST task of FOB (the Fast Optimizer Benchmark): one hidden layer, batches of 512.

    FOB holds out a part of the training images, which are all used here.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("mnist-fob"),
        model=Component.of(mlp, widths=size.sizes(128), activation="sigmoid"),
        data=data_component(data, size, MNIST, 1),
        batch_size=min(512, size.rows(MNIST, 1) or MNIST),
        epochs=size.passes(30),
    )


@experiment(PAPER, "autoencoder", "MNIST", "autoencoder 128-64-30", epochs=10, samples=MNIST, gflop=0.000442)
def mnist_autoencoder(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """784-128-64-30 and back with ELU, mean squared error of pixels in [0, 1], batches of 128.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("mnist-autoencoder"),
        model=Component.of(autoencoder, widths=size.sizes(128, 64, 30)),
        data=data_component(data, size, MNIST, 128, reader=reconstructions),
        loss=_path(mean_squared_error),
        batch_size=128,
        epochs=size.passes(10),
    )


@experiment(PAPER, "40 % noisy labels", "MNIST", "ReLU MLP 128-64", epochs=6, samples=MNIST, gflop=0.000218)
def mnist_noisy_labels(data: str = "mnist", share: float = 0.4, scale: Scaling = 1.0) -> RunConfig:
    """Two hidden layers, batches of 128; a share of the training labels is drawn anew.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        share: share of the labels that are drawn.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("mnist-noisy-labels", share != 0.4 and f"{share:g}"),
        model=Component.of(mlp, widths=size.sizes(128, 64), activation="relu"),
        data=data_component(data, size, MNIST, 128, reader=noisy_images, settings={"share": share}),
        batch_size=128,
        epochs=size.passes(6),
    )


@experiment(PAPER, "batches of 4", "MNIST", "ReLU MLP 128-64", epochs=1, samples=MNIST, gflop=0.000218)
def mnist_batches_of_4(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """Two hidden layers, batches of 4.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("mnist-batches-of-4"),
        model=Component.of(mlp, widths=size.sizes(128, 64), activation="relu"),
        data=data_component(data, size, MNIST, 4),
        batch_size=4,
        epochs=size.passes(1),
    )


@experiment(PAPER, "regression", "Boston housing", "ReLU MLP 64-64", epochs=100, samples=BOSTON, gflop=1.0e-5)
def boston_mlp(data: str = "boston_housing.csv", scale: Scaling = 1.0) -> RunConfig:
    """Regression on a table: two hidden layers, 400 rows in batches of 32, 106 rows held out, all standardised.

    Args:
        data: the CSV file (OpenML's, or any with a column ``medv``), or its name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("boston-mlp"),
        model=Component.of(mlp, num_classes=1, widths=size.sizes(64, 64), activation="relu"),
        data=data_component(data, size, BOSTON, 32, reader=csv_table, settings={"target": "medv", "held_out": 106}),
        loss="squared_error",
        batch_size=32,
        epochs=size.passes(100),
    )


@experiment(PAPER, "language model", "Multi30k en", "GPT, 2 layers of 64", epochs=2, samples=MULTI30K, gflop=0.00564)
def multi30k_gpt(data: str = "multi30k", scale: Scaling = 1.0) -> RunConfig:
    """A small GPT on the English sentences, the 996 most frequent words, batches of 32 sentences.

    Args:
        data: folder, ``s3://`` or ``gs://`` with the files of Multi30k, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    (width,), (hidden,) = size.sizes(64, multiple=4), size.sizes(256)
    text = {"max_words": WORDS, "max_length": TEXT_LENGTH}
    return RunConfig(
        name=size.named("multi30k-gpt"),
        model=Component.of(gpt, size=width, hidden=hidden),
        data=data_component(data, size, MULTI30K, 32, reader=multi30k_text, settings=text),
        loss=_path(word_cross_entropy),
        weights=_path(word_counts),
        batch_size=32,
        epochs=size.passes(2),
    )


@experiment(PAPER, "vision transformer", "CIFAR-10", "ViT, 3 layers of 48", epochs=2, samples=CIFAR, gflop=0.00973)
def cifar10_vision_transformer(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """A small vision transformer with patches of 4 pixels, batches of 64, without augmentation.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    (width,), (hidden,) = size.sizes(48, multiple=4), size.sizes(96)
    return RunConfig(
        name=size.named("cifar10-vit"),
        model=Component.of(vision_transformer, size=width, layers=3, hidden=hidden),
        data=data_component(data, size, CIFAR, 64),
        batch_size=64,
        epochs=size.passes(2),
    )


@experiment(PAPER, "airbench94", "CIFAR-10", "airbench", epochs=10, samples=CIFAR, gflop=0.236)
def cifar10_airbench(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """A network like airbench94's, batches of 1024, crops and flips.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("cifar10-airbench"),
        model=Component.of(airbench, width=size.width),
        data=data_component(data, size, CIFAR, 1, settings={"augmentation": "crop_flip"}),
        batch_size=min(1024, size.rows(CIFAR, 1) or CIFAR),
        epochs=size.passes(10),
    )


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__name__}"
