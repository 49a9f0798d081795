"""Running statistics of batch normalisation for weights that no step has seen, such as averaged ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from raycurv.train.averaging import copies, overwrite
from raycurv.train.evaluation import evaluation_mode, reading
from raycurv.train.precision import computing
from raycurv.train.random_state import untouched
from raycurv.train.training_run import TrainingRun

BATCHES = 50
_Norms = nn.modules.batchnorm._BatchNorm


@contextlib.contextmanager
def evaluated_weights(run: TrainingRun) -> Iterator[None]:
    """While entered, the model holds what its optimizer wants evaluated; all workers enter it together.

    Running statistics are renewed where these are other weights than those in training, and kept for checkpoints.

    Yields:
        Nothing.
    """
    with run.optimizer.evaluation_weights():
        if not run.optimizer.evaluates_other_weights:
            yield
            return
        kept = copies(run.model.buffers())
        try:
            renew_statistics(run)
            run.evaluation_buffers = copies(run.model.buffers())
            yield
        finally:
            overwrite(list(run.model.buffers()), kept)


@torch.no_grad()
def renew_statistics(run: TrainingRun, batches: int = BATCHES) -> None:
    """Replace the running statistics by plain means over the first training batches of an epoch.

    The global batches are asked through the objective, so the statistics are the same for any number of workers;
    everything but batch normalisation is in evaluation mode, so no random number is drawn.

    Args:
        run: whose model is renewed; all workers call this together.
        batches: how many batches at most.
    """
    norms = [m for m in run.model.modules() if isinstance(m, _Norms) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(run.model), untouched(run.device):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.training = True
        try:
            with reading(run.loader, run.progress.epoch) as loaded:
                for _, (inputs, targets) in zip(range(min(batches, run.steps_per_epoch)), loaded, strict=False):
                    with computing(run.config.precision, run.device):
                        run.objective.batch(inputs, targets).value()
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.training = False
