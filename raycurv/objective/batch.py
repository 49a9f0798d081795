"""One mini-batch and what may be asked of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from raycurv.curvature import ForwardTape, Tape
from raycurv.curvature.norms import SynchronisedBatchNorm
from raycurv.objective.checks import check_batch, tensor_of
from raycurv.objective.direction import Direction
from raycurv.objective.forward import Generators, finished, kept_buffers, leaves_of, recording
from raycurv.objective.linearisation import Linearisation, Taylor, taylor_of
from raycurv.objective.micro_batches import (
    MicroBatchedLinearisation,
    curvature_samples,
    micro_batches,
    split,
    summed_gradient,
)

if TYPE_CHECKING:
    from raycurv.objective.objective import Objective


class Batch:
    """One mini-batch. Ask it in any order; every question sees the same dropout mask and batch statistics."""

    def __init__(self, objective: Objective, inputs: Any, targets: Tensor, *, is_part: bool = False) -> None:
        if not is_part:
            check_batch(objective, inputs, targets)
        self.objective = objective
        self.parts: list[Batch] = []  # if there are some, every answer is the sum of theirs
        self.samples = len(targets)
        self.empty = self.samples == 0
        if self.empty:
            # One blank sample of weight 0: models need not cope with a batch of none.
            inputs = pytree.tree_map(lambda x: x.new_zeros((1, *x.shape[1:])), inputs)
            targets = targets.new_zeros((1, *targets.shape[1:]))
        self.inputs, self.targets = inputs, targets
        self.sample_weights = self._sample_weights()
        self._generators: Generators | None = None  # taken at the first question
        if objective.micro_batch is not None and not is_part:
            split(self, micro_batches(self, objective.micro_batch))

    # --- questions -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def value(self) -> Tensor:
        """J(Θ), 0-d float64."""
        return self._means(self._loss_sum_at(None))[0] + self._l2_value()

    @torch.no_grad()
    def error(self) -> Tensor:
        """Share of the samples whose largest output is not their class, 0-d float64; NaN without classes."""
        return self._means(torch.stack([part._wrong() for part in self.parts or [self]]).sum())[0]

    def gradient(self) -> Direction:
        """∇J(Θ), in the order of the parameters."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[Tensor, Direction]:
        """J(Θ) and ∇J(Θ), from one forward and one backward pass."""
        if self.parts:
            loss, gradient = summed_gradient(self)
        else:
            linear = self.linearise(record=False)
            gradient = linear.pull(linear.gradient)
            loss = linear.means()[0]
        if self.objective.l2:
            gradient.flat.add_(self.objective.l2_gradient(self.objective.parameters).flat)
        return loss + self._l2_value(), gradient

    @torch.no_grad()
    def values_along(self, direction: Sequence[Tensor], steps: Sequence[float] | Tensor) -> Tensor:
        """J(Θ + t·direction) for every t of `steps`, float64, in one all-reduce."""
        d = self.objective.direction(direction)
        sums, l2 = [], []
        for step in steps:
            moved = self._moved(d, step)
            sums.append(self._loss_sum_at(moved))
            l2.append(self.objective.l2_value(moved))
        return self._means(*sums) + torch.stack(l2)

    def taylor_along(self, direction: Sequence[Tensor], at: float | Tensor = 0.0) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction` at Θ + at·direction, as global means.

        The second derivative of a sample's loss is exact; batch statistics move along the path.
        """
        d = self.objective.direction(direction)
        moved = None if isinstance(at, (int, float)) and at == 0 else self._moved(d, at)
        points = self.objective.parameters if moved is None else moved
        sums = [torch.stack(part._taylor_sums(d, moved)) for part in self.parts or [self]]
        return taylor_of(self.objective, self._means(*torch.stack(sums).sum(0)), points, d)

    def curvature_along(self, direction: Sequence[Tensor]) -> Tensor:
        """Mean over the samples of |d²/dt² J_s(Θ + t·direction)|, not divided by ‖direction‖²; 0-d float64."""
        return self.taylor_along(direction).absolute_curvature

    def linearise(
        self,
        direction: Sequence[Tensor] | None = None,
        *,
        points: Sequence[Tensor] | None = None,
        record: bool = True,
        fraction: float = 1.0,
    ) -> Linearisation:
        """One forward pass, kept so that cotangents can be pulled back through it and tangents pushed forward.

        Args:
            direction: a first direction to push, whose result is ``.tangent``.
            points: take these values in place of the parameters (then nothing can be pulled).
            record: False if nothing will be pushed.
            fraction: of this worker's samples, the first ones, of which tangents are wanted; the gradient is of all
                samples. From then on the batch is answered as these samples and the others apart, so that batch
                normalisation takes the statistics of each.

        Raises:
            ValueError: `fraction` is not in (0, 1].
            RuntimeError: `fraction` is below 1 and something has been asked of the undivided batch before.
        """
        if points is None and (self.parts or fraction != 1):
            return MicroBatchedLinearisation(self, curvature_samples(self, fraction), direction, record=record)
        tape = Tape(self.objective.parameters if points is None else points) if record else None
        outputs, ticket = self._tracked_forward(tape, points)
        linear = Linearisation(self, tape, outputs, ticket)
        if direction is not None:
            linear.tangent = linear.push(direction)
        return linear

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, for methods that go back."""
        return {name: tensor.detach().clone() for name, tensor in _state(self.objective.model)}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Bring the parameters and buffers of a snapshot back."""
        for name, tensor in _state(self.objective.model):
            tensor.copy_(snapshot[name])

    @torch.no_grad()
    def in_double(self) -> Batch:
        """This batch in float64: a copy of the model, inputs and targets, for differences that float32 would drown.

        Questions about it see the same dropout mask, where the device draws the same numbers for float64, and move the
        copy's running statistics alone.
        """
        objective = self.objective
        if objective.dtype == torch.float64:
            return self
        twin = type(objective)(
            copy.deepcopy(objective.model).double(), objective.loss.function, objective.l2, weights=objective.weights,
            collectives=objective.collectives, micro_batch=objective.micro_batch,
        )  # fmt: skip
        twin.covered = objective.covered

        def wide(x: Tensor) -> Tensor:
            return x[: self.samples].double() if x.is_floating_point() else x[: self.samples]

        batch = twin.batch(pytree.tree_map(wide, self.inputs), wide(self.targets))
        batch._generators = self._generators
        for copied, part in zip(batch.parts, self.parts, strict=True):
            copied._generators = part._generators
        return batch

    # --- one forward pass ------------------------------------------------------------------------------------------

    def _forward(self, points: Sequence[Tensor] | None, tape: Tape | None = None) -> Tensor:
        """Outputs at the parameters or at other points, without DDP."""
        objective = self.objective
        with self._question(tape):
            if points is None:
                return objective._traced.run(self.inputs)
            replaced = dict(zip(objective.names, points, strict=True))
            return tensor_of(functional_call(objective.model, replaced, (self.inputs,), tie_weights=True))

    def _tracked_forward(self, tape: Tape | None, points: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
        """Outputs with a graph; with several workers through DDP, with the ticket that carries the batch's weight."""
        objective = self.objective
        with torch.enable_grad():
            if points is not None:
                return self._traced_at(tape, points), None
            if objective.collectives.size == 1:
                return self._forward_recorded(tape), None
            module = objective._distributed(self)
            with self._question(tape):
                objective._traced.tape = tape
                try:
                    answer = module(self.inputs)
                finally:
                    objective._traced.tape = None
                objective._traced.armed = True
                return answer

    def _alone(self, *, record: bool) -> Linearisation:
        """A linearisation of these samples that no other worker takes part in when it is pulled."""
        tape = Tape(self.objective.parameters) if record else None
        with torch.enable_grad():
            return Linearisation(self, tape, self._forward_recorded(tape), None)

    def _taylor_sums(self, direction: Direction, moved: list[Tensor] | None) -> list[Tensor]:
        """What :meth:`Linearisation.taylor_sums` says, at the parameters or at other points."""
        tape = ForwardTape(self.objective.parameters if moved is None else moved, direction)
        with torch.enable_grad():
            outputs = self._forward_recorded(tape) if moved is None else self._traced_at(tape, moved)
        with torch.no_grad():
            return Linearisation(self, None, outputs, None).sums_along(direction, tape.first, tape.second)

    def _forward_recorded(self, tape: Tape | None) -> Tensor:
        with self._question(tape), recording(tape):
            outputs = self.objective._traced.run(self.inputs)
        return finished(tape, outputs)

    def _traced_at(self, tape: Tape | None, points: Sequence[Tensor]) -> Tensor:
        leaves = [point.requires_grad_() for point in points]
        with self._question(tape), recording(tape):
            replaced = dict(zip(self.objective.names, leaves, strict=True))
            outputs = tensor_of(functional_call(self.objective.model, replaced, (self.inputs,), tie_weights=True))
        return finished(tape, outputs)

    @contextlib.contextmanager
    def _question(self, tape: Tape | None) -> Iterator[None]:
        """The same random numbers for every question, running statistics that move at the first alone."""
        objective, first = self.objective, self._generators is None
        if self._generators is None:
            self._generators = Generators(objective.device)
        torch.clear_autocast_cache()  # it would serve the casted weights of before the last step
        with contextlib.ExitStack() as stack:
            if not first:
                stack.enter_context(self._generators.replayed())
                stack.enter_context(kept_buffers(objective.model))
            if objective.collectives.size > 1:
                stack.enter_context(SynchronisedBatchNorm(objective.collectives.sum, empty=self.empty, tape=tape))
            if tape is not None:
                # The fused attention kernels have no forward-mode rule.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def _has_unused_parameters(self) -> bool:
        """Whether a parameter does not take part in this batch; the question leaves no trace."""
        self._generators, kept = Generators(self.objective.device), self._generators
        with torch.enable_grad():
            outputs = self._forward(None)
        self._generators = kept
        reached = leaves_of(outputs)
        return any(id(parameter) not in reached for parameter in self.objective.parameters)

    # --- sums over the batch ---------------------------------------------------------------------------------------

    def _sample_weights(self) -> Tensor:
        weights = self.objective.weights
        if self.empty:
            return torch.zeros(1, dtype=torch.float64, device=self.targets.device)
        if weights is None:
            return torch.ones(len(self.targets), dtype=torch.float64, device=self.targets.device)
        found = weights(self.targets)
        if found.shape != (self.samples,):
            raise ValueError(f"weights(targets) must have shape ({self.samples},), not {tuple(found.shape)}")
        return found.double()

    def _loss_sum_at(self, points: Sequence[Tensor] | None) -> Tensor:
        if self.parts:
            return torch.stack([part._loss_sum_at(points) for part in self.parts]).sum()
        return self._loss_sum(self._forward(points))

    def _loss_sum(self, outputs: Tensor) -> Tensor:
        return self._weighted(self.objective.loss.values(outputs, self.targets))

    def _wrong(self) -> Tensor:
        """How many of this worker's samples are not told right, by their weights, 0-d float64."""
        outputs = self._forward(None)
        if outputs.ndim != 2 or self.targets.ndim != 1 or self.targets.is_floating_point():
            return torch.full((), torch.nan, dtype=torch.float64, device=outputs.device)
        return self._weighted(outputs.argmax(1) != self.targets)

    def _weighted(self, per_sample: Tensor) -> Tensor:
        """Σ w·x over this worker's samples, float64; what a weight of 0 covers does not count even if it is NaN."""
        w = self.sample_weights
        return torch.where(w != 0, w * per_sample.double(), 0.0).sum()

    def _means(self, *sums: Tensor) -> Tensor:
        """Local sums to global weighted means, in one all-reduce."""
        stacked = torch.stack([*(s.double() for s in sums), self.sample_weights.sum()])
        stacked = self.objective.collectives.sum(stacked)
        return stacked[:-1] / stacked[-1]

    def _l2_value(self) -> Tensor:
        return self.objective.l2_value(self.objective.parameters)

    def _moved(self, direction: Direction, step: float | Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [p + step * d for p, d in zip(self.objective.parameters, direction, strict=True)]


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
