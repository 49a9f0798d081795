"""Optimizers, by name or as classes, behind one step call; they need torch alone, except those of two extras.

| name | class |
|---|---|
| `auto` | :class:`Auto` |
| `red_adam_free` | :class:`AveragedRED` |
| `red_momentum_free`, `red_sgd_free` | :class:`AveragedRED` with ``beta2=None``; with ``beta1=0.0, beta2=None`` |
| `curveball` | :class:`CurveBall` |
| `curveball_free` | :class:`CurveBall` with ``damping=1.0, damping_factor=0.95`` |
| `red_sgd` | :class:`RED` |
| `red_rmsprop`, `red_momentum` | :class:`RED` with ``beta2=0.999``; with ``beta1=0.9`` |
| `red_adam` | :class:`RED` with ``beta1=0.9, beta2=0.999`` |
| `ran_sgd`, `ran_rmsprop` | :class:`RAn`; with ``beta2=0.999`` |
| `ntlr_sgd`, `ntlr_adam` | :class:`NTLR`, :class:`NTLRAdam`; any optimizer of torch: :class:`WindowedRate` |
| `hypergradient_additive`, `hypergradient_multiplicative` | :class:`Hypergradient` with ``rule=…`` |
| `alera`, `salera`, `spalera`, `ag_adam` | :class:`ALERA`, :class:`SALERA`, :class:`SPALERA`, :class:`AgAdam` |
| `llr_first_order`, `llr_second_order` | :class:`LLRFirstOrder`, :class:`LLRSecondOrder` |
| `ntlr_sgd_free`, `alera_free`, `salera_free`, `llr_free` | :class:`SwitchingOptimizer`, made by name |
| `bfgs`, `hessian_free`, `kfac` | :class:`BFGS`, :class:`HessianFree`, :class:`KFAC` |
| `levenberg_marquardt`, `newton` | :class:`LevenbergMarquardt`, :class:`Newton` |
| `cdat_sgd`, `cdat_momentum`, `cdat_adam` | :class:`CDAT`; with ``beta1=0.9``; also with ``beta2=0.999`` |
| `gen_sgd`, `gen_momentum` | :class:`GeN`; with ``beta1=0.9`` |
| `gen_adam` | :class:`GeN` with ``beta1=0.9, beta2=0.999, learning_rate=1e-3`` |
| `sls`, `sps`, `step_tuned_sgd` | :class:`SLS`, :class:`SPS`, :class:`StepTunedSGD` |
| `sgd`, `momentum`, `nesterov`, `adam` | :class:`FirstOrder` around one of ``torch.optim`` |
| `rmsprop`, `adagrad`, `adadelta` | :class:`FirstOrder` around one of ``torch.optim`` |
| `rmsprop_bias_corrected` | :class:`FirstOrder` around ``torch.optim.Adam`` with β₁ = 0, RED's RMSProp baseline |
| `adamw`, `adamw_cosine` | :class:`FirstOrder` around ``torch.optim.AdamW``; with ``schedule="cosine"`` |
| `nadamw`, `nadamw_algoperf` | :class:`FirstOrder` around `baselines.nadamw.NAdamW` |
| `schedule_free_sgd`, `schedule_free_adamw` | :class:`ScheduleFree` around one of schedulefree |
| `schedule_free_adamw_algoperf` | the same, with the values of AlgoPerf |
| `schedule_free_plus`, `schedule_free_normuon` | :class:`ScheduleFreePlus`, :class:`ScheduleFreeNorMuon` |
| `prodigy`, `prodigy_cosine`, `dadapt_adam` | :class:`EstimatedRate` around one of prodigyopt or dadaptation |
| `muon` | :class:`FirstOrder` around ``torch.optim.Muon`` for matrices and ``torch.optim.AdamW`` for the rest |
| `soap`, `ademamix` | :class:`FirstOrder` around one of pytorch_optimizer |
| `momo_adam` | :class:`MoMo` around one of momo-opt |
| `mechanic_adam` | :class:`Mechanic` around one of mechanic-pytorch |
| `dog` | :class:`DoG` around the one of dog |

``create("red_adam", model)`` and ``RED(model, beta1=0.9, beta2=0.999)`` are the same optimizer.
"""

from raycurv.optim.ag_adam import AgAdam
from raycurv.optim.auto import Auto
from raycurv.optim.averaged_red import AveragedRED
from raycurv.optim.base import Horizon, StepOptimizer, StepReport, parameters_of
from raycurv.optim.baselines import muon as _muon  # noqa: F401  for its name in the registry
from raycurv.optim.baselines import nadamw as _nadamw  # noqa: F401
from raycurv.optim.baselines.bfgs import BFGS
from raycurv.optim.baselines.cdat import CDAT
from raycurv.optim.baselines.external import DoG, EstimatedRate, ScheduleFree
from raycurv.optim.baselines.first_order import FirstOrder
from raycurv.optim.baselines.gen import GeN
from raycurv.optim.baselines.hessian_free import HessianFree
from raycurv.optim.baselines.kfac import KFAC
from raycurv.optim.baselines.levenberg_marquardt import LevenbergMarquardt
from raycurv.optim.baselines.mechanic import Mechanic
from raycurv.optim.baselines.momo import MoMo
from raycurv.optim.baselines.newton import Newton
from raycurv.optim.baselines.schedule_free_normuon import ScheduleFreeNorMuon
from raycurv.optim.baselines.schedule_free_plus import ScheduleFreePlus
from raycurv.optim.baselines.sls import SLS
from raycurv.optim.baselines.sps import SPS
from raycurv.optim.baselines.step_tuned import StepTunedSGD
from raycurv.optim.curveball import CurveBall
from raycurv.optim.learned_rate import LLRFirstOrder, LLRSecondOrder
from raycurv.optim.ntlr import NTLR, Hypergradient, NTLRAdam, WindowedRate
from raycurv.optim.red import RED, RAn
from raycurv.optim.registry import check, create, names, register, settings
from raycurv.optim.salera import ALERA, SALERA, SPALERA
from raycurv.optim.tuning_free import SwitchingOptimizer

__all__ = [
    "ALERA",
    "BFGS",
    "CDAT",
    "KFAC",
    "NTLR",
    "RED",
    "SALERA",
    "SLS",
    "SPALERA",
    "SPS",
    "AgAdam",
    "Auto",
    "AveragedRED",
    "CurveBall",
    "DoG",
    "EstimatedRate",
    "FirstOrder",
    "GeN",
    "HessianFree",
    "Horizon",
    "Hypergradient",
    "LLRFirstOrder",
    "LLRSecondOrder",
    "LevenbergMarquardt",
    "Mechanic",
    "MoMo",
    "NTLRAdam",
    "Newton",
    "RAn",
    "ScheduleFree",
    "ScheduleFreeNorMuon",
    "ScheduleFreePlus",
    "StepOptimizer",
    "StepReport",
    "StepTunedSGD",
    "SwitchingOptimizer",
    "WindowedRate",
    "check",
    "create",
    "names",
    "parameters_of",
    "register",
    "settings",
]
