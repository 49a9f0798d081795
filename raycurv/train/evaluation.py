"""Mean loss, accuracy for classification and further metrics of a whole set; the evaluation of a run after an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager

import torch
from torch import Tensor, nn

from raycurv.data import Loader, Source
from raycurv.objective.collectives import Collectives, Local
from raycurv.objective.loss_derivatives import LossFunction
from raycurv.objective.losses import Loss
from raycurv.train.averaging import copies, overwrite
from raycurv.train.configuration import Precision
from raycurv.train.evaluation_metrics import Metric, MetricSums
from raycurv.train.precision import autocast, dtype_of
from raycurv.train.random_state import preserved
from raycurv.train.training_run import TrainingRun

BATCH_NORM_BATCHES = 50
_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: Source,
    *,
    loss: str | LossFunction,
    weights: Callable[[Tensor], Tensor] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 256,
    collectives: Collectives | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    prefix: str = "test/",
) -> dict[str, float]:
    """Mean loss, accuracy and further metrics over `source`; every sample counts once for any number of workers.

    Args:
        model: the model, on `device`; it is evaluated in evaluation mode, and its modes are restored.
        source: the set, which is not augmented.
        loss: ``"cross_entropy"``, ``"squared_error"``, or a function of (outputs, targets) returning (B,).
        weights: ``weights(targets)`` (B,), the weights of the samples in the mean loss; None weights all equally.
        metrics: further metrics by name (:mod:`raycurv.train.evaluation_metrics` lists the kinds).
        batch_size: samples of a batch, over all workers.
        collectives: the workers, which all call this together; by default one process.
        device: device of the computation.
        precision: precision of the computation.
        prefix: prefix of the names.

    Returns:
        ``loss``, ``accuracy`` where targets are class indices of outputs of shape (B, classes), and `metrics`.

    Raises:
        ValueError: no sample could be read, or a metric does not fit outputs and targets.
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
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    further = MetricSums(metrics or {}, device)
    with evaluation_mode(model), autocast(precision, device), closing(loader.epoch(0)) as batches:
        for inputs, targets in batches:
            if len(targets):
                outputs = model(inputs)
                sums += _sums(outputs, targets, per_sample, weights)
                further.add(outputs, targets)
    total, weight, correct, classified = workers.sum(sums).tolist()
    if not weight:
        raise ValueError("the evaluation set gave no sample: it is empty, or every one of its images was skipped")
    values = {f"{prefix}loss": total / weight}
    if classified:
        values[f"{prefix}accuracy"] = correct / classified
    return values | {f"{prefix}{name}": value for name, value in further.values(workers).items()}


def _sums(outputs: Tensor, targets: Tensor, loss: Loss, weights: Callable[[Tensor], Tensor] | None) -> Tensor:
    """(4,): weighted losses, weights, correct predictions, and samples with a class."""
    losses = loss.values(outputs, targets).double()
    counted = loss.sample_weights(targets, weights)
    sums = [(counted * losses).sum(), counted.sum()]
    if outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point():
        correct = outputs.argmax(1) == targets
        return torch.stack([*sums, correct.sum(dtype=torch.float64), torch.ones_like(losses).sum()])
    return torch.stack([*sums, *losses.new_zeros(2)])


def evaluate_run(run: TrainingRun) -> dict[str, float]:
    """Evaluate a run's weights, and their average if it keeps one; all workers call this together.

    Returns:
        Metrics under ``test/`` and ``training_set/``, those of the average under ``averaged/``. A loss is the mean over
        the samples alone; if the objective has an L2 term, it stands beside the loss as ``l2_term``.
    """
    with evaluation_weights(run):
        values = _evaluate_sets(run)
    if run.average is not None and values:
        with run.average.applied():
            update_batch_norm(run)
            values |= {f"averaged/{name}": value for name, value in _evaluate_sets(run).items()}
    return values


def _evaluate_sets(run: TrainingRun) -> dict[str, float]:
    """Metrics of the present weights on all sets of a run."""
    config = run.config
    sets = {"test/": run.data.evaluation, "training_set/": run.measured_training if config.evaluate_training else None}
    values: dict[str, float] = {}
    for prefix, source in sets.items():
        if source is None:
            continue
        values |= evaluate(
            run.model,
            source,
            loss=run.loss,
            weights=run.weights,
            metrics=run.metrics,
            batch_size=config.batch_size,
            collectives=run.collectives,
            device=run.device,
            precision=config.precision,
            prefix=prefix,
        )
        if config.l2:
            values[f"{prefix}l2_term"] = float(run.l2_term())
    return values


@contextmanager
def evaluation_weights(run: TrainingRun) -> Iterator[None]:
    """Replace the model's weights by those that the optimizer evaluates; all workers enter the block together.

    If these are other weights than those in training, running statistics are estimated for them and kept for
    checkpoints. Weights and statistics of training are restored at the end of the block.
    """
    with run.optimizer.evaluation_weights():
        if not run.optimizer.evaluates_other_weights:
            yield
            return
        kept = copies(run.model.buffers())
        try:
            update_batch_norm(run)
            run.evaluation_buffers = copies(run.model.buffers())
            yield
        finally:
            overwrite(list(run.model.buffers()), kept)


@torch.no_grad()
def update_batch_norm(run: TrainingRun, batches: int = BATCH_NORM_BATCHES) -> None:
    """Replace the running statistics of batch normalisation by means over the first training batches of an epoch.

    As `torch.optim.swa_utils.update_bn`, for any number of workers: the batches go through the objective, which
    normalises by global statistics, or by local ones that are averaged over the workers afterwards. Other modules are
    in evaluation mode, so no random number is drawn.

    Args:
        run: the run whose model is updated; all workers call this together.
        batches: largest number of batches.
    """
    norms = [m for m in run.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(run.model), preserved(run.device):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.training = True
        try:
            with closing(run.loader.epoch(run.progress.epoch)) as loaded:
                for _, (inputs, targets) in zip(range(min(batches, run.steps_per_epoch)), loaded, strict=False):
                    with autocast(run.config.precision, run.device):
                        run.objective.batch(inputs, targets).value()
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.training = False
    run.average_running_statistics()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode within the block, and restore its mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
