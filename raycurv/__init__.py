"""Train neural networks on a Ray cluster with nothing to tune, and prove it against tuned baselines."""

from raycurv.objective import Batch, Linearisation, Objective, Taylor

__all__ = ["Batch", "Linearisation", "Objective", "Taylor", "__version__"]
__version__ = "0.1.0"
