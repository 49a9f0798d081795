"""The mean loss, and for classification the accuracy, over a whole set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raycurv.data import Loader, Source
from raycurv.data.loader import LoadedBatch
from raycurv.objective.collectives import Collectives, Local
from raycurv.objective.losses import Loss, LossFunction
from raycurv.train.configuration import Precision
from raycurv.train.precision import computing, dtype_of


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: Source,
    *,
    loss: str | LossFunction,
    weights: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    collectives: Collectives | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    prefix: str = "test/",
) -> dict[str, float]:
    """Mean loss and accuracy over `source`, every sample counted once for any number of workers.

    Args:
        model: on `device`; it is put in evaluation mode and back.
        source: what to evaluate on; images are not augmented.
        loss: ``"cross_entropy"``, ``"squared_error"``, or a function of (outputs, targets) returning (B,).
        weights: ``weights(targets)`` (B,) for samples that count differently in the mean loss.
        batch_size: samples at a time, over all workers.
        collectives: the workers, who all call this together; by default one process.
        device: where to compute.
        precision: what to compute in.
        prefix: put before the names.

    Returns:
        ``loss``, and ``accuracy`` where targets are class indices of outputs of shape (B, classes).

    Raises:
        ValueError: no sample could be read.
    """
    per_sample = Loss(loss)
    workers = Local() if collectives is None else collectives
    device = torch.device(device)
    loader = Loader(
        source,
        batch_size=batch_size,
        seed=0,
        rank=workers.rank,
        size=workers.size,
        training=False,
        device=device,
        dtype=dtype_of(precision),
    )
    # Sums of losses and of their weights, right answers, and samples that have a right answer.
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with evaluation_mode(model), computing(precision, device), reading(loader, 0) as batches:
        for inputs, targets in batches:
            if len(targets):
                sums += _sums(model(inputs), targets, per_sample, weights)
    total, weight, right, classified = workers.sum(sums).tolist()
    if not weight:
        raise ValueError("the evaluation set gave no sample: it is empty, or every one of its images was skipped")
    values = {f"{prefix}loss": total / weight}
    if classified:
        values[f"{prefix}accuracy"] = right / classified
    return values


def _sums(outputs: Tensor, targets: Tensor, loss: Loss, weights: Callable[[Tensor], Tensor] | None) -> Tensor:
    losses = loss.values(outputs, targets).double()
    counted = torch.ones_like(losses) if weights is None else weights(targets).double()
    sums = [(counted * losses).sum(), counted.sum()]
    if outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point():
        right = outputs.argmax(1) == targets
        return torch.stack([*sums, right.sum(dtype=torch.float64), torch.ones_like(losses).sum()])
    return torch.stack([*sums, *losses.new_zeros(2)])


@contextmanager
def reading(loader: Loader, epoch: int, start: int = 0) -> Iterator[Iterator[LoadedBatch]]:
    """The batches of an epoch; the threads that read ahead end with the block, even if not all was read.

    Yields:
        What ``loader.epoch`` gives.
    """
    batches = loader.epoch(epoch, start)
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode; modules that were in it already stay so afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
