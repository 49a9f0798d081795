"""Optimizers by name, behind one step call; each needs torch alone, but for those of `modern` and `kfac`."""

from raycurv.optim import curveball, learned_rate, ntlr, red, salera, tuning_free
from raycurv.optim.base import Horizon, StepOptimizer, StepReport, parameters_of
from raycurv.optim.baselines import (
    bfgs,
    external,
    first_order,
    hessian_free,
    kfac,
    levenberg_marquardt,
    newton,
    sls,
    sps,
    step_tuned,
)
from raycurv.optim.baselines.first_order import FirstOrder
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
    external,
    first_order,
    hessian_free,
    kfac,
    learned_rate,
    levenberg_marquardt,
    newton,
    ntlr,
    red,
    salera,
    sls,
    sps,
    step_tuned,
    tuning_free,
)
