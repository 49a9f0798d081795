"""Recent methods with less to tune, each from its authors' own package (optional extra ``modern``).

| name | paper | package |
|---|---|---|
| `schedule_free_*` | *The Road Less Scheduled*, Defazio et al. 2024 | schedulefree |
| `prodigy`, `prodigy_cosine` | *Prodigy*, Mishchenko and Defazio 2023 | prodigyopt |
| `dadapt_adam` | *Learning-Rate-Free Learning by D-Adaptation*, Defazio and Mishchenko 2023 | dadaptation |
| `soap` | *SOAP: Improving and Stabilizing Shampoo using Adam*, Vyas et al. 2024 | pytorch_optimizer |
| `ademamix` | *The AdEMAMix Optimizer: Better, Faster, Older*, Pagliardini et al. 2024 | pytorch_optimizer |
| `dog` | *DoG is SGD's Best Friend*, Ivgi, Hinder and Carmon 2023 | dog-optimizer |

`momo_adam` and `mechanic_adam`, whose packages keep a state of their own, are in files beside this one. Updates and
defaults are those of the packages. Advice of the authors:

- Schedule-Free SGD needs 10 to 50 times the rate of plain SGD, found by trial.
- `schedule_free_adamw_algoperf` has the values of Schedule-Free's winning submission to AlgoPerf's self-tuning track:
  rate 0.0025, β₁ 0.9, β₂ 0.99552, decay 0.0812, 2 % of warm-up, weights t^0.75 of the average. The submission decayed
  the average x; the package decays the training point y. It came with a dropout of 0.1 and label smoothing of 0.2,
  which belong to the task, and began again at half the rate where a run failed; neither is done here.
- Schedule-Free trains at one point and evaluates at another, the average: ``evaluation_weights()`` loads it, and
  restores the training point bit by bit. Running statistics of batch normalisation belong to the training point;
  compute them anew before an evaluation of a network that has them.
- DoG evaluates its averaged iterate (polynomial decay, from the package). Networks with batch normalisation need
  ``initial_movement=1e-4``.
- AdEMAMix raises the weight and the memory of its slow average over the whole run. Without a horizon both are constant.
- SOAP only collects curvature in its first step, which moves nothing. Its basis of directions without curvature is
  arbitrary: rounding decides it, so a run on two workers is not the one on a single worker. Workers agree bit by bit.
- Prodigy's authors advise a cosine without warm-up: `prodigy_cosine`.
- Prodigy, D-Adaptation and DoG read numbers from the device in every step, and start with a rate of about 1e-6 that
  grows within some tens of steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from raycurv.objective import Batch
from raycurv.optim.base import Horizon, StepReport
from raycurv.optim.baselines.extras import extra
from raycurv.optim.baselines.first_order import FirstOrder, baseline
from raycurv.optim.baselines.schedules import COSINE, ScheduledRate
from raycurv.optim.registry import register_variant


class ScheduleFree(FirstOrder):
    """An optimizer of schedulefree, with separate points for training and evaluation.

    Args:
        inner: optimizer of the package schedulefree.
        clip_gradient: largest global norm of the gradient, or None.
        schedule: schedule of the rates of `inner`, or None.
    """

    evaluates_other_weights = True

    def __init__(self, inner: Any, clip_gradient: float | None = None, schedule: ScheduledRate | None = None) -> None:
        super().__init__(inner, clip_gradient, schedule)
        self._modes = inner
        self._modes.train()

    def _rate(self) -> float:
        return float(self.param_groups[0]["scheduled_lr"])

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """While entered, the model holds the average."""
        with _restored(self._parameters()):  # the package returns by interpolation, which rounds
            self._modes.eval()
            try:
                yield
            finally:
                self._modes.train()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state and switch to the training point, also if it was saved at the evaluation point."""
        super().load_state_dict(state_dict)
        self._modes.train()


class EstimatedRate(FirstOrder):
    """An optimizer that estimates its learning rate, ``d`` times ``lr``: Prodigy and D-Adaptation.

    Args:
        inner: optimizer whose parameter groups have a factor ``d`` of ``lr``.
        clip_gradient: largest global norm of the gradient, or None.
        schedule: schedule of the rates of `inner`, or None.
    """

    synchronises = True

    def _rate(self) -> float:
        return float(self.param_groups[0]["d"]) * float(self.param_groups[0]["lr"])


class DoG(FirstOrder):
    """An optimizer of dog; the average of its iterates is evaluated.

    Args:
        inner: optimizer of the package dog.
        clip_gradient: largest global norm of the gradient, or None.
        schedule: schedule of the rates of `inner`, or None.
    """

    synchronises = True
    evaluates_other_weights = True

    def __init__(self, inner: Any, clip_gradient: float | None = None, schedule: ScheduledRate | None = None) -> None:
        from dog import PolynomialDecayAverager

        super().__init__(inner, clip_gradient, schedule)
        self.averager = PolynomialDecayAverager(nn.ParameterList(self._parameters()))

    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One step of DoG, and one of the average."""
        report = super().step(batch)
        self.averager.step()
        return report

    def _rate(self) -> Tensor:
        return cast(Tensor, self.param_groups[0]["eta"][0])

    def state_dict(self) -> dict[str, Any]:
        """DoG's state and the average."""
        return {**super().state_dict(), "average": self.averager.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load DoG's state and the average."""
        super().load_state_dict(state_dict)
        self.averager.load_state_dict(state_dict["average"])

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """While entered, the model holds the average."""
        with _restored(self._parameters()) as parameters, torch.no_grad():
            torch._foreach_copy_(parameters, list(self.averager.averaged_model.parameters()))
            yield


@baseline("schedule_free_sgd", ScheduleFree, scheduled=False)
def schedule_free_sgd(
    parameters: list[Any], *, learning_rate: float = 1.0, momentum: float = 0.9, warmup_steps: int = 0
) -> torch.optim.Optimizer:
    """Schedule-Free stochastic gradient descent; the rate grows over `warmup_steps` steps."""
    with extra("modern"):
        from schedulefree import SGDScheduleFree
    return SGDScheduleFree(parameters, learning_rate, momentum, warmup_steps=warmup_steps)


@baseline("schedule_free_adamw", ScheduleFree, scheduled=False)
def schedule_free_adamw(
    parameters: list[Any],
    *,
    learning_rate: float = 0.0025,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
) -> torch.optim.Optimizer:
    """Schedule-Free AdamW; the rate grows over `warmup_steps` steps."""
    with extra("modern"):
        from schedulefree import AdamWScheduleFree
    return AdamWScheduleFree(
        parameters, learning_rate, (beta1, beta2), weight_decay=weight_decay, warmup_steps=warmup_steps
    )


@baseline("schedule_free_adamw_algoperf", ScheduleFree, scheduled=False)
def schedule_free_adamw_algoperf(parameters: list[Any], *, horizon: Horizon | None = None) -> torch.optim.Optimizer:
    """Schedule-Free AdamW with the values of its submission to AlgoPerf.

    Raises:
        ValueError: `horizon` is None; the warm-up is a share of the run.
    """
    if horizon is None:
        raise ValueError(
            "schedule_free_adamw_algoperf warms up over 2 % of the run: give horizon=Horizon(epochs, steps_per_epoch, "
            "training_samples), or take schedule_free_adamw with warmup_steps"
        )
    with extra("modern"):
        from schedulefree import AdamWScheduleFree
    return AdamWScheduleFree(
        parameters,
        0.0025,
        (0.9, 0.9955159689799007),
        weight_decay=0.08121616522670176,
        warmup_steps=int(0.02 * horizon.steps),
        r=0.75,
    )


@baseline("prodigy", EstimatedRate)
def prodigy(
    parameters: list[Any],
    *,
    learning_rate: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    initial_estimate: float = 1e-6,
) -> torch.optim.Optimizer:
    """Prodigy around Adam; `learning_rate` multiplies the estimated rate, which starts at `initial_estimate`, d₀."""
    with extra("modern"):
        from prodigyopt import Prodigy
    return Prodigy(parameters, learning_rate, (beta1, beta2), d0=initial_estimate)


register_variant("prodigy_cosine", prodigy, "Prodigy with a cosine over the run.", fixed={**COSINE, "warmup": 0.0})


@baseline("dadapt_adam", EstimatedRate, scheduled=False)
def dadapt_adam(
    parameters: list[Any],
    *,
    learning_rate: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    initial_estimate: float = 1e-6,
) -> torch.optim.Optimizer:
    """D-Adaptation of Adam; `learning_rate` multiplies the estimated rate, which starts at `initial_estimate`, d₀."""
    with extra("modern"):
        from dadaptation import DAdaptAdam
    return DAdaptAdam(parameters, learning_rate, (beta1, beta2), d0=initial_estimate)


@baseline("dog", DoG, scheduled=False)
def dog(parameters: list[Any], *, initial_movement: float = 1e-6) -> torch.optim.Optimizer:
    """DoG; its first step has the length `initial_movement` times (1 + ‖x₀‖), r_ε."""
    with extra("modern"):
        from dog import DoG as Inner
    return Inner(parameters, reps_rel=initial_movement)


@baseline("soap")
def soap(
    parameters: list[Any],
    *,
    learning_rate: float = 3e-3,
    beta1: float = 0.95,
    beta2: float = 0.95,
    weight_decay: float = 0.01,
    precondition_interval: int = 10,
) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's factors, which is renewed every `precondition_interval` steps."""
    with extra("modern"):
        from pytorch_optimizer import SOAP
    return SOAP(
        parameters,
        learning_rate,
        (beta1, beta2),
        weight_decay=weight_decay,
        precondition_frequency=precondition_interval,
    )


@baseline("ademamix")
def ademamix(
    parameters: list[Any],
    *,
    horizon: Horizon | None = None,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float = 0.9999,
    slow_weight: float = 5.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Adam with a second, slow average of the gradient; its memory is β₃ `beta3`, its weight α `slow_weight`."""
    with extra("modern"):
        from pytorch_optimizer import AdEMAMix
    return AdEMAMix(
        parameters,
        learning_rate,
        (beta1, beta2, beta3),
        weight_decay=weight_decay,
        weight_decouple=True,
        alpha=slow_weight,
        t_alpha_beta3=None if horizon is None else horizon.steps,
    )


@contextlib.contextmanager
def _restored(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Restore the values, bit by bit, at the end.

    Yields:
        The parameters.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield parameters
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, kept)
