"""The real data that recipes read in the tests: what stands for each set, and how a recipe is told so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from raycurv.recipes import RegisteredRecipe

# CIFAR-100 and ImageNet are read from the same layout as the sets that stand for them.
STANDS_FOR = {
    "MNIST": "mnist",
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar10",
    "ImageNet": "imagenet_sample",
    "ImageNet-100": "imagenet_sample",
    "Multi30k de-en": "multi30k",
    "Multi30k en": "multi30k",
    "Boston housing": "boston_housing.csv",
}
# Shape of one sample and number of classes of the whole set.
SHAPES = {
    "MNIST": ((1, 28, 28), 10),
    "CIFAR-10": ((3, 32, 32), 10),
    "CIFAR-100": ((3, 32, 32), 100),
    "ImageNet": ((3, 224, 224), 1000),
    "ImageNet-100": ((3, 224, 224), 100),
    "digits": ((1, 8, 8), 10),
    "Multi30k de-en": ((2, 16), 10_829),
    "Multi30k en": ((17,), 1000),
    "Boston housing": ((13,), 1),
    "Rahimi-Recht": ((6,), 10),
}


def options(experiment: RegisteredRecipe, folder: Path) -> dict[str, Any]:
    """Arguments for a recipe so that it reads what there is in RAYCURV_DATA; the test is skipped if it lacks it.

    Args:
        experiment: whose recipe it is.
        folder: an own one of the test, for the digits.
    """
    if experiment.data == "digits":
        from raycurv.data.digits import write_digits

        return {"data": str(write_digits(folder / "digits"))}
    if experiment.data not in STANDS_FOR:
        return {}
    name = STANDS_FOR[experiment.data]
    where = Path(os.environ.get("RAYCURV_DATA", "/nowhere")) / name
    if not where.exists():
        pytest.skip(f"the folder RAYCURV_DATA has no {name}")
    found: dict[str, Any] = {"data": str(where)}
    if experiment.data == "CIFAR-100":
        found["label_column"] = "label"
    if experiment.data.startswith("ImageNet"):
        found["image_size"] = 64
    return found


def placeholder(experiment: RegisteredRecipe, folder: Path) -> dict[str, Any]:
    """Arguments for a recipe that is only looked at: a path that exists."""
    return {"data": str(folder)} if experiment.data in {*STANDS_FOR, "digits"} else {}


def counted(experiment: RegisteredRecipe) -> bool:
    """Whether the network's operations are matrix products, which can be counted."""
    return experiment.data in SHAPES
