"""ALERA, SALERA and SPALERA: rates from the alignment of gradients, and backtracking after explosions.

*Stochastic Gradient Descent: Going As Fast As Possible But Not Faster* (Schoenauer Sebag, Schoenauer, Sebag; 2017).

The moving average of normalised gradients is compared with that of random unit vectors (eq. 2–6):

    p ← α g/‖g‖ + (1 − α) p
    η ← η exp(C (‖p‖² − μ)/σ(d)),    μ = α/(2 − α),    σ²(d) = 2α²(1 − α)² / (d (2 − α)² ((1 − α)² + 1))
    θ ← θ − ηg

SALERA (Algorithm 1) watches the loss by a Page–Hinkley test with the smoothed loss ℓ, its mean ℓ̄ and their cumulated
difference L:

    ℓ ← ρ·loss + (1 − ρ) ℓ,   ℓ̄ ← (ℓ + t ℓ̄)/(t + 1),   L ← L + ℓ − ℓ̄,   L_min ← min(L_min, L)

and where L − L_min > Δ, a tenth of the first loss, it restores the θ from before the last step, halves the rates and
restarts the test: an alarm. SPALERA (Algorithm 2) has a rate for each of the d parameters, with p_i², μ/d and σ(d)/√d;
Ag-Adam (see `ag_adam`) moves by Adam's direction in place of g.

Symbols: α ``memory``, C ``gain``, η₀ ``learning_rate``, ρ ``batch_ratio``, λ ``sensitivity``.

What the paper leaves open, and deviations:

- "Layer-wise" means per parameter tensor, as in the public code: d is the number of entries of the tensor. SPALERA
  follows Algorithm 2 as printed: one normalised gradient of all parameters together, d their number.
- Eq. 5 has half the variance of a random walk and wrong exponents (:func:`random_walk_variance` is right); the
  optimizers keep the printed σ(d), because C was tuned with it.
- The printed test starts ℓ and ℓ̄ at 0 and would fire while ℓ warms up. Here both start at the first loss, and at the
  first after an alarm. The η₀ in line 15 of Algorithm 2 is taken for a misprint.
- An alarm restores buffers (running statistics) with the parameters: those at the end of the step that produced the
  restored parameters.
- A loss or gradient that is NaN or infinite right after a step counts as an alarm, and so does an infinite step:
  networks overflow when they explode. Right after an alarm, or at the first step, going back would not help: then
  nothing moves and the report says that the step was not finite. ALERA and Ag-Adam never go back and report at once.
- p includes every finite gradient at which the test does not fire, also where the step that follows would be infinite.
- A tensor whose gradient is zero, or rounding (its norm below 8 times the precision of the whole gradient's, as that of
  a bias in front of batch normalisation), adds nothing to p: normalised, it would be noise.
- Rates are kept as log(η/η₀): float32 would lose factors as near to 1 as SPALERA's.
- η₀ of the paper's best settings is not given (its range is 1e-5 to 1). Default 0.1, the better of two rates that we
  measured on an MNIST network, and of use with normalised inputs. C is so small that a run of few steps hardly leaves
  η₀: ALERA diverges where SGD with that rate does (Rosenbrock), SALERA recovers.
- ρ is one over the steps of an epoch; without a horizon 0.01, the larger of the paper's two batch sizes.
- Δ uses the absolute value of the first loss that is not 0: losses can be negative, and Δ = 0 would fire for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.curvature.rules import chunk_size
from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.gradient_clipping import clip_gradient_, require_clip_gradient
from raycurv.optim.registry import register

_SENSITIVITY = 10.0  # λ: Δ is the first loss divided by it
_ROUNDING = 8  # times the precision: below this share of the whole gradient, a tensor's gradient is noise
_CHUNKS = 4  # times the size of a layer's chunk: here each operation is short beside its call
_BATCH_RATIO = 0.01  # ρ without a horizon


def random_walk_mean(memory: float, steps: int) -> float:
    """μ(t) = E‖r_t‖² of the moving average of random unit vectors (eq. 4)."""
    return memory / (2 - memory) * (1 - (1 - memory) ** (2 * steps))


def random_walk_variance(memory: float, dimension: int, steps: int) -> float:
    """Var ‖r_t‖², corrected: eq. 5 has half of it and the exponents t and t − 1."""
    keep = (1 - memory) ** 2
    limit = 4 * memory**2 * keep / (dimension * (2 - memory) ** 2 * (1 + keep))
    return limit * (1 - keep**steps) * (1 - keep ** (steps - 1))


def paper_deviation(memory: float, dimension: int) -> float:
    """σ(d), the limit of eq. 5 as printed, with which C was tuned."""
    keep = (1 - memory) ** 2
    return math.sqrt(2 * memory**2 * keep / (dimension * (2 - memory) ** 2 * (1 + keep)))


def page_hinkley(test: Tensor, loss: Tensor, ratio: float, sensitivity: float = _SENSITIVITY) -> tuple[Tensor, Tensor]:
    """One update of the Page–Hinkley test, lines 3 to 7 of Algorithm 1.

    Args:
        test: state (t, ℓ, ℓ̄, L, L_min, Δ), float64; t = 0 starts the test, Δ = NaN is set from this loss,
            unless that is 0, and the test starts with the next one.
        loss: loss of this step, 0-d float64.
        ratio: ρ.
        sensitivity: λ.

    Returns:
        The test after this loss, and whether it fires.
    """
    t, smoothed, mean, cumulated, lowest, threshold = test.unbind()
    threshold = torch.where(threshold.isnan() & (loss != 0), loss.abs() / sensitivity, threshold)
    smoothed, mean = torch.where(t == 0, loss, smoothed), torch.where(t == 0, loss, mean)
    t = torch.where(threshold.isnan(), t, t + 1)
    smoothed = ratio * loss + (1 - ratio) * smoothed
    mean = (smoothed + t * mean) / (t + 1)
    cumulated = cumulated + (smoothed - mean)
    lowest = torch.minimum(lowest, cumulated)
    return torch.stack([t, smoothed, mean, cumulated, lowest, threshold]), cumulated - lowest > threshold


@register("alera")
class ALERA(StepOptimizer):
    """ALERA, Algorithm 1 without the test (see the module's text for equations and deviations).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: η₀.
        memory: α, in (0, 1).
        gain: C; 0 is plain SGD.
        clip_gradient: largest global norm of the gradient, or None.
        rates_by_tensor: whether to report the rate of each tensor too, as ``learning_rate/<name>`` (Fig. 1).

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    follows_gradient = True
    name = "alera"

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.1,
        memory: float = 0.01,
        gain: float = 3e-6,
        clip_gradient: float | None = None,
        rates_by_tensor: bool = False,
    ) -> None:
        require_positive(f"{self.name}: learning_rate", learning_rate)
        require(f"{self.name}: memory", memory, 0 < memory < 1, "in (0, 1)")
        require(f"{self.name}: gain", gain, 0 <= gain < math.inf, "finite and at least 0")
        require_clip_gradient(self.name, clip_gradient)
        super().__init__(one_group(self.name, model_or_params), {})
        self.learning_rate, self.memory, self.gain = learning_rate, memory, gain
        self.clip_gradient, self.rates_by_tensor = clip_gradient, rates_by_tensor
        self._deviations: Tensor | None = None  # σ(d) of each tensor, on the device

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """Lines 3 to 15 of Algorithm 1 on one batch.

        Vectors of the parameters' size are written in place; a rejected gradient is multiplied by zero.
        """
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        if not state:
            state.update(self._initial(objective))
        loss, gradient = batch.value_and_gradient()
        clip_gradient_(gradient, self.clip_gradient)
        norms = torch.stack(torch._foreach_norm(gradient)).double()
        finite = torch.isfinite(loss) & torch.isfinite(norms).all()
        test, fires = self._watch(loss)
        accepted = finite & ~fires

        alignment = self._update(gradient, norms, accepted)
        direction, norms = self._direction(gradient, norms, accepted)
        sound = finite & ((self._largest_rates() * norms).max() <= torch.finfo(gradient.flat.dtype).max)
        taken, alarm, finite, scalars = self._settle(finite, sound, test, fires)
        self._move(objective, direction, taken, alarm)
        return StepReport(loss, {**self._rates(objective), "alignment": alignment, **scalars}, finite)

    def _initial(self, objective: Objective) -> dict[str, Tensor]:
        growth = torch.zeros(len(objective.parameters), dtype=torch.float64, device=objective.device)
        return {"path": torch.zeros_like(objective.direction(objective.parameters).flat), "growth": growth}

    def _watch(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Lines 3 to 7: the test after this loss, and whether it fires. ALERA has no test."""
        return loss, torch.zeros_like(loss, dtype=torch.bool)

    def _update(self, gradient: Direction, norms: Tensor, accepted: Tensor) -> Tensor:
        """Update p and the rates, eq. 2 and 6; returns the mean of (‖p‖² − μ)/σ(d). Makes the gradient finite."""
        gradient.keep_if(accepted)
        return self._update_rates(self._update_path(gradient, norms, accepted), accepted)

    def _update_path(self, gradient: Direction, norms: Tensor, accepted: Tensor) -> Direction:
        """Update p of each tensor, eq. 2."""
        rounding = _ROUNDING * torch.finfo(gradient.flat.dtype).eps * torch.linalg.vector_norm(norms)
        weights = torch.where(accepted & (norms > rounding), self.memory / norms, 0.0).to(gradient.flat.dtype)
        path = Direction(self.shared["path"].mul_(1 - self.memory * accepted.double()), gradient)
        torch._foreach_addcmul_(path, gradient, list(weights.unbind()))
        return path

    def _update_rates(self, path: Direction, accepted: Tensor) -> Tensor:
        """Update log(η/η₀) of each tensor, eq. 6; returns the mean of (‖p‖² − μ)/σ(d)."""
        squares = torch.stack(torch._foreach_norm(path)).double().square()
        if self._deviations is None:
            self._deviations = squares.new_tensor([paper_deviation(self.memory, p.numel()) for p in path])
        gap = (squares - self.memory / (2 - self.memory)) / self._deviations
        self.shared["growth"] += self.gain * accepted.double() * gap
        return gap.mean()

    def _direction(self, gradient: Direction, norms: Tensor, accepted: Tensor) -> tuple[Direction, Tensor]:
        """Direction that the rates multiply, and the norm of each of its tensors."""
        return gradient, norms

    def _largest_rates(self) -> Tensor:
        """Largest rate of each tensor, or of all tensors."""
        return self.learning_rate * self.shared["growth"].exp()

    def _settle(
        self, finite: Tensor, sound: Tensor, test: Tensor, fires: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Decide whether the step is taken.

        Args:
            finite: whether loss and gradient are finite.
            sound: whether loss, gradient and step are finite.
            test: state of the test after this loss.
            fires: whether the test fires.

        Returns:
            Whether the step is taken, whether there is an alarm, `finite` of the report, and scalars.
        """
        return sound, fires, sound, {}

    def _move(self, objective: Objective, direction: Direction, taken: Tensor, alarm: Tensor) -> None:
        """Move the parameters if the step is taken; may overwrite the direction."""
        rates = torch.where(taken, self.learning_rate * self.shared["growth"].exp(), 0.0)
        steps = list(rates.to(direction.flat.dtype).unbind())
        torch._foreach_addcmul_(objective.parameters, direction, steps, value=-1)

    def _rates(self, objective: Objective) -> dict[str, Tensor]:
        growth = self.shared["growth"]
        mean, low, high = (self.learning_rate * x.exp() for x in self._mean_and_range())
        found = {"learning_rate": mean, "learning_rate_min": low, "learning_rate_max": high}
        if self.rates_by_tensor:
            rates = self.learning_rate * torch.stack([x.mean() for x in self._by_tensor(objective, growth)]).exp()
            found |= {f"learning_rate/{name}": rate for name, rate in zip(objective.names, rates, strict=True)}
        return found

    def _mean_and_range(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, smallest and largest log(η/η₀)."""
        growth = self.shared["growth"]
        return growth.mean(), *growth.aminmax()

    def _by_tensor(self, objective: Objective, growth: Tensor) -> Iterable[Tensor]:
        return growth.unbind()


@register("salera")
class SALERA(ALERA):
    """SALERA, Algorithm 1: ALERA with a Page–Hinkley test and backtracking (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give ρ.
        learning_rate: η₀.
        memory: α, in (0, 1).
        gain: C.
        batch_ratio: ρ, batch size over training-set size; None takes it from the horizon, or 0.01.
        sensitivity: λ; Δ is the first loss divided by it, 10 in the paper's runs.
        clip_gradient: largest global norm of the gradient, or None.
        rates_by_tensor: whether to report the rate of each tensor too, as ``learning_rate/<name>`` (Fig. 1).

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    name = "salera"

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.1,
        memory: float = 0.01,
        gain: float = 3e-6,
        batch_ratio: float | None = None,
        sensitivity: float = _SENSITIVITY,
        clip_gradient: float | None = None,
        rates_by_tensor: bool = False,
    ) -> None:
        require_positive(f"{self.name}: sensitivity", sensitivity)
        holds = batch_ratio is None or 0 < batch_ratio <= 1
        require(f"{self.name}: batch_ratio", batch_ratio, holds, "None or in (0, 1]")
        super().__init__(
            model_or_params,
            learning_rate=learning_rate,
            memory=memory,
            gain=gain,
            clip_gradient=clip_gradient,
            rates_by_tensor=rates_by_tensor,
        )
        default = _BATCH_RATIO if horizon is None else 1 / horizon.steps_per_epoch
        self.batch_ratio = default if batch_ratio is None else batch_ratio
        self.sensitivity = sensitivity

    def _initial(self, objective: Objective) -> dict[str, Tensor]:
        test = torch.tensor([0.0, 0, 0, 0, 0, math.nan], dtype=torch.float64, device=objective.device)
        counts = {"alarms": torch.zeros_like(test[0]), "moved": test[0] != 0, "test": test}
        backup = {"backup": objective.direction(objective.parameters).flat.clone()}
        buffers = {f"buffer/{name}": buffer.clone() for name, buffer in objective.model.named_buffers()}
        return super()._initial(objective) | counts | backup | buffers

    def _watch(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        return page_hinkley(self.shared["test"], loss, self.batch_ratio, self.sensitivity)

    def _settle(
        self, finite: Tensor, sound: Tensor, test: Tensor, fires: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Lines 7 to 15: take the step, or restore the parameters from before the last one."""
        state = self.shared
        before = state["test"]
        curable = finite | state["moved"]  # by smaller rates, or by going back
        alarm = torch.where(sound, fires, curable)
        taken = sound & ~alarm
        restarted = torch.cat([torch.zeros_like(before[:5]), before[5:]])
        state["test"] = torch.where(taken, test, torch.where(alarm, restarted, before))
        state["alarms"] = state["alarms"] + alarm
        state["moved"] = taken
        scalars = {"smoothed_loss": test[1], "deviation": test[3] - test[4], "threshold": test[5]}
        scalars |= {"alarm": alarm.double(), "alarms": state["alarms"]}
        return taken, alarm, sound | curable, scalars

    def _move(self, objective: Objective, direction: Direction, taken: Tensor, alarm: Tensor) -> None:
        self._restore(objective, taken)
        self.shared["growth"] -= alarm.double() * math.log(2)
        super()._move(objective, direction, taken, alarm)

    def _restore(self, objective: Objective, taken: Tensor) -> None:
        """Set parameters and buffers to the backup unless the step is taken, and the backup to them."""
        state = self.shared
        # After an alarm, and before the first step, the backup is where the parameters are.
        backup = Direction(state["backup"], objective.parameters)
        for here, kept in zip(objective.parameters, backup, strict=True):
            torch.where(taken, here, kept, out=kept)
        torch._foreach_copy_(objective.parameters, backup)
        for name, buffer in objective.model.named_buffers():
            kept = torch.where(taken, buffer, state[f"buffer/{name}"])
            buffer.copy_(kept)
            state[f"buffer/{name}"] = kept


@register("spalera")
class SPALERA(SALERA):
    """SPALERA, Algorithm 2: SALERA with one rate for each parameter (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give ρ.
        learning_rate: η₀.
        memory: α, in (0, 1).
        gain: C.
        batch_ratio: ρ, batch size over training-set size; None takes it from the horizon, or 0.01.
        sensitivity: λ; Δ is the first loss divided by it, 10 in the paper's runs.
        clip_gradient: largest global norm of the gradient, or None.
        rates_by_tensor: whether to report the geometric mean of each tensor's rates, as ``learning_rate/<name>``.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    name = "spalera"

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.1,
        memory: float = 0.1,
        gain: float = 3e-8,
        batch_ratio: float | None = None,
        sensitivity: float = _SENSITIVITY,
        clip_gradient: float | None = None,
        rates_by_tensor: bool = False,
    ) -> None:
        super().__init__(
            model_or_params,
            horizon=horizon,
            learning_rate=learning_rate,
            memory=memory,
            gain=gain,
            batch_ratio=batch_ratio,
            sensitivity=sensitivity,
            clip_gradient=clip_gradient,
            rates_by_tensor=rates_by_tensor,
        )
        self._scratch: Tensor | None = None  # memory of one chunk, kept because allocating is slow
        self._growth = torch.zeros(3, dtype=torch.float64)  # mean, smallest and largest log(η/η₀) of this step

    def _initial(self, objective: Objective) -> dict[str, Tensor]:
        found = super()._initial(objective)
        wide = torch.float64 if objective.dtype == torch.float64 else torch.float32
        return found | {"growth": torch.zeros_like(found["path"], dtype=wide)}

    def _update(self, gradient: Direction, norms: Tensor, accepted: Tensor) -> Tensor:
        state, dimension, norm = self.shared, len(gradient.flat), torch.linalg.vector_norm(norms)
        weight = torch.where(accepted & (norm > 0), self.memory / norm, 0.0).to(gradient.flat.dtype)
        mean = self.memory / (2 - self.memory) / dimension
        deviation = paper_deviation(self.memory, dimension) / math.sqrt(dimension)
        gain = self.gain / deviation * accepted.double()
        # Numbers in the dtype of the vectors: each operation on a chunk would convert them.
        keep, factor = ((1 - self.memory * accepted.double()).to(weight.dtype), gain.to(weight.dtype))
        shift = (gain * mean).to(state["growth"].dtype)
        norms_of_path, sums, ranges = [], [], []
        for g, p, growth, scratch in self._chunks(gradient.flat, state["path"], state["growth"]):
            g.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # if it is not accepted, its weight is 0
            p.mul_(keep).addcmul_(g, weight)
            growth.addcmul_(torch.mul(p, factor, out=scratch), p).sub_(shift)
            norms_of_path.append(torch.linalg.vector_norm(p))
            sums.append(growth.sum())
            ranges.append(growth.aminmax())
        low, high = (torch.stack(ends) for ends in zip(*ranges, strict=True))
        self._growth = torch.stack(
            [torch.stack(sums).double().sum() / dimension, low.min().double(), high.max().double()]
        )
        square = torch.linalg.vector_norm(torch.stack(norms_of_path).double()).square()
        return (square / dimension - mean) / deviation

    def _largest_rates(self) -> Tensor:
        return self.learning_rate * self._growth[2].exp()

    def _move(self, objective: Objective, direction: Direction, taken: Tensor, alarm: Tensor) -> None:
        self._restore(objective, taken)
        wide, halving = self.shared["growth"].dtype, alarm.double() * math.log(2)
        log_rate, less = (taken.double().log2() + math.log2(self.learning_rate)).to(wide), halving.to(wide)
        for d, growth, scratch in self._chunks(direction.flat, self.shared["growth"]):
            # exp2 takes half the time of exp.
            d.mul_(torch.add(log_rate, growth.sub_(less), alpha=math.log2(math.e), out=scratch).exp2_())
        torch._foreach_sub_(objective.parameters, direction)
        self._growth = self._growth - halving

    def _chunks(self, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Divide vectors into chunks, so that the operations on one find it in the cache.

        Yields:
            A chunk of each vector, and memory of its size.
        """
        size = min(_CHUNKS * chunk_size(vectors[0]), len(vectors[0]))
        if self._scratch is None:
            self._scratch = torch.empty_like(self.shared["growth"][:size])
        for chunks in zip(*(vector.split(size) for vector in vectors), strict=True):
            yield *chunks, self._scratch[: len(chunks[0])]

    def _mean_and_range(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, low, high = self._growth
        return mean, low, high

    def _by_tensor(self, objective: Objective, growth: Tensor) -> Iterable[Tensor]:
        return Direction(growth, objective.parameters)
