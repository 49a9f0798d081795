"""CurveBall's experiments on images (*Small Steps and Giant Leaps*, section 4): figures 2 and 3, Table 2."""

from __future__ import annotations

from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.mlp import mlp
from raycurv.models.random_cnn import random_cnn
from raycurv.models.resnet import resnet18
from raycurv.models.vgg_f import vgg_f
from raycurv.recipes.datasets import CIFAR, IMAGENET, IMAGENET_100, MNIST, RANDOM_CLASSES, photographs, rows_of
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig, Setting


@experiment("CurveBall", "Fig. 2, 3, 5-8, Table 2", "CIFAR-10", "basic CNN", epochs=20, samples=CIFAR, gflop=0.0284)
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
        data=rows_of(data, size, CIFAR, 128, settings={"augmentation": "crop_flip" if augment else "none"}),
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


@experiment("CurveBall", "Fig. 2, Table 2", "CIFAR-10", "ResNet-18", epochs=20, samples=CIFAR, gflop=1.11)
def cifar10_resnet18(
    data: str = "cifar10", augment: bool = False, dropout: float = 0.0, scale: Scaling = 1.0
) -> RunConfig:
    """ResNet-18, mini-batches of 128.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        augment: crop and flip training images.
        dropout: in front of the classifier.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("cifar10-resnet18", dropout and "dropout"),
        model=Component.of(resnet18, dropout=dropout, width=size.width),
        data=rows_of(data, size, CIFAR, 128, settings={"augmentation": "crop_flip" if augment else "none"}),
        optimizer="curveball",
        batch_size=128,
        epochs=size.passes(20),
    )


@experiment("CurveBall", "Table 2", "CIFAR-10", "ResNet-18, dropout 0.3", epochs=20, samples=CIFAR, gflop=1.11)
def cifar10_resnet18_dropout(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`cifar10_resnet18` with the dropout of Table 2's brackets."""
    return cifar10_resnet18(data, dropout=0.3, scale=scale)


@experiment("CurveBall", "Fig. 2", "ImageNet", "VGG-f", epochs=20, samples=IMAGENET, gflop=1.45)
def imagenet_curveball(
    data: str = "imagenet",
    classes: int | None = None,
    class_seed: int = 0,
    image_size: int = 224,
    width: float = 1.0,
    skip_corrupt: bool = False,
    scale: Scaling = 1.0,
) -> RunConfig:
    """VGG-f on photographs, with CurveBall and nothing to tune, mini-batches of 256.

    The paper follows Chatfield et al. (2014) for everything but the optimizer and leaves the number of epochs open;
    here it is 20, with their weight decay of 5·10⁻⁴ as L2.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        classes: draw so many classes, 100 for ImageNet-100.
        class_seed: of that draw.
        image_size: pixels of the square that the network sees.
        width: factor of the network's channels, beside that of `scale`.
        skip_corrupt: leave out and count images that cannot be read.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    samples = IMAGENET if classes is None else IMAGENET * classes // 1000
    draw: dict[str, Setting] = {"classes": classes, "class_seed": class_seed, "skip_corrupt": skip_corrupt}
    images = rows_of(data, size, samples, 256, settings={**photographs(image_size), **draw})
    return RunConfig(
        name=size.named("imagenet", classes),
        model=Component.of(vgg_f, width=width * size.width),
        data=images,
        optimizer="curveball",
        l2=5e-4,
        batch_size=256,
        epochs=size.passes(20),
    )


@experiment("CurveBall", "Fig. 2, Table 2", "ImageNet-100", "VGG-f", epochs=20, samples=IMAGENET_100, gflop=1.44)
def imagenet100_curveball(
    data: str = "imagenet", class_seed: int = 0, image_size: int = 224, scale: Scaling = 1.0
) -> RunConfig:
    """As :func:`imagenet_curveball` on 100 classes that a seed draws."""
    return imagenet_curveball(data, RANDOM_CLASSES, class_seed, image_size, scale=scale)


@experiment("CurveBall", "Fig. 2", "MNIST", "tanh MLP 128-64-32", epochs=20, samples=MNIST, gflop=0.000222)
def mnist_tanh_mlp(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """The four-layer network of the comparison with KFAC, mini-batches of 64; the paper leaves the epochs open.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
    """
    size = Scale.of(scale)
    return RunConfig(
        name=size.named("mnist-tanh-mlp"),
        model=Component.of(mlp, widths=size.sizes(128, 64, 32)),
        data=rows_of(data, size, MNIST, 64),
        optimizer="curveball",
        batch_size=64,
        epochs=size.passes(20),
    )


@experiment("CurveBall", "Fig. 3", "CIFAR-10", "random CNN 0 … 49", epochs=20, samples=CIFAR, gflop=0.104)
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
        data=rows_of(data, size, CIFAR, 256),
        optimizer="curveball",
        batch_size=256,
        epochs=size.passes(20),
    )
