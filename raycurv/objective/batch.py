"""A mini-batch, and the questions that an optimizer asks about it."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from raycurv.curvature import ForwardTape, PushingTape, Tape
from raycurv.curvature.synchronised_batch_norm import SynchronisedBatchNorm
from raycurv.objective.collectives import Local
from raycurv.objective.consistency import FirstPass
from raycurv.objective.direction import Direction
from raycurv.objective.forward import RandomState, buffers_restored, finished, finite_statistics, recording
from raycurv.objective.hidden_state import Values
from raycurv.objective.linearisation import Linearisation, Taylor, taylor_of
from raycurv.objective.loss_scale import direction_factor, uses_float16
from raycurv.objective.micro_batches import (
    MicroBatchedLinearisation,
    divide,
    divide_for_curvature,
    micro_batch_sizes,
    summed_gradient,
)
from raycurv.objective.operations import question
from raycurv.objective.partial_linearisation import PartialLinearisation, row_tape
from raycurv.objective.requirements import check_batch

if TYPE_CHECKING:
    from raycurv.objective.objective import Objective


class Batch:
    """One mini-batch of an objective, made by :meth:`Objective.batch`.

    Questions may come in any order and number. All see the same dropout mask and the same batch statistics. Running
    statistics move once, at the first question.

    With several workers, a batch is this worker's share of the global batch. Every worker must ask the same questions
    in the same order, and every answer is global.

    Args:
        objective: the objective.
        inputs: tensor or pytree of tensors, (B, …) each.
        targets: (B, …).
        is_micro_batch: whether it belongs to another batch, which has been checked.

    Attributes:
        objective: the objective.
        inputs: inputs of this worker's share; one blank sample if it is empty.
        targets: targets of this worker's share, one blank target if it is empty.
        samples: number of samples in this worker's share, B.
        empty: whether the share has no sample and a blank one of weight 0 takes its place.
        sample_weights: weight of each sample, (B,) float64.
        micro_batches: micro-batches whose answers are summed; an empty list if the batch is undivided.
        lowered: whether a gradient overflowed in float16 and the objective's `loss_scale` was halved for it, 0-d bool;
            None before the first gradient, and without float16.
        in_one_pass: whether curvature from a fraction of the samples comes from the forward pass of all of them.
    """

    def __init__(self, objective: Objective, inputs: Any, targets: Tensor, *, is_micro_batch: bool = False) -> None:
        if not is_micro_batch:
            check_batch(objective, inputs, targets)
        self.objective = objective
        self.micro_batches: list[Batch] = []
        self.samples = len(targets)
        self.empty = self.samples == 0
        if self.empty:
            # One blank sample of weight 0: models need not accept a batch without samples.
            inputs = pytree.tree_map(lambda x: x.new_zeros((1, *x.shape[1:])), inputs)
            targets = targets.new_zeros((1, *targets.shape[1:]))
        self.inputs, self.targets = inputs, targets
        self._shapes = tuple(leaf.shape for leaf in pytree.tree_leaves(inputs))
        blank = torch.zeros(1, dtype=torch.float64, device=targets.device)
        self.sample_weights = blank if self.empty else objective.sample_weights(targets)
        self.in_one_pass = False
        self._random_state: RandomState | None = None  # saved at the first question
        self._hidden_values: Values = {}  # of the model's hidden state, before the first question
        self.lowered: Tensor | None = None
        if objective.micro_batch is not None and not is_micro_batch:
            divide(self, micro_batch_sizes(self, objective.micro_batch))

    # --- questions -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def value(self) -> Tensor:
        """J(Θ), 0-d float64, from one forward pass."""
        return self.means(self._loss_sum_at(None))[0] + self._l2_value()

    @torch.no_grad()
    def error(self) -> Tensor:
        """Fraction of samples whose largest output is not their class, 0-d float64; NaN without classes."""
        return self.means(torch.stack([batch._error_sum() for batch in self._undivided()]).sum())[0]

    def gradient(self) -> Direction:
        """∇J(Θ), one tensor per parameter, from one forward and one backward pass."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[Tensor, Direction]:
        """J(Θ), 0-d float64, and ∇J(Θ), one tensor per parameter, from one forward and one backward pass."""
        if self.micro_batches:
            loss, gradient = summed_gradient(self)
        else:
            linear = self.linearise(record=False)
            gradient = linear.pull(linear.gradient)
            loss = linear.loss()
        if self.objective.l2:
            gradient.flat.add_(self.objective.l2_gradient(self.objective.parameters).flat)
        return loss + self._l2_value(), gradient

    @torch.no_grad()
    def values_along(self, direction: Sequence[Tensor], steps: Sequence[float] | Tensor) -> Tensor:
        """J(Θ + t·direction) for every t of `steps`, (len(steps),) float64, in one all-reduce.

        Args:
            direction: one tensor per parameter.
            steps: values of t; a tensor stays on its device.

        Raises:
            ValueError: the number or the shapes of the tensors in `direction` are not those of the parameters.
        """
        d = self.objective.direction(direction)
        sums, l2 = [], []
        for step in steps:
            moved = self._moved(d, step)
            sums.append(self._loss_sum_at(moved))
            l2.append(self.objective.l2_value(moved))
        return self.means(*sums) + torch.stack(l2)

    def taylor_along(self, direction: Sequence[Tensor], at: float | Tensor = 0.0) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction` at Θ + at·direction.

        One forward pass that keeps no activations. The second derivative of each sample's loss is exact; batch
        statistics depend on t as the samples do.

        Args:
            direction: one tensor per parameter.
            at: the t at which derivatives are taken; a tensor stays on its device.

        Raises:
            ValueError: the number or the shapes of the tensors in `direction` are not those of the parameters.
            UnsupportedOperator: an operator of the model has no derivative rule.
        """
        d = self.objective.direction(direction)
        moved = None if isinstance(at, (int, float)) and at == 0 else self._moved(d, at)
        sums = [torch.stack(batch.taylor_sums(d, moved)) for batch in self._undivided()]
        points = self.objective.parameters if moved is None else moved
        return taylor_of(self.objective, self.means(*torch.stack(sums).sum(0)), points, d)

    def curvature_along(self, direction: Sequence[Tensor]) -> Tensor:
        """Mean over the samples of |d²/dt² J_s(Θ + t·direction)| at t = 0, 0-d float64.

        It is not divided by ‖direction‖².
        """
        return self.taylor_along(direction).absolute_curvature

    def linearise(
        self, direction: Sequence[Tensor] | None = None, *, record: bool = True, fraction: float = 1.0
    ) -> Linearisation:
        """One forward pass whose activations are kept, for products with J_φ and H_L.

        Args:
            direction: a first direction to push; the result is ``.tangent``.
            record: False if nothing will be pushed later.
            fraction: fraction of this worker's samples, the first ones, whose tangents are wanted. The gradient is
                that of all samples. Below 1, they take one forward pass if the model works on each sample alone
                (:func:`~raycurv.objective.partial_linearisation.row_tape`). Otherwise this divides the batch into these
                samples and the others for all questions that follow, so that batch normalisation takes the statistics
                of each.

        Raises:
            ValueError: `fraction` is not in (0, 1].
            RuntimeError: `fraction` is below 1 and the undivided batch has been asked before.
            UnsupportedOperator: an operator of the model has no derivative rule.
        """
        if fraction != 1 and (rows := row_tape(self, fraction)) is not None:
            with torch.enable_grad():
                linear: Linearisation = PartialLinearisation(self, self.outputs(tape=rows), rows)
            if direction is not None:
                linear.tangent = linear.push(direction)
            return linear
        if self.micro_batches or fraction != 1:
            return MicroBatchedLinearisation(self, divide_for_curvature(self, fraction), direction, record=record)
        data_parallel, factor = self.objective.data_parallel, None
        if data_parallel is None:
            linear = self.local_linearisation(record=record)
        else:
            scaled, factor = self.scaled_direction(direction, self.loss_scale())
            tape, first = self._tape(scaled) if record else None, self._first_pass(None)
            with torch.enable_grad():
                outputs, carrier = data_parallel.forward(self, tape)
            if first is not None:
                first.compare(outputs)
            linear = Linearisation(self, outputs, tape, carrier=carrier)
        if direction is not None:
            linear.tangent = linear.first_tangent(direction, factor)
        return linear

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers by name, for :meth:`restore`."""
        return {name: tensor.detach().clone() for name, tensor in _state(self.objective.model)}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Set the parameters and buffers to those of a snapshot."""
        for name, tensor in _state(self.objective.model):
            tensor.copy_(snapshot[name])

    @torch.no_grad()
    def in_double(self) -> Batch:
        """This batch in float64, for differences too small for float32: a copy of model, inputs and targets.

        Questions about it see the same dropout mask, if the device draws the same numbers in float64. Only the copy's
        running statistics move.
        """
        objective = self.objective
        if objective.dtype == torch.float64:
            return self

        def wide(x: Tensor) -> Tensor:
            return x[: self.samples].double() if x.is_floating_point() else x[: self.samples]

        batch = objective.in_double().batch(pytree.tree_map(wide, self.inputs), wide(self.targets))
        for copied, original in zip([batch, *batch.micro_batches], [self, *self.micro_batches], strict=True):
            copied._random_state, copied._hidden_values = original._random_state, original._hidden_values
        return batch

    # --- building blocks of the questions, also for optimizers that need other products -----------------------------

    @property
    def asked(self) -> bool:
        """Whether a question has been asked."""
        return self._random_state is not None

    def outputs(self, points: Sequence[Tensor] | None = None, tape: Tape | None = None) -> Tensor:
        """Outputs of the model for this worker's undivided share, (B, …), with a graph if gradients are enabled.

        Args:
            points: values in place of the parameters; None is the parameters themselves.
            tape: tape that records the forward pass.
        """
        compiled = self.objective.compiled_steps
        if compiled is not None and tape is None and not torch.is_grad_enabled():
            found = compiled.outputs(self, points)
            if found is not None:
                return found
        first = self._first_pass(points)
        with self.counted("forward", type(tape).__name__):
            with self.forward_context(tape), recording(tape):
                outputs = self.objective.outputs(self.inputs, points)
            outputs = finished(tape, outputs)
        if first is not None:
            first.compare(outputs)
        return outputs

    def repeated_outputs(self, points: Sequence[Tensor] | None = None) -> Tensor:
        """Outputs of another forward pass after the first one, which leaves no trace."""
        with self.forward_context(None):
            return self.objective.outputs(self.inputs, points)

    def local_linearisation(self, *, record: bool) -> Linearisation:
        """A linearisation of this worker's undivided share, which DDP takes no part in."""
        compiled = self.objective.compiled_steps
        if compiled is not None:
            return compiled.linearise(self, record=record)
        return Linearisation(self, *self.recorded_outputs(record=record))

    def recorded_outputs(self, *, record: bool) -> tuple[Tensor, Tape | None]:
        """Outputs of this worker's undivided share with their graph, and the tape if there is one."""
        tape = Tape(self.objective.parameters) if record else None
        with torch.enable_grad():
            return self.outputs(tape=tape), tape

    def taylor_sums(self, direction: Direction, points: Sequence[Tensor] | None) -> list[Tensor]:
        """:meth:`Linearisation.taylor_sums` of this worker's undivided share, without kept activations.

        Args:
            direction: one tensor per parameter.
            points: values in place of the parameters; None is the parameters themselves.
        """
        compiled = self.objective.compiled_steps
        scaled, factor = self.scaled_direction(direction, self.loss_scale())
        found = None if compiled is None else compiled.derivatives_along(self, scaled, points)
        if found is not None:
            with torch.no_grad():
                return Linearisation(self, found[0]).sums_along(direction, *found[1:], factor)
        leaves = None if points is None else [point.requires_grad_() for point in points]
        tape = ForwardTape(self.objective.parameters if leaves is None else leaves, scaled)
        with torch.enable_grad():
            outputs = self.outputs(leaves, tape)
        with torch.no_grad():
            return Linearisation(self, outputs).sums_along(direction, tape.first, tape.second, factor)

    def loss_scale(self) -> Tensor | None:
        """The scale of cotangents, 0-d float32; None where no pass runs in float16."""
        objective = self.objective
        if not uses_float16(objective.device, objective.dtype):
            return None
        return objective.loss_scale.at(objective.device)

    def scaled_direction(self, direction: Any, scale: Tensor | None) -> tuple[Any, Tensor | None]:
        """A direction as the passes take it, and the factor by which it was multiplied; None is 1.

        Args:
            direction: one tensor or None per parameter; None is no direction.
            scale: the scale of cotangents; None leaves the direction as it is.
        """
        if scale is None or direction is None:
            return direction, None
        factor = direction_factor(direction, self.objective.parameters, scale)
        if isinstance(direction, Direction):
            return Direction(direction.flat * factor, direction), factor
        return [None if tensor is None else tensor * factor for tensor in direction], factor

    def watched(self, gradient: Direction) -> Direction:
        """The gradient, after the objective's scale has been adapted to it where passes run in float16."""
        objective = self.objective
        if uses_float16(objective.device, objective.dtype):
            lowered = objective.loss_scale.update(gradient.flat)
            self.lowered = lowered if self.lowered is None else self.lowered | lowered
        return gradient

    def is_sound(self, finite: Tensor, loss: Tensor) -> Tensor:
        """Whether a step was finite, or its gradient overflowed in float16 and the next one is scaled by less.

        Args:
            finite: whether the step was finite, 0-d bool.
            loss: loss of the batch, 0-d; one that is not finite is no matter of scales.
        """
        return finite if self.lowered is None else finite | (self.lowered & torch.isfinite(loss))

    def loss_sum(self, outputs: Tensor) -> Tensor:
        """Σ w·ℓ of this worker's samples for these outputs, 0-d float64."""
        return self.weighted_sum(self.objective.loss.values(outputs, self.targets))

    def weighted_sum(self, per_sample: Tensor) -> Tensor:
        """Σ w·x over this worker's samples, 0-d float64; samples of weight 0 do not count even if they are NaN."""
        w = self.sample_weights
        return torch.where(w != 0, w * per_sample.double(), 0.0).sum()

    def means(self, *sums: Tensor) -> Tensor:
        """Weighted means over the samples of all workers from 0-d local sums, (len(sums),) float64."""
        return self.global_mean(torch.stack([s.double() for s in sums]))

    def global_mean(self, local_sum: Tensor) -> Tensor:
        """A vector of local sums divided by Σw, both summed over the workers in one all-reduce; may be in place."""
        weight = self.sample_weights.sum().to(local_sum.dtype)
        collectives = self.objective.collectives
        if collectives.size == 1:
            return local_sum.div_(weight)
        summed = collectives.sum(torch.cat([local_sum, weight.view(1)]))
        return summed[:-1] / summed[-1]

    @contextlib.contextmanager
    def forward_context(self, tape: Tape | None) -> Iterator[None]:
        """Context of every forward pass: the same random numbers; buffers that move at the first pass only."""
        objective, first = self.objective, self._random_state is None
        hidden = objective.hidden_state
        if self._random_state is None:
            self._random_state = RandomState(objective.device)
            self._hidden_values = hidden.get()
        torch.clear_autocast_cache()  # it would return weights that were cast before the last step
        with contextlib.ExitStack() as stack:
            # What torch.jit optimises once, it executes out of a tape's sight ever after.
            stack.enter_context(optimized_execution(False))
            if first:
                stack.enter_context(finite_statistics(objective.model))
            else:
                stack.enter_context(self._random_state.replayed())
                stack.enter_context(buffers_restored(objective.model))
                stack.enter_context(hidden.replayed(self._hidden_values))
            stack.enter_context(self._batch_norm(tape, first=first))
            if tape is not None and objective.device.type != "cpu":
                # Fused kernels draw dropout that no rule knows. That of the CPU does not, and is kept: another kernel
                # has outputs of another layout, for which later layers draw other dropout masks.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
        if first:
            self._hidden_values = hidden.keep_moved(self._hidden_values)

    def counted(self, *kind: Hashable) -> contextlib.AbstractContextManager[None]:
        """Context whose operations count as a question of this kind about inputs of these shapes."""
        return question(self.objective.operations, *kind, self._shapes)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context of forward passes that leave no trace: neither in random numbers nor in buffers."""
        saved = self._random_state, self._hidden_values
        self._random_state, self._hidden_values = RandomState(self.objective.device), self.objective.hidden_state.get()
        try:
            yield
        finally:
            self._random_state, self._hidden_values = saved

    def part_of_same_pass(self, inputs: Any, targets: Tensor) -> Batch:
        """Some of the samples as a batch that shares this one's random numbers, for the products of its pass."""
        part = type(self)(self.objective, inputs, targets, is_micro_batch=True)
        part._random_state, part._hidden_values = self._random_state, self._hidden_values
        return part

    def _tape(self, direction: Sequence[Tensor] | None) -> Tape:
        """A tape that pushes a first direction where that saves rounds of synchronised batch normalisation."""
        objective = self.objective
        if direction is None or not objective.sums_batch_statistics:
            return Tape(objective.parameters)
        return PushingTape(objective.parameters, direction)

    def _batch_norm(self, tape: Tape | None, *, first: bool) -> contextlib.AbstractContextManager[Any]:
        """Context of batch normalisation with several workers."""
        collectives = self.objective.collectives
        if collectives.size == 1:
            return contextlib.nullcontext()
        if self.objective.batch_norm == "synchronised":
            return SynchronisedBatchNorm(collectives.sum, empty=self.empty, tape=tape)
        if self.samples > 1:
            return contextlib.nullcontext()
        return self._batch_norm_of_one_sample(tape, moves=first and not self.empty)

    @contextlib.contextmanager
    def _batch_norm_of_one_sample(self, tape: Tape | None, *, moves: bool) -> Iterator[None]:
        """Context of a share of one sample, which torch may refuse to normalise, or of a blank one.

        Args:
            tape: tape that records the forward pass.
            moves: whether running statistics move; a blank sample never moves them.
        """
        kept = contextlib.nullcontext() if moves else buffers_restored(self.objective.model)
        with kept, SynchronisedBatchNorm(Local().sum, tape=tape):
            yield

    def _first_pass(self, points: Sequence[Tensor] | None) -> FirstPass | None:
        """What the check of a model needs before its first forward pass; None where it is not checked."""
        objective = self.objective
        new = objective.check_consistency and not self.asked and objective.hidden_state.unknown
        return FirstPass(self, points) if new else None

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _undivided(self) -> list[Batch]:
        """The micro-batches, or the batch itself."""
        return self.micro_batches or [self]

    def _loss_sum_at(self, points: Sequence[Tensor] | None) -> Tensor:
        if self.micro_batches:
            return torch.stack([batch._loss_sum_at(points) for batch in self.micro_batches]).sum()
        return self.loss_sum(self.outputs(points))

    def _error_sum(self) -> Tensor:
        outputs = self.outputs()
        if outputs.ndim != 2 or self.targets.ndim != 1 or self.targets.is_floating_point():
            return torch.full((), torch.nan, dtype=torch.float64, device=outputs.device)
        return self.weighted_sum(outputs.argmax(1) != self.targets)

    def _l2_value(self) -> Tensor:
        return self.objective.l2_value(self.objective.parameters)

    def _moved(self, direction: Direction, step: float | Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [p + step * d for p, d in zip(self.objective.parameters, direction, strict=True)]


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
