"""The cases of the survey: torch's layers, and models of torchvision, timm and transformers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.survey import tiny_transformers
from tests.survey.measure import Case


def all_cases() -> Iterator[Case]:
    """All cases, the quick groups first; groups whose package is absent are left out."""
    yield from layers()
    for package, group in (
        ("torchvision", torchvision_models),
        ("timm", timm_models),
        ("transformers", tiny_transformers.cases),
    ):
        if importlib.util.find_spec(package) is not None:
            yield from group()


class Scaled(nn.Module):
    """A layer behind a learned scale, so that tangents reach its input."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(0.5 + torch.rand(shape))
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x * self.scale)


def layers() -> Iterator[Case]:
    """Layers of torch.nn."""
    image, sequence, volume, row = (4, 8, 8), (6, 8), (2, 4, 4, 4), (8,)
    table: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}
    plain = (
        "ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid PReLU ReLU ReLU6 RReLU SELU CELU GELU "
        "Sigmoid SiLU Mish Softplus Softshrink Softsign Tanh Tanhshrink Dropout AlphaDropout FeatureAlphaDropout "
        "Identity Flatten"
    )
    for name in plain.split():
        table[name] = (getattr(nn, name), row)
    for name in ("Softmin", "Softmax", "LogSoftmax", "GLU"):
        table[name] = (functools.partial(getattr(nn, name), dim=-1), row)
    table |= {
        "Threshold": (lambda: nn.Threshold(0.1, 2.0), row),
        "Softmax2d": (nn.Softmax2d, image),
        "Linear": (lambda: nn.Linear(8, 5), row),
        "RMSNorm": (lambda: nn.RMSNorm(8), row),
        "LayerNorm": (lambda: nn.LayerNorm(8), row),
        "GroupNorm": (lambda: nn.GroupNorm(2, 4), image),
        "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), image),
        "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(3), image),
        "BatchNorm1d": (lambda: nn.BatchNorm1d(8), row),
        "BatchNorm2d": (lambda: nn.BatchNorm2d(4), image),
        "BatchNorm3d": (lambda: nn.BatchNorm3d(2), volume),
        "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6), sequence),
        "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), image),
        "InstanceNorm3d": (lambda: nn.InstanceNorm3d(2), volume),
        "RNN": (lambda: nn.RNN(8, 5, batch_first=True), sequence),
        "LSTM": (lambda: nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True, proj_size=3), sequence),
        "GRU": (lambda: nn.GRU(8, 5, batch_first=True), sequence),
        "RNNCell": (lambda: nn.RNNCell(8, 5), row),
        "LSTMCell": (lambda: nn.LSTMCell(8, 5), row),
        "GRUCell": (lambda: nn.GRUCell(8, 5), row),
        "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 9, batch_first=True), sequence),
        "PixelShuffle": (lambda: nn.PixelShuffle(2), image),
        "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), image),
        "ChannelShuffle": (lambda: nn.ChannelShuffle(2), image),
        "Fold": (lambda: nn.Fold((3, 3), 2), (8, 4)),
        "Unfold": (lambda: nn.Unfold(3), image),
        "Upsample": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), image),
        "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), image),
        "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), image),
        "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, output_size=4), image),
        "ZeroPad2d": (lambda: nn.ZeroPad2d(1), image),
    }
    for n, shape in ((1, sequence), (2, image), (3, volume)):
        channels = shape[0]
        for mode in ("zeros", "reflect", "replicate", "circular"):
            conv = functools.partial(getattr(nn, f"Conv{n}d"), channels, 4, 3, padding=1, padding_mode=mode)
            table[f"Conv{n}d, {mode}"] = (conv, shape)
        table[f"ConvTranspose{n}d"] = (functools.partial(getattr(nn, f"ConvTranspose{n}d"), channels, 3, 3, 2), shape)
        for pool in ("MaxPool", "AvgPool", "LPPool"):
            arguments = (2, 2) if pool == "LPPool" else (2,)
            table[f"{pool}{n}d"] = (functools.partial(getattr(nn, f"{pool}{n}d"), *arguments), shape)
        for pool in ("AdaptiveMaxPool", "AdaptiveAvgPool"):
            table[f"{pool}{n}d"] = (functools.partial(getattr(nn, f"{pool}{n}d"), 2), shape)
        for pad in ("ReflectionPad", "ReplicationPad", "ConstantPad", "CircularPad"):
            arguments = (1, 0.5) if pad == "ConstantPad" else (1,)
            table[f"{pad}{n}d"] = (functools.partial(getattr(nn, f"{pad}{n}d"), *arguments), shape)
    for name, (make, shape) in table.items():
        yield Case("torch.nn", name, functools.partial(_layer, make, shape))
    yield from _of_indices()
    yield Case(
        "torch.nn", "MultiheadAttention", lambda: (Scaled(_SelfAttention(), sequence), torch.randn(3, *sequence))
    )
    yield Case("torch.nn", "Bilinear", lambda: (_Pair(nn.Bilinear(8, 8, 5)), torch.randn(3, 8)))
    yield Case("torch.nn", "Transformer", lambda: (_Pair(nn.Transformer(8, 2, 1, 1, 9, 0.0, batch_first=True)),
               torch.randn(3, *sequence)))  # fmt: skip
    for name in ("weight_norm", "spectral_norm", "orthogonal"):
        wrap = getattr(nn.utils.parametrizations, name)
        yield Case("torch.nn", f"parametrizations.{name}", lambda wrap=wrap: (wrap(nn.Linear(8, 5)), torch.randn(3, 8)))
    for name in ("weight_norm", "spectral_norm"):
        wrap = getattr(nn.utils, name)
        yield Case("torch.nn", f"utils.{name}", lambda wrap=wrap: (wrap(nn.Linear(8, 5)), torch.randn(3, 8)))


def _layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    return Scaled(make(), shape), torch.randn(3, *shape, dtype=torch.float64)


class _SelfAttention(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class _Pair(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.flip(-1))


def _of_indices() -> Iterator[Case]:
    indices = torch.tensor([[0, 2, 1], [3, 0, 2]])
    makes: dict[str, Callable[[], nn.Module]] = {
        "Embedding": lambda: nn.Embedding(5, 4, padding_idx=4),
    }
    for mode in ("sum", "mean", "max"):
        makes[f"EmbeddingBag, {mode}"] = functools.partial(nn.EmbeddingBag, 5, 4, mode=mode)
    for name, make in makes.items():
        yield Case("torch.nn", name, lambda make=make: (make(), indices))


# --- torchvision -----------------------------------------------------------------------------------------------------

IMAGE_MODELS = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 "
    "squeezenet1_1 swin_t swin_v2_t vgg11_bn wide_resnet50_2"
)
IMAGE_SIZES = {"inception_v3": 75, "maxvit_t": 224, "alexnet": 64}


def torchvision_models() -> Iterator[Case]:
    """The smallest model of each family of torchvision."""
    from torchvision import models

    def image_model(name: str) -> tuple[nn.Module, Tensor]:
        settings: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, **settings), images(IMAGE_SIZES.get(name, 64))

    for name in IMAGE_MODELS.split():
        yield Case("torchvision", name, functools.partial(image_model, name))
    yield Case("torchvision", "vit", lambda: (models.VisionTransformer(32, 8, 2, 2, 16, 32), images(32)))
    for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"):
        make = functools.partial(models.get_model, name, weights=None, weights_backbone=None)
        yield Case("torchvision", name, lambda make=make: (make(), images(64)))
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d"):
        make = functools.partial(models.get_model, name, weights=None)
        yield Case("torchvision", name, lambda make=make: (make(), torch.randn(2, 3, 14, 64, 64).double()))


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64)


# --- timm ------------------------------------------------------------------------------------------------------------

SMALL = ("test_", "atto", "femto", "pico", "nano", "micro", "xxs", "_xxt", "tiny", "_xs", "_t", "mini", "_s", "small")


def timm_models() -> Iterator[Case]:
    """One small model of each module of timm."""
    import timm

    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if "." not in name]
        if names:
            yield Case("timm", f"{module}: {_smallest(names)}", functools.partial(_timm_model, _smallest(names)))


def _smallest(names: list[str]) -> str:
    def rank(name: str) -> tuple[int, int, str]:
        return next((i for i, hint in enumerate(SMALL) if hint in name), len(SMALL)), len(name), name

    return min(names, key=rank)


def _timm_model(name: str) -> tuple[nn.Module, Tensor]:
    import timm

    for settings in ({"img_size": 64}, {}):
        try:
            model = timm.create_model(name, num_classes=7, **settings)
            size = settings.get("img_size") or 64
            with torch.no_grad():
                model(torch.randn(2, 3, size, size))
            return model, images(size)
        except Exception:
            continue
    model = timm.create_model(name, num_classes=7)
    return model, images(model.default_cfg["input_size"][-1])
