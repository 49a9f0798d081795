"""A model, a loss and an L2 term as one function of the parameters."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from raycurv.arguments import require, require_whole
from raycurv.objective.batch import Batch
from raycurv.objective.collectives import Collectives, Local
from raycurv.objective.compiled_steps import CompiledSteps
from raycurv.objective.ddp import DataParallel
from raycurv.objective.direction import Direction
from raycurv.objective.forward import ModelCall
from raycurv.objective.hidden_state import HiddenState
from raycurv.objective.loss_derivatives import LossFunction
from raycurv.objective.loss_scale import INITIAL_SCALE, INITIAL_SCALE_OF_SUMS, LossScale
from raycurv.objective.losses import Loss
from raycurv.objective.operations import OperationCounter
from raycurv.objective.requirements import Covers, in_l2_term, trainable

BatchNormStatistics = Literal["synchronised", "local"]
_PIECE = 1 << 16  # squares that a CPU adds up in float32: a norm of 60 million is otherwise wrong by 2·10⁻³


class Objective:
    """A model, a loss per sample and an L2 term: J(Θ) = Σ w·ℓ / Σ w + l2/2·‖Θ‖².

    The sums are over the samples of the global batch, those of all workers. An optimizer of :mod:`raycurv.optim` takes
    one :class:`Batch` of an objective per step::

        objective = raycurv.Objective(model, torch.nn.CrossEntropyLoss(label_smoothing=0.1), l2=5e-4)
        for inputs, targets in loader:
            optimizer.step(objective.batch(inputs, targets))

    Args:
        model: called as ``model(inputs)``; returns one tensor whose first dimension is the batch, (B, …).
        loss: ℓ, one of

            - ``"cross_entropy"``: outputs (B, C), class indices (B,);
            - ``"squared_error"``: the sum over a sample's elements; targets in the shape of the outputs;
            - a loss module of torch with ``reduction="mean"``: J of a batch then equals the module's value
              (:mod:`raycurv.objective.torch_losses` lists the modules and their ℓ and w);
            - a function of (outputs, targets) that returns one value per sample, (B,).
        l2: factor of ½‖Θ‖², at least 0.
        weights: w: ``weights(targets)`` returns the weight of each sample, (B,), at least 0; None is 1 for all. They
            multiply weights that the loss itself gives, such as those of classes.
        collectives: :class:`~raycurv.objective.collectives.ProcessGroup` for the workers of a torch process group;
            None is one process.
        l2_covers: parameters in the L2 term: ``"all"`` (as in the papers), ``"weights"`` (two or more dimensions, so
            neither biases nor the scales of normalisations), or a function of (name, parameter).
        micro_batch: None, or the number of samples of a worker's share that are computed at once, for batches that do
            not fit in memory. Every answer is then a sum over such micro-batches and nothing is kept between
            questions: CurveBall takes 3.0 and RED 2.7 times the operations of an SGD step. Answers equal the whole
            batch's, except that batch normalisation takes the statistics of each micro-batch and running statistics
            move once for each.
        batch_norm: statistics of batch normalisation with several workers: ``"synchronised"``, those of the global
            batch; or ``"local"``, those of each worker's share, as by default in DistributedDataParallel. Local ones
            take no communication, and make the result depend on the number of workers.
        call: ``call(model, inputs)`` returns the outputs of a model that is called in another way, such as
            ``lambda model, inputs: model(**inputs).logits`` for inputs that are a dict.
        check_consistency: whether the first batch is computed twice, once in all, and the outputs compared. A model
            whose outputs differ raises :class:`~raycurv.objective.consistency.InconsistentModel`. Dropout, batch
            normalisation, and buffers and generators of modules are no reason.
        compile: whether the passes of a step are compiled by Inductor
            (:mod:`raycurv.objective.compiled_steps`). This takes a C++ compiler, seconds to minutes at the second
            batch, and one worker; where it does not work, a warning gives the reason and operators are executed one by
            one. Results are equal up to rounding.

    Attributes:
        parameters: the trainable parameters, in the order of ``model.parameters()``. Directions in parameter space,
            gradients included, are lists of tensors in this order and in these shapes.
        names: names of the trainable parameters, in the same order.
        device: device of the parameters.
        dtype: dtype of the parameters.
        operations: counter of the floating-point operations of all questions; None counts nothing.
        compiled_steps: the compiled passes; None without `compile`.
        loss_scale: scale of derivatives under float16 autocast (:mod:`raycurv.objective.loss_scale`); save its
            ``state_dict`` with that of the optimizer.

    Raises:
        TypeError: `model` is not a module, a trainable parameter is not real and floating, or `loss` is neither a name
            nor callable.
        ValueError: no trainable parameter, parameters of several devices or dtypes, an unknown loss, a loss module that
            is not a mean over samples, or a bad `l2`, `l2_covers`, `micro_batch` or `batch_norm`.
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
        micro_batch: int | None = None,
        batch_norm: BatchNormStatistics = "synchronised",
        call: Callable[[nn.Module, Any], Tensor] | None = None,
        check_consistency: bool = True,
        compile: bool = False,
    ) -> None:
        self.model = model
        self.check_consistency, self.hidden_state = check_consistency, HiddenState(model)
        self.loss = Loss(loss)
        named = trainable(model)
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        require("l2", l2, 0 <= l2 < float("inf"), "a finite number of at least 0")
        if micro_batch is not None:
            require_whole("micro_batch", micro_batch, 1)
        choices = get_args(BatchNormStatistics)
        require("batch_norm", batch_norm, batch_norm in choices, f"one of {', '.join(choices)}")
        self.l2, self.micro_batch, self.weights = l2, micro_batch, weights
        self.batch_norm = batch_norm
        self.l2_covers = l2_covers
        self._in_l2_term = [in_l2_term(l2_covers, name, parameter) for name, parameter in named]
        self.collectives: Collectives = collectives if collectives is not None else Local()
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self.operations: OperationCounter | None = None
        self.model_call = ModelCall(model, call)
        # By kind of batch, whether the model works on each sample alone: curvature from some of them takes one pass.
        self.works_by_rows: dict[Hashable, bool] = {}
        workers = self.collectives
        if compile and workers.size > 1:
            warnings.warn("compile=True has no effect with several workers", RuntimeWarning, stacklevel=2)
        self.compiled_steps = CompiledSteps() if compile and workers.size == 1 else None
        shared = workers.size > 1
        sums = shared or micro_batch is not None
        self.loss_scale = LossScale(INITIAL_SCALE_OF_SUMS if sums else INITIAL_SCALE)
        self.data_parallel = DataParallel(self.model_call, workers, self.device, self.dtype) if shared else None

    def batch(self, inputs: Any, targets: Tensor) -> Batch:
        """This worker's share of one global batch.

        Args:
            inputs: a tensor or any pytree of tensors (list, tuple, dict), (B, …) each, on the model's device.
            targets: (B, …), on the model's device. B may be 0 with several workers.

        Raises:
            TypeError: `targets` or a leaf of `inputs` is not a tensor.
            ValueError: the first dimensions differ, a tensor is on another device than the model, or a single worker
                has no sample.
        """
        return Batch(self, inputs, targets)

    def direction(self, tensors: Iterable[Tensor | None]) -> Direction:
        """Tensors in the order of the parameters as one direction; None is zero.

        Raises:
            ValueError: the number or the shapes of the tensors are not those of the parameters.
        """
        return Direction.of(tensors, self.parameters)

    def l2_gradient(self, at: Sequence[Tensor]) -> Direction:
        """Gradient of the L2 term at these values, which is also its Hessian times them: l2·Θ where covered."""
        masked = [x if covered else None for x, covered in zip(at, self._in_l2_term, strict=True)]
        return Direction.of(masked, self.parameters).scaled(self.l2)

    @torch.no_grad()
    def l2_value(self, at: Sequence[Tensor]) -> Tensor:
        """l2/2·‖Θ‖² at these values, 0-d float64."""
        if self.l2 == 0:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        covered = [x.reshape(-1) for x, is_covered in zip(at, self._in_l2_term, strict=True) if is_covered]
        norms = torch._foreach_norm([piece for x in covered for piece in x.split(_PIECE)])
        return 0.5 * self.l2 * torch.stack(norms).double().square().sum()

    # --- building blocks of a batch --------------------------------------------------------------------------------

    @property
    def weighted(self) -> bool:
        """Whether samples may count differently."""
        return self.weights is not None or self.loss.weights is not None

    @property
    def sums_batch_statistics(self) -> bool:
        """Whether batch normalisation sums its statistics over the workers."""
        if self.collectives.size == 1 or self.batch_norm != "synchronised":
            return False
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.model.modules())

    def outputs(self, inputs: Any, points: Sequence[Tensor] | None = None) -> Tensor:
        """Outputs of the model, (B, …); `points` take the place of the parameters."""
        return self.model_call(inputs) if points is None else self.model_call.at(self.names, points, inputs)

    def uncounted(self) -> contextlib.AbstractContextManager[None]:
        """Context whose operations :attr:`operations` does not count."""
        return contextlib.nullcontext() if self.operations is None else self.operations.uncounted()

    def sample_weights(self, targets: Tensor) -> Tensor:
        """Weight of each sample, (B,) float64.

        Raises:
            ValueError: `weights` returns another shape.
        """
        return self.loss.sample_weights(targets, self.weights)

    def in_double(self) -> Objective:
        """This objective with a copy of the model in float64."""
        twin = type(self)(
            copy.deepcopy(self.model).double(),
            self.loss.function,
            self.l2,
            weights=self.weights,
            collectives=self.collectives,
            l2_covers=self.l2_covers,
            micro_batch=self.micro_batch,
            batch_norm=self.batch_norm,
            call=self.model_call.call,
            check_consistency=self.check_consistency,
        )
        twin._in_l2_term, twin.operations = self._in_l2_term, self.operations
        twin.hidden_state = self.hidden_state.of_copy(twin.model)
        return twin
