"""Train neural networks on a Ray cluster with nothing to tune, and prove it against tuned baselines."""

from typing import TYPE_CHECKING

from raycurv.deprecation import find_moved_modules
from raycurv.lazy import lazy_names

if TYPE_CHECKING:
    from raycurv import data, models, objective, optim, recipes, service, tracking, train
    from raycurv.objective import Batch, Linearisation, Objective, Taylor
else:
    __getattr__ = lazy_names(
        __name__,
        {"objective": ("Batch", "Linearisation", "Objective", "Taylor")},
        ("data", "models", "objective", "optim", "recipes", "service", "tracking", "train"),
    )

__all__ = [
    "Batch",
    "Linearisation",
    "Objective",
    "Taylor",
    "__version__",
    "data",
    "models",
    "objective",
    "optim",
    "recipes",
    "service",
    "tracking",
    "train",
]
__version__ = "0.2.0"
find_moved_modules()
