"""Experiments as typed functions that return a :class:`raycurv.train.RunConfig`, ours and the user's."""

from raycurv.deprecation import moved_names
from raycurv.recipes.digits import digits
from raycurv.recipes.fine_tuning import digits_first_six, digits_last_four
from raycurv.recipes.papers.curveball import cifar10_basic_cnn, cifar10_resnet18, imagenet_curveball
from raycurv.recipes.registry import (
    Recipe,
    RegisteredRecipe,
    build,
    experiment,
    get,
    listing,
    names,
    registered_recipes,
)
from raycurv.recipes.scale import Scale, Scaling
from raycurv.recipes.suite import cifar10_airbench, mnist_algoperf, multi30k_gpt

__all__ = [
    "Recipe",
    "RegisteredRecipe",
    "Scale",
    "Scaling",
    "build",
    "cifar10_airbench",
    "cifar10_basic_cnn",
    "cifar10_resnet18",
    "digits",
    "digits_first_six",
    "digits_last_four",
    "experiment",
    "get",
    "imagenet_curveball",
    "listing",
    "mnist_algoperf",
    "multi30k_gpt",
    "names",
    "registered_recipes",
]
__getattr__ = moved_names(__name__)
