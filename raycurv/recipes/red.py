"""RED's experiments (*rescaled exponential decay*, section 4 and appendices B and C): Table 3 and its variants.

Three runs with seeds 0 to 2 make a curve of the paper. ``--optimizer`` chooses between red_sgd, red_rmsprop, their
momentum and annealed forms and the baselines; :mod:`raycurv.recipes.studies` has the paper's ablations.
"""

from __future__ import annotations

from raycurv.data import reconstructions
from raycurv.models.autoencoder import autoencoder
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.vgg import vgg
from raycurv.recipes.datasets import CIFAR, MNIST, rows_of
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig
from raycurv.train.losses import mean_squared_error

SMOOTH = "softplus5"  # Softplus with β = 5
L2 = 1e-7
BATCH = 256


def _l2_part(l2: float) -> str:
    return "" if l2 == L2 else f"l2-{l2:g}"


@experiment(
    "RED", "Fig. 1, 2, 4, 6, 8", "MNIST", "dense LeNet 300-100, tanh", epochs=200, samples=MNIST, gflop=0.000532
)
def red_mnist_lenet(
    data: str = "mnist", scale: Scaling = 1.0, l2: float = L2, activation: str = "tanh", dense: bool = True
) -> RunConfig:
    """The dense LeNet of Table 3, 784-300-100-10 with tanh.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        l2: factor of ½‖Θ‖².
        activation: after every hidden layer.
        dense: False takes the convolutional LeNet-5 instead.
    """
    size = Scale.of(scale)
    name = size.named("red-mnist-lenet", not dense and "conv", activation != "tanh" and activation, _l2_part(l2))
    if dense:
        model = Component.of(mlp, widths=size.sizes(300, 100), activation=activation)
    else:
        sizes = {"channels": size.sizes(6, 16), "widths": size.sizes(120, 84)}
        model = Component.of(lenet, activation=activation, **sizes)
    images = rows_of(data, size, MNIST, BATCH)
    return _run(name, model, images, l2, size.passes(200))


@experiment("RED", "Fig. 8", "MNIST", "dense LeNet, L2 1e-4", epochs=200, samples=MNIST, gflop=0.000532)
def red_mnist_lenet_l2(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_mnist_lenet` with the stronger L2 term of appendix C.2."""
    return red_mnist_lenet(data, scale, l2=1e-4)


@experiment("RED", "Table 3", "MNIST", "LeNet-5, tanh", epochs=200, samples=MNIST, gflop=0.000563)
def red_mnist_lenet5(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_mnist_lenet` with the convolutional network of LeCun et al. (1998), which the paper cites."""
    return red_mnist_lenet(data, scale, dense=False)


@experiment("RED", "Fig. 1-4, 6, 8, 10-12", "CIFAR-10", "VGG11, Softplus β=5", epochs=500, samples=CIFAR, gflop=0.306)
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
    images = rows_of(data, size, CIFAR, BATCH, settings={"augmentation": "crop_flip"})
    return _run(name, model, images, l2, size.passes(500))


@experiment("RED", "Fig. 9", "CIFAR-10", "VGG11, ELU", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11_elu(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_cifar10_vgg11` with ELU (appendix C.3)."""
    return red_cifar10_vgg11(data, scale, activation="elu")


@experiment("RED", "section 5", "CIFAR-10", "VGG11, ReLU", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11_relu(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_cifar10_vgg11` with ReLU, whose missing second derivative the paper names as a limit."""
    return red_cifar10_vgg11(data, scale, activation="relu")


@experiment("RED", "Fig. 8", "CIFAR-10", "VGG11, L2 1e-4", epochs=500, samples=CIFAR, gflop=0.306)
def red_cifar10_vgg11_l2(data: str = "cifar10", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_cifar10_vgg11` with the stronger L2 term of appendix C.2."""
    return red_cifar10_vgg11(data, scale, l2=1e-4)


@experiment("RED", "Fig. 1, 6", "CIFAR-100", "VGG19, Softplus β=5", epochs=500, samples=CIFAR, gflop=0.797)
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
        label_column: of the shards.
    """
    size = Scale.of(scale)
    name = size.named("red-cifar100-vgg19", activation != SMOOTH and activation, _l2_part(l2))
    model = Component.of(vgg, depth=19, activation=activation, width=size.width)
    images = rows_of(
        data, size, CIFAR, BATCH, settings={"augmentation": "crop_flip_rotate", "label_column": label_column}
    )
    return _run(name, model, images, l2, size.passes(500))


@experiment("RED", "Fig. 9", "CIFAR-100", "VGG19, ELU", epochs=500, samples=CIFAR, gflop=0.797)
def red_cifar100_vgg19_elu(data: str = "cifar100", scale: Scaling = 1.0, label_column: str = "fine_label") -> RunConfig:
    """As :func:`red_cifar100_vgg19` with ELU (appendix C.3)."""
    return red_cifar100_vgg19(data, scale, activation="elu", label_column=label_column)


@experiment("RED", "section 5", "CIFAR-100", "VGG19, ReLU", epochs=500, samples=CIFAR, gflop=0.797)
def red_cifar100_vgg19_relu(
    data: str = "cifar100", scale: Scaling = 1.0, label_column: str = "fine_label"
) -> RunConfig:
    """As :func:`red_cifar100_vgg19` with ReLU."""
    return red_cifar100_vgg19(data, scale, activation="relu", label_column=label_column)


@experiment("RED", "Fig. 1, 4, 6, 8, 10-12", "MNIST", "autoencoder, ELU", epochs=500, samples=MNIST, gflop=0.00567)
def red_mnist_autoencoder(
    data: str = "mnist", scale: Scaling = 1.0, l2: float = L2, activation: str = "elu"
) -> RunConfig:
    """784-1000-500-250-30 and back, mean squared error of pixels in [0, 1].

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        scale: fraction of data and epochs (one number), or of data, epochs and width.
        l2: factor of ½‖Θ‖².
        activation: between the layers.
    """
    size = Scale.of(scale)
    name = size.named("red-mnist-autoencoder", activation != "elu" and activation, _l2_part(l2))
    model = Component.of(autoencoder, widths=size.sizes(1000, 500, 250, 30), activation=activation)
    images = rows_of(data, size, MNIST, BATCH, reader=reconstructions)
    loss = f"{mean_squared_error.__module__}:{mean_squared_error.__name__}"
    return _run(name, model, images, l2, size.passes(500), loss)


@experiment("RED", "Fig. 9", "MNIST", "autoencoder, Softplus", epochs=500, samples=MNIST, gflop=0.00567)
def red_mnist_autoencoder_softplus(data: str = "mnist", scale: Scaling = 1.0, l2: float = L2) -> RunConfig:
    """As :func:`red_mnist_autoencoder` with Softplus (appendix C.3, with L2 1e-7 and 1e-4)."""
    return red_mnist_autoencoder(data, scale, l2, "softplus")


@experiment("RED", "Fig. 8, 9", "MNIST", "autoencoder, L2 1e-4", epochs=500, samples=MNIST, gflop=0.00567)
def red_mnist_autoencoder_l2(data: str = "mnist", scale: Scaling = 1.0) -> RunConfig:
    """As :func:`red_mnist_autoencoder` with the stronger L2 term of appendix C.2."""
    return red_mnist_autoencoder(data, scale, l2=1e-4)


def _run(
    name: str, model: Component, data: Component, l2: float, epochs: int, loss: str = "cross_entropy"
) -> RunConfig:
    return RunConfig(name, model, data, optimizer="red_rmsprop", loss=loss, l2=l2, batch_size=BATCH, epochs=epochs)
