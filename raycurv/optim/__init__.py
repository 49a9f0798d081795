"""Optimizers by name, behind one step call; each needs torch alone, but for those of `modern` and `kfac`."""

from raycurv.optim import (  # registers them
    bfgs,
    curveball,
    first_order,
    free,
    hessian_free,
    kfac,
    learned_rate,
    levenberg_marquardt,
    modern,
    newton,
    ntlr,
    red,
    salera,
    sls,
    sps,
    step_tuned,
)
from raycurv.optim.first_order import FirstOrder
from raycurv.optim.protocol import Horizon, StepOptimizer, StepReport, parameters_of
from raycurv.optim.registry import check, create, names, register, settings

__all__ = [
    "FirstOrder",
    "Horizon",
    "StepOptimizer",
    "StepReport",
    "check",
    "create",
    "names",
    "parameters_of",
    "register",
    "settings",
]
del (
    bfgs,
    curveball,
    first_order,
    free,
    hessian_free,
    kfac,
    learned_rate,
    levenberg_marquardt,
    modern,
    newton,
    ntlr,
    red,
    salera,
    sls,
    sps,
    step_tuned,
)
