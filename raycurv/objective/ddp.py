"""Gradients over several workers: one sum over the workers, by torch's DistributedDataParallel (DDP).

DDP replaces the gradients of every worker by their mean over the workers. The objective needs a weighted mean over the
samples instead: Σ J_φ·u over the workers, divided by Σw over the workers. One sum gives both, and the loss:

1. Forward: the module inside DDP has one parameter of its own, `carrier`, (2,). It returns a copy of it beside the
   model's outputs.
2. Backward: the copy's cotangent is (Σw, Σw·ℓ) of this worker. A communication hook makes DDP sum its buckets by
   :meth:`~raycurv.objective.collectives.Collectives.start_sum` instead of averaging them, so that ``carrier.grad``
   becomes (Σw, Σw·ℓ) of all workers.
3. The gradients and the loss are divided by Σw.

`carrier` has the parameters' dtype where that is float32 or float64, so the loss is rounded to it.

DDP reduces one backward pass after each forward pass. Where two forward passes are pulled, only the first pull goes
through DDP. The second is reduced by :meth:`~raycurv.objective.batch.Batch.global_mean`.

Every worker must run the same passes. Batches that leave a parameter unused would make DDP wait, so the first batch
decides on DDP's option `find_unused_parameters`, and a parameter that is unused later is refused.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from raycurv.curvature import Tape
from raycurv.objective.collectives import Collectives
from raycurv.objective.direction import Direction
from raycurv.objective.forward import ModelCall, finished, recording

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch
    from raycurv.objective.objective import Objective


class DataParallel:
    """Forward passes and gradients of an objective whose batches are shared among several workers.

    It does not refer to the objective, which refers to it: in a cycle, DDP would keep the process group and its threads
    alive after ``destroy_process_group``, until the garbage collector runs.

    Args:
        model_call: the model as a module of one argument.
        collectives: more than one worker.
        device: device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self, model_call: ModelCall, collectives: Collectives, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.collectives = collectives
        self.module = ModuleWithCarrier(model_call, device, dtype)
        self.find_unused_parameters = False
        self._ddp: nn.Module | None = None  # made at the first batch, which shows whether parameters are unused
        self._reduces_next = False  # DDP has run a forward pass whose backward pass it will reduce

    def forward(self, batch: Batch, tape: Tape | None) -> tuple[Tensor, Tensor]:
        """A forward pass through DDP, recorded on the tape: outputs, and the copy of `carrier`."""
        ddp = self._module_for(batch)
        with batch.counted("forward", type(tape).__name__), batch.forward_context(tape):
            self.module.tape = tape
            try:
                outputs, carrier = ddp(batch.inputs)
            finally:
                self.module.tape = None
        self._reduces_next = True
        return outputs, carrier

    def reduces_next(self) -> bool:
        """Whether DDP reduces the backward pass that comes now; it reduces none after it."""
        reduces, self._reduces_next = self._reduces_next, False
        return reduces

    def mean_gradient(
        self,
        objective: Objective,
        outputs: Tensor,
        carrier: Tensor,
        cotangent: Tensor,
        sums: tuple[Tensor, Tensor],
        *,
        keep: bool,
    ) -> tuple[Direction, Tensor]:
        """J_φ·u / Σw and Σw·ℓ / Σw over the samples of all workers, by a backward pass that DDP reduces.

        Args:
            objective: the objective.
            outputs: outputs of :meth:`forward`, with their graph.
            carrier: the copy of `carrier` that came with them.
            cotangent: u, in the shape of the outputs.
            sums: Σw and Σw·ℓ of this worker's samples, 0-d each.
            keep: whether the graph is kept.

        Raises:
            RuntimeError: a parameter took part in the first batch and not in this one.
        """
        leaves = [*objective.parameters, self.module.carrier]
        for leaf in leaves:
            leaf.grad = None
        cotangents = [cotangent.to(outputs.dtype), torch.stack(sums).to(carrier.dtype)]
        torch.autograd.backward([outputs, carrier], cotangents, retain_graph=keep)
        self._check_gradients(objective)
        gradient = objective.direction([parameter.grad for parameter in objective.parameters])
        weight, loss = cast(Tensor, self.module.carrier.grad).double()
        gradient.flat.div_(weight.to(gradient.flat.dtype))
        for leaf in leaves:
            leaf.grad = None
        return gradient, loss / weight

    def _module_for(self, batch: Batch) -> nn.Module:
        if self._ddp is None:
            # All workers must decide alike, or they would wait for different all-reduces.
            unused = torch.tensor(float(_has_unused_parameters(batch)), device=batch.objective.device)
            self.find_unused_parameters = bool(self.collectives.sum(unused) > 0)
            self._ddp = distributed_data_parallel(
                self.module, self.collectives, find_unused_parameters=self.find_unused_parameters
            )
        return self._ddp

    def _check_gradients(self, objective: Objective) -> None:
        """Refuse gradients that DDP has not reduced because a parameter of their bucket has none.

        Raises:
            RuntimeError: a parameter has no gradient.
        """
        if self.find_unused_parameters:
            return
        named = zip(objective.names, objective.parameters, strict=True)
        missing = [name for name, parameter in named if parameter.grad is None]
        if missing:
            raise RuntimeError(
                f"parameters {', '.join(missing[:5])} took part in the first batch and not in this one, so the "
                "workers' gradients cannot be summed: let the model use all its parameters in every batch (times 0 "
                "where needed)"
            )


class ModuleWithCarrier(nn.Module):
    """The module inside DDP: outputs of the model, and a copy of a parameter whose gradient is the batch's sums.

    Attributes:
        carrier: parameter (2,) of value 0, in float32 or wider; its gradient is (Σw, Σw·ℓ).
        tape: records the model's forward pass, or None.
    """

    def __init__(self, model_call: ModelCall, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model_call = model_call
        self.tape: Tape | None = None
        wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        self.carrier = nn.Parameter(torch.zeros(2, dtype=wide, device=device))

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Outputs of the model, and the copy."""
        with recording(self.tape):
            outputs = self.model_call(inputs)
        # The tape ends here: DDP passes the outputs on through an autograd function of its own.
        return finished(self.tape, outputs), self.carrier.clone()


def distributed_data_parallel(
    module: nn.Module, collectives: Collectives, *, find_unused_parameters: bool
) -> nn.Module:
    """The module in DDP, with gradients that are sums in views of its buckets, and buffers that stay local.

    Running statistics are equal on all workers without a broadcast, because batch statistics are synchronised.
    """
    device = next(module.parameters()).device
    # torch 2.14 renames the option that keeps buffers from being broadcast in every forward pass.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    ddp = nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        process_group=collectives.group,
        **cast(Any, {option: False}),
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused_parameters,
    )
    # torch compares annotations, and those of this module are strings: a lambda has none.
    ddp.register_comm_hook(collectives, lambda workers, bucket: workers.start_sum(bucket.buffer()))
    return ddp


def _has_unused_parameters(batch: Batch) -> bool:
    """Whether a parameter does not take part in this batch, by a forward pass that leaves no trace."""
    with torch.enable_grad(), batch.rehearsal():
        reached = _leaves(batch.outputs())
    return any(id(parameter) not in reached for parameter in batch.objective.parameters)


def _leaves(outputs: Tensor) -> set[int]:
    """Identities of the leaf tensors that the graph of `outputs` reaches."""
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
