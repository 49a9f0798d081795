"""The objective J(Θ) = Σ w ℓ / Σ w + l2/2·‖Θ‖² and its mini-batches: the questions an optimizer may ask.

Every answer is global: the same on each worker, for any number of workers. What goes wrong otherwise is owned here. All
questions about one batch see the same dropout mask; running statistics move once per batch; an uneven last batch is
weighted; a
worker whose share is empty takes part with weight 0; batch normalisation uses the statistics of the global batch.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from raycurv.collectives import Collectives, Local
from raycurv.curvature import Tape
from raycurv.curvature.losses import Loss, LossAt, LossFunction
from raycurv.curvature.norms import SynchronisedBatchNorm
from raycurv.directions import Direction

Covers = Literal["all", "weights"] | Callable[[str, nn.Parameter], bool]


@dataclass(frozen=True)
class Taylor:
    """Global means along a direction, 0-d float64 tensors: t ↦ J(Θ + t·direction).

    Attributes:
        value: J.
        slope: dJ/dt.
        curvature: d²J/dt².
        absolute_curvature: mean over the samples of |d²J_s/dt²|, J_s being a sample's loss with the L2 term.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor
    absolute_curvature: Tensor


class Objective:
    """A model, a loss per sample and an L2 term.

    Args:
        model: called as ``model(inputs)``; returns one tensor whose first dimension is the batch.
        loss: ``"cross_entropy"``, ``"squared_error"``, or a function of (outputs, targets) returning (B,).
        l2: factor of ½‖Θ‖².
        weights: ``weights(targets)`` (B,) for samples that count differently.
        collectives: how numbers become global; one process by default.
        l2_covers: which parameters the L2 term covers: ``"all"`` (the papers'), ``"weights"`` (two or more
            dimensions, so neither
            biases nor the scales of normalisations), or a function of (name, parameter).

    Attributes:
        parameters: the trainable parameters, in the order of ``model.parameters()``; directions follow it.

    Raises:
        TypeError: `model` is no module, or a trainable parameter is not real and floating.
        ValueError: no trainable parameter, parameters of several devices or dtypes, or a bad `l2`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        l2: float = 0.0,
        *,
        weights: Callable[[Tensor], Tensor] | None = None,
        collectives: Collectives | None = None,
        l2_covers: Covers = "all",
    ) -> None:
        self.model = model
        self.loss = Loss(loss)
        named = _trainable(model)
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        if not 0 <= l2 < float("inf"):
            raise ValueError(f"l2 is {l2!r}; it must be a finite number of at least 0")
        self.l2 = l2
        self.covered = [_covers(l2_covers, name, parameter) for name, parameter in named]
        self.weights = weights
        self.collectives: Collectives = collectives if collectives is not None else Local()
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self._traced = _Traced(model, self)
        self._wrapped: nn.Module | None = None
        self.unused_parameters = False

    def batch(self, inputs: Any, targets: Tensor) -> Batch:
        """This worker's share of one global batch.

        Args:
            inputs: a tensor or any pytree of tensors, (B, …) each.
            targets: (B, …). B may be 0 where there are several workers.

        Raises:
            TypeError: `targets` or a leaf of `inputs` is no tensor.
            ValueError: the first dimensions differ, or a single worker has no sample.
        """
        return Batch(self, inputs, targets)

    def direction(self, tensors: Iterable[Tensor | None]) -> Direction:
        """Tensors in the order of the parameters as one direction; None is zero."""
        return Direction.of(tensors, self.parameters)

    def l2_gradient(self, at: Sequence[Tensor]) -> Direction:
        """The gradient of the L2 term at these values, which is also its Hessian times them: l2·Θ where covered."""
        masked = [x if covered else None for x, covered in zip(at, self.covered, strict=True)]
        return Direction.of(masked, self.parameters).scaled(self.l2)

    @torch.no_grad()
    def l2_value(self, at: Sequence[Tensor]) -> Tensor:
        """l2/2·‖Θ‖² at these values, 0-d float64."""
        if self.l2 == 0:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        norms = torch._foreach_norm([x for x, covered in zip(at, self.covered, strict=True) if covered])
        return 0.5 * self.l2 * torch.stack(norms).double().square().sum()

    def _distributed(self, batch: Batch) -> nn.Module:
        """The traced model in DDP, made at the first batch, when it is known which parameters the model uses."""
        if self._wrapped is None:
            if self.collectives.size == 1:
                self._wrapped = self._traced
            else:
                # The workers must agree, or they would wait for different all-reduces.
                found = torch.tensor(float(batch._has_unused_parameters()), device=self.device)
                self.unused_parameters = bool(self.collectives.sum(found) > 0)
                self._wrapped = self.collectives.wrap(self._traced, find_unused_parameters=self.unused_parameters)
        return self._wrapped


class Batch:
    """One mini-batch. Ask it in any order; every question sees the same dropout mask and batch statistics."""

    def __init__(self, objective: Objective, inputs: Any, targets: Tensor) -> None:
        _check_batch(objective, inputs, targets)
        self.objective = objective
        self.samples = len(targets)
        self.empty = self.samples == 0
        if self.empty:
            # One blank sample of weight 0: models need not cope with a batch of none.
            inputs = pytree.tree_map(lambda x: x.new_zeros((1, *x.shape[1:])), inputs)
            targets = targets.new_zeros((1, *targets.shape[1:]))
        self.inputs, self.targets = inputs, targets
        self.sample_weights = self._sample_weights()
        self._generators: _Generators | None = None  # taken at the first question

    # --- questions -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def value(self) -> Tensor:
        """J(Θ), 0-d float64."""
        return self._means(self._loss_sum(self._forward(None)))[0] + self._l2_value()

    def gradient(self) -> Direction:
        """∇J(Θ), in the order of the parameters."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[Tensor, Direction]:
        """J(Θ) and ∇J(Θ), from one forward and one backward pass."""
        linear = self.linearise(record=False)
        gradient = linear.pull(linear.gradient)
        if self.objective.l2:
            gradient.flat.add_(self.objective.l2_gradient(self.objective.parameters).flat)
        return linear.means()[0] + self._l2_value(), gradient

    @torch.no_grad()
    def values_along(self, direction: Sequence[Tensor], steps: Sequence[float] | Tensor) -> Tensor:
        """J(Θ + t·direction) for every t of `steps`, float64, in one all-reduce."""
        d = self.objective.direction(direction)
        sums, l2 = [], []
        for step in steps:
            moved = self._moved(d, step)
            sums.append(self._loss_sum(self._forward(moved)))
            l2.append(self.objective.l2_value(moved))
        return self._means(*sums) + torch.stack(l2)

    def taylor_along(self, direction: Sequence[Tensor], at: float | Tensor = 0.0) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction` at Θ + at·direction, as global means.

        The second derivative of a sample's loss is exact; batch statistics move along the path.
        """
        d = self.objective.direction(direction)
        moved = None if isinstance(at, (int, float)) and at == 0 else self._moved(d, at)
        points = self.objective.parameters if moved is None else moved
        linear = self.linearise(points=moved)
        return linear.taylor(d, points)

    def curvature_along(self, direction: Sequence[Tensor]) -> Tensor:
        """Mean over the samples of |d²/dt² J_s(Θ + t·direction)|, not divided by ‖direction‖²; 0-d float64."""
        return self.taylor_along(direction).absolute_curvature

    def linearise(
        self,
        direction: Sequence[Tensor] | None = None,
        *,
        points: Sequence[Tensor] | None = None,
        record: bool = True,
    ) -> Linearisation:
        """One forward pass, kept so that cotangents can be pulled back through it and tangents pushed forward.

        Args:
            direction: a first direction to push, whose result is ``.tangent``.
            points: take these values in place of the parameters (then nothing can be pulled).
            record: False if nothing will be pushed.
        """
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
        twin = Objective(
            copy.deepcopy(objective.model).double(), objective.loss.function, objective.l2, weights=objective.weights,
            collectives=objective.collectives,
        )  # fmt: skip
        twin.covered = objective.covered

        def wide(x: Tensor) -> Tensor:
            return x[: self.samples].double() if x.is_floating_point() else x[: self.samples]

        batch = twin.batch(pytree.tree_map(wide, self.inputs), wide(self.targets))
        batch._generators = self._generators
        return batch

    # --- one forward pass ------------------------------------------------------------------------------------------

    def _forward(self, points: Sequence[Tensor] | None, tape: Tape | None = None) -> Tensor:
        """Outputs at the parameters or at other points, without DDP."""
        objective = self.objective
        with self._question(tape):
            if points is None:
                return objective._traced.run(self.inputs)
            replaced = dict(zip(objective.names, points, strict=True))
            return _tensor(functional_call(objective.model, replaced, (self.inputs,), tie_weights=True))

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

    def _forward_recorded(self, tape: Tape | None) -> Tensor:
        with self._question(tape), _recording(tape):
            outputs = self.objective._traced.run(self.inputs)
        return _finished(tape, outputs)

    def _traced_at(self, tape: Tape | None, points: Sequence[Tensor]) -> Tensor:
        leaves = [point.requires_grad_() for point in points]
        with self._question(tape), _recording(tape):
            replaced = dict(zip(self.objective.names, leaves, strict=True))
            outputs = _tensor(functional_call(self.objective.model, replaced, (self.inputs,), tie_weights=True))
        return _finished(tape, outputs)

    @contextlib.contextmanager
    def _question(self, tape: Tape | None) -> Iterator[None]:
        """The same random numbers for every question, running statistics that move at the first alone."""
        objective, first = self.objective, self._generators is None
        if self._generators is None:
            self._generators = _Generators(objective.device)
        torch.clear_autocast_cache()  # it would serve the casted weights of before the last step
        with contextlib.ExitStack() as stack:
            if not first:
                stack.enter_context(self._generators.replayed())
                stack.enter_context(_kept_buffers(objective.model))
            if objective.collectives.size > 1:
                stack.enter_context(SynchronisedBatchNorm(objective.collectives.sum, empty=self.empty, tape=tape))
            if tape is not None:
                # The fused attention kernels have no forward-mode rule.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def _has_unused_parameters(self) -> bool:
        """Whether a parameter does not take part in this batch; the question leaves no trace."""
        self._generators, kept = _Generators(self.objective.device), self._generators
        with torch.enable_grad():
            outputs = self._forward(None)
        self._generators = kept
        reached = _leaves(outputs)
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

    def _loss_sum(self, outputs: Tensor) -> Tensor:
        return self._weighted(self.objective.loss.values(outputs, self.targets))

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


class Linearisation:
    """A forward pass that is kept. Vectors in output space are derivatives of this worker's Σ w·ℓ.

    Attributes:
        outputs: of this worker's share, detached.
        tangent: J·z of the direction given to :meth:`Batch.linearise`, or None.
    """

    def __init__(self, batch: Batch, tape: Tape | None, outputs: Tensor, ticket: Tensor | None) -> None:
        self.batch = batch
        self.outputs = outputs.detach()
        self.tangent: Tensor | None = None
        self._tape, self._ticket = tape, ticket
        self._graph: Tensor | None = outputs
        self._at: LossAt = batch.objective.loss.at(outputs, batch.targets)
        self._by_sample = batch.sample_weights.to(self._at.values.dtype).view(-1, *(1,) * (outputs.dim() - 1))

    @property
    def gradient(self) -> Tensor:
        """J_L: the derivative of Σ w·ℓ by the outputs."""
        return self._weigh(self._at.gradient)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L·u."""
        return self._weigh(self._at.hessian(u.to(self._at.gradient.dtype)))

    def pull(self, cotangent: Tensor) -> Direction:
        """J_φ·u / Σw over all workers: the only gradient-sized all-reduce. Once; the graph is gone afterwards.

        Raises:
            RuntimeError: it was pulled before, or a parameter that took part in the first batch did not in this one.
        """
        graph, self._graph = self._graph, None
        if graph is None:
            raise RuntimeError("pull can be called once per linearisation: its graph has been freed")
        objective, collectives = self.batch.objective, self.batch.objective.collectives
        weight = self.batch.sample_weights.sum()
        if self._ticket is None:
            scaled = (cotangent / weight.to(cotangent.dtype)).to(graph.dtype)
            grads = torch.autograd.grad(graph, objective.parameters, scaled, allow_unused=True)
            return objective.direction(grads)
        traced = objective._traced
        armed, traced.armed = traced.armed, False
        if not armed:
            # DDP reduces one backward pass after a forward pass; of two passes kept at once, this is the second.
            grads = torch.autograd.grad(graph, objective.parameters, cotangent.to(graph.dtype), allow_unused=True)
            pulled = objective.direction(grads)
            collectives.sum(pulled.flat).div_(collectives.sum(weight.clone()).to(pulled.flat.dtype))
            return pulled
        # DDP takes the mean over the workers; the ticket's gradient brings the global weight along.
        for parameter in (*objective.parameters, objective._traced.carrier):
            parameter.grad = None
        size = collectives.size
        carried = (weight * size).to(self._ticket.dtype).expand_as(self._ticket)
        torch.autograd.backward([graph, self._ticket], [(cotangent * size).to(graph.dtype), carried])
        _check_reduced(objective)
        total = cast(Tensor, objective._traced.carrier.grad)
        pulled = objective.direction([parameter.grad for parameter in objective.parameters])
        pulled.flat.div_(total.to(pulled.flat.dtype))
        for parameter in (*objective.parameters, objective._traced.carrier):
            parameter.grad = None
        return pulled

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J_φᵀ·z in the paper's notation: the tangent of this worker's outputs along `direction`."""
        with _without_autocast(self.outputs):
            pushed = self._recorded().push(list(direction))
        return torch.zeros_like(self._at.gradient) if pushed is None else pushed.to(self._at.gradient.dtype)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ over this worker's outputs, 0-d float64; :meth:`means` makes it global.

        Rows of samples without weight do not count.
        """
        return (u.double() * v.double()).sum()

    def means(self, *sums: Tensor) -> Tensor:
        """Global means, in one all-reduce: of the loss (without the L2 term), then of each of these local sums."""
        return self.batch._means(self.batch._weighted(self._at.values), *sums)

    def taylor(self, direction: Sequence[Tensor], points: Sequence[Tensor] | None = None) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction`, on the kept activations."""
        objective, at, batch = self.batch.objective, self._at, self.batch
        points = objective.parameters if points is None else points
        with _without_autocast(self.outputs), torch.no_grad():
            d, dd = self._recorded().second_order(list(direction))
        zero = torch.zeros_like(at.gradient)
        d = zero if d is None else d.to(zero.dtype)
        slope = _per_sample(at.gradient * d)
        bend = _per_sample(at.hessian(d) * d)
        bend = bend if dd is None else bend + _per_sample(at.gradient * dd.to(zero.dtype))
        l2_slope, l2_bend = _l2_along(objective, points, direction)
        means = self.means(*(batch._weighted(x) for x in (slope, bend, (bend.double() + l2_bend).abs())))
        return Taylor(means[0] + objective.l2_value(points), means[1] + l2_slope, means[2] + l2_bend, means[3])

    def _weigh(self, u: Tensor) -> Tensor:
        if self.batch.objective.weights is None and not self.batch.empty:
            return u
        return torch.where(self._by_sample != 0, self._by_sample * u, 0.0)

    def _recorded(self) -> Tape:
        if self._tape is None:
            raise RuntimeError("this forward pass was not recorded: linearise(record=True) keeps what push needs")
        return self._tape


class _Traced(nn.Module):
    """The model as DDP sees it: recorded while a tape is set, with a ticket whose gradient carries the weight."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.tape: Tape | None = None
        self.armed = False  # DDP has seen a forward pass whose backward pass it will reduce
        wide = objective.dtype if objective.dtype in (torch.float32, torch.float64) else torch.float32
        self.carrier = nn.Parameter(torch.zeros(1, dtype=wide, device=objective.device))

    def run(self, inputs: Any) -> Tensor:
        return _tensor(self.model(inputs))

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        with _recording(self.tape):
            outputs = self.run(inputs)
        # Before DDP passes the outputs on through a function of its own.
        return _finished(self.tape, outputs), self.carrier.clone()


class _Generators:
    """The state of the random number generators at a batch's first question, to be played again for the others."""

    def __init__(self, device: torch.device) -> None:
        self._device: torch.device | None = device if device.type == "cuda" else None
        self._at_start = self._get()

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        now = self._get()
        self._set(self._at_start)
        try:
            yield
        finally:
            self._set(now)

    def _get(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if self._device is not None else None

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None and self._device is not None:
            torch.cuda.set_rng_state(state[1], self._device)


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Bring the buffers back at the end, also those that the model replaced by other tensors."""
    found = [(m, name, buffer) for m in model.modules() for name, buffer in m._buffers.items() if buffer is not None]
    kept = [buffer.clone() for _, _, buffer in found]
    try:
        yield
    finally:
        for (module, name, buffer), value in zip(found, kept, strict=True):
            buffer.data.copy_(value)  # .data: a graph that waits for its backward pass has saved this buffer
            module._buffers[name] = buffer


def _check_reduced(objective: Objective) -> None:
    """Refuse gradients that DDP has not reduced because a parameter of their bucket got none.

    Raises:
        RuntimeError: a parameter took part in the first batch and not in this one.
    """
    if objective.unused_parameters:
        return
    missing = [n for n, p in zip(objective.names, objective.parameters, strict=True) if p.grad is None]
    if missing:
        raise RuntimeError(
            f"parameters {', '.join(missing[:5])} took part in the first batch and not in this one, so the workers' "
            "gradients cannot be summed: let the model use all its parameters in every batch (times 0 where needed)"
        )


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("model has no trainable parameter: nothing can be optimised")
    for name, parameter in named:
        if not parameter.is_floating_point():
            raise TypeError(f"parameter {name!r} is {parameter.dtype}; trainable parameters must be real and floating")
    for what, found in (("device", {p.device for _, p in named}), ("dtype", {p.dtype for _, p in named})):
        if len(found) > 1:
            raise ValueError(f"trainable parameters must share one {what}, not {', '.join(sorted(map(str, found)))}")
    return named


def _covers(l2_covers: Covers, name: str, parameter: nn.Parameter) -> bool:
    if callable(l2_covers):
        return bool(l2_covers(name, parameter))
    if l2_covers not in ("all", "weights"):
        raise ValueError(f"l2_covers is {l2_covers!r}; it must be 'all', 'weights' or a function of (name, parameter)")
    return l2_covers == "all" or parameter.dim() >= 2


def _check_batch(objective: Objective, inputs: Any, targets: Tensor) -> None:
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a tensor, not {type(targets).__name__}")
    if targets.dim() == 0:
        raise ValueError("targets must have the batch as first dimension, not be a single number")
    for leaf in pytree.tree_leaves(inputs):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"inputs must be a tensor or a pytree of tensors; one leaf is {type(leaf).__name__}")
        if leaf.dim() == 0 or len(leaf) != len(targets):
            raise ValueError(
                f"inputs of shape {tuple(leaf.shape)} and targets of shape {tuple(targets.shape)} differ in the number "
                "of samples"
            )
    if len(targets) == 0 and objective.collectives.size == 1:
        raise ValueError("the batch has no sample; only one of several workers may have an empty share")


def _tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() == 0:
        raise TypeError(
            f"model must return one tensor with the batch as first dimension, not {type(outputs).__name__}; wrap a "
            "model that returns more in a module that picks the outputs"
        )
    return outputs


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _per_sample(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def _l2_along(objective: Objective, points: Sequence[Tensor], direction: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Slope and second derivative of the L2 term along a direction."""
    zero = torch.zeros((), dtype=torch.float64, device=objective.device)
    if objective.l2 == 0:
        return zero, zero
    with torch.no_grad():
        scaled, d = objective.l2_gradient(direction), objective.direction(direction)
        return scaled.dot(objective.direction(points)), scaled.dot(d)


def _leaves(outputs: Tensor) -> set[int]:
    """Identities of the leaves that the graph of `outputs` reaches."""
    seen, found, stack = set(), set(), [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


def _recording(tape: Tape | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if tape is None else tape


def _finished(tape: Tape | None, outputs: Tensor) -> Tensor:
    if tape is not None:
        tape.finish(outputs)
    return outputs


def _without_autocast(outputs: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(outputs.device.type, enabled=False)
