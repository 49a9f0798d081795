"""NTLR's experiments (*A Newton-based trainable learning rate*, section 3): figures 1 to 5, Table 1.

The sweeps over initial rates, batch sizes, p and γ are in :mod:`raycurv.recipes.studies`.
"""

from __future__ import annotations

from raycurv.data import multi30k
from raycurv.models.mlp import mlp
from raycurv.models.resnet import resnet50
from raycurv.models.transformer import transformer
from raycurv.models.wide_resnet import wide_resnet
from raycurv.recipes.datasets import CIFAR, IMAGENET, MNIST, MULTI30K, photographs, rows_of
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig, Setting
from raycurv.train.losses import word_cross_entropy, words


@experiment("NTLR", "Fig. 1, 2", "MNIST", "MLP 1000", epochs=20, samples=MNIST, gflop=0.00159)
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
        data=rows_of(data, size, MNIST, 128),
        optimizer="ntlr_sgd",
        batch_size=128,
        epochs=size.passes(20),
    )


@experiment("NTLR", "section 3", "CIFAR-10", "Wide-ResNet 16-4", epochs=200, samples=CIFAR, gflop=0.78)
def ntlr_cifar10_wide_resnet(data: str = "cifar10", depth: int = 16, widen: int = 4, scale: Scaling = 1.0) -> RunConfig:
    """A Wide-ResNet; epochs and L2 are those of its own paper, since NTLR's leaves them open.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        depth: 10, 16, 22, 28 or 40.
        widen: factor of the channels in the network's name.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    return _wide_resnet("ntlr-cifar10", Scale.of(scale), data, depth, widen)


@experiment("NTLR", "Fig. 3, Table 1", "CIFAR-100", "Wide-ResNet 16-4", epochs=200, samples=CIFAR, gflop=0.78)
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
        label_column: of the shards.
    """
    return _wide_resnet("ntlr-cifar100", Scale.of(scale), data, depth, widen, label_column=label_column)


def _wide_resnet(name: str, size: Scale, data: str, depth: int, widen: int, **settings: Setting) -> RunConfig:
    return RunConfig(
        name=size.named(name, f"wrn-{depth}-{widen}"),
        model=Component.of(wide_resnet, depth=depth, widen=widen, width=size.width),
        data=rows_of(data, size, CIFAR, 128, settings={"augmentation": "crop_flip", **settings}),
        optimizer="ntlr_sgd",
        l2=5e-4,
        batch_size=128,
        epochs=size.passes(200),
    )


@experiment("NTLR", "Fig. 4", "ImageNet", "ResNet-50", epochs=80, samples=IMAGENET, gflop=8.18)
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
        data=rows_of(data, size, IMAGENET, 96, settings=photographs(image_size)),
        optimizer="ntlr_sgd",
        l2=1e-4,
        batch_size=96,
        epochs=size.passes(80),
    )


@experiment("NTLR", "Fig. 5", "Multi30k de-en", "transformer 3+3, 8 heads", epochs=18, samples=MULTI30K, gflop=0.585)
def ntlr_multi30k_transformer(
    data: str = "multi30k", layers: int = 3, max_words: int = 20_000, scale: Scaling = 1.0
) -> RunConfig:
    """German to English, the network and epochs of the PyTorch tutorial that the paper takes its code from.

    The loss is the mean over the words of a batch, since every sentence counts by its words. Words are taken by a
    regular expression in place of the tutorial's language models.

    Args:
        data: folder of ``train.de.gz``, ``train.en.gz`` and the same for ``val``, or a name in RAYCURV_DATA.
        layers: of the encoder, and of the decoder.
        max_words: size of each vocabulary; every word of Multi30k by default.
        scale: fraction of data and epochs (one number), or of data, epochs and width; vocabularies follow the width.
    """
    size = Scale.of(scale)
    (vocabulary,) = size.sizes(max_words)
    units, hidden = size.sizes(512, 512, multiple=16)
    return RunConfig(
        name=size.named("ntlr-multi30k-transformer", layers != 3 and layers),
        model=Component.of(transformer, source_words=vocabulary, size=units, hidden=hidden, layers=layers),
        data=rows_of(data, size, MULTI30K, 128, reader=multi30k, settings={"max_words": vocabulary}),
        optimizer="ntlr_adam",
        loss=f"{word_cross_entropy.__module__}:{word_cross_entropy.__name__}",
        weights=f"{words.__module__}:{words.__name__}",
        batch_size=128,
        epochs=size.passes(18),
    )
