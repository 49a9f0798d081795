"""Data, model, objective, optimizer and position of one run, and their state in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from raycurv import Objective, optim
from raycurv.arguments import require_field_types
from raycurv.data import Data, Loader, Source
from raycurv.objective import Batch
from raycurv.objective.collectives import Collectives
from raycurv.objective.operations import OperationCounter
from raycurv.train import random_state
from raycurv.train.averaging import AveragedWeights
from raycurv.train.build import (
    build_metrics,
    build_model,
    build_optimizer,
    data_shape,
    require_outputs,
    resolve_loss,
    resolve_weights,
)
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.configuration import RunConfig
from raycurv.train.data_summary import DataSummary
from raycurv.train.distributed import checksum, require_equal
from raycurv.train.precision import dtype_of
from raycurv.train.pretrained_start import StartReport, load_start
from raycurv.train.records import Record
from raycurv.train.trust import trusted_by
from raycurv.train.validation import ValidationBatches, first_samples, split_validation

VERSION = 2  # of the state in a checkpoint


_KEYS = (
    *("step", "progress", "epoch_sums", "model", "optimizer", "random", "workers", "config", "data", "horizon"),
    "evaluation_buffers",
)


def lacking(state: Mapping[str, Any]) -> str:
    """What a checkpoint of this version lacks, as text; empty if it is complete."""
    return ", ".join(key for key in _KEYS if key not in state) if state.get("version") == VERSION else ""


@dataclass
class TrainingPosition:
    """Position of a run.

    Attributes:
        step: updates so far.
        epoch: the current epoch, from 0.
        step_in_epoch: updates so far in the current epoch.
        samples: training samples so far.
        training_seconds: time of the steps, without evaluations and checkpoints.
        seconds: time of the whole run.
        operations: floating-point operations of the steps so far, over all workers; NaN if an earlier version, which
            did not count them, began the run.
        startup_steps: first steps of all sittings (:mod:`raycurv.train.step_clock`).
        startup_seconds: time of these steps.
        step_seconds: mean seconds of a step in the log intervals after them.
        first_losses: training losses of the first steps (:mod:`raycurv.train.divergence`).
        last_losses: step and training loss in the last tenth of the run.
        last_move: the last step whose learning rate was not 0.
        evaluations: all evaluations so far.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    samples: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    operations: float = 0.0
    startup_steps: int = 0
    startup_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[tuple[int, float]] = field(default_factory=list)
    last_move: int = 0
    evaluations: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainingPosition:
        """Restore the mapping of `dataclasses.asdict`.

        Raises:
            KeyError: a value is missing.
            TypeError: a value is unknown or of another type.
            ValueError: a value is of another type, or negative.
        """
        evaluations = [require_field_types(Record(**record)) for record in values["evaluations"]]
        first = {name: values[name] for name in ("step", "epoch", "step_in_epoch", "samples")}  # in every version
        position = cls(**{"operations": math.nan, **values, **first, "evaluations": evaluations})
        for name, default in asdict(cls()).items():
            value = getattr(position, name)
            if type(value) is not type(default) and not (type(default) is float and type(value) is int):
                raise TypeError(f"{name} of its position is {value!r}")
            if type(value) is int and value < 0:
                raise ValueError(f"{name} of its position is {value}")
        numbers = [*position.step_seconds, *position.first_losses, *(x for pair in position.last_losses for x in pair)]
        if not all(type(number) in (int, float) for number in numbers):
            raise TypeError("its position has a time or a loss that is no number")
        return position


class TrainingRun:
    """Data, model, objective, optimizer and position of one run on one worker.

    Args:
        config: configuration of the run.
        collectives: the workers; they have equal initial weights and different dropout masks.
        device: device of this worker.
        data: the data of ``config.data``, if it is built already.
        resumed: whether :meth:`restore` follows, so that ``config.start_from`` is not loaded.
        halved: samples that are computed at once, in place of ``config.micro_batch``, since the memory ran out; None if
            it did not.

    Attributes:
        start: what the model got from ``config.start_from``; None if nothing was loaded.

    Raises:
        ValueError: a component, a setting or a combination of them is not allowed.
        WorkersDisagree: the workers read different weights to start from.
    """

    def __init__(
        self,
        config: RunConfig,
        collectives: Collectives,
        device: torch.device,
        data: Data | None = None,
        *,
        resumed: bool = False,
        halved: int | None = None,
    ) -> None:
        self.config, self.collectives, self.device, self.halved = config, collectives, device, halved
        self.data: Data = config.data.build() if data is None else data
        self.training, self.held_out = split_validation(self.data.train, config.validation, config.seed)
        self.measured_training = first_samples(self.training, config.evaluate_training_samples)
        self.shape = data_shape(self.data)
        self.metrics = build_metrics(config.metrics, self.shape)
        torch.manual_seed(config.seed)
        if not resumed:
            require_outputs(config, self.training)
        self.model = build_model(config, self.shape).to(device)
        self.start = None if resumed or config.start_from is None else self._load_start(config.start_from)
        self.loss, self.weights = resolve_loss(config.loss), resolve_weights(config.weights)
        self.loader = self._loader(self.training, drop_last=config.drop_last)
        self.validation = None if self.held_out is None else ValidationBatches(self._loader(self.held_out))
        self.horizon = optim.Horizon(
            epochs=config.epochs,
            steps_per_epoch=self.loader.steps_per_epoch,
            training_samples=len(self.training),
            max_steps=config.max_steps,
        )
        self.objective = Objective(
            self.model,
            self.loss,
            config.l2,
            weights=self.weights,
            collectives=collectives,
            batch_norm=config.batch_norm,
            micro_batch=halved or config.micro_batch,
            check_consistency=config.check_consistency,
            compile=config.compile,
        )
        self.objective.operations = self.operations = OperationCounter()
        self.optimizer = build_optimizer(config, self.model, self.horizon)
        decay = config.average_weights
        self.average = None if decay is None else AveragedWeights(self.model, decay)
        # Buffers of the weights that the optimizer evaluates, if these are other weights than those it trains.
        self.evaluation_buffers: list[Tensor] = []
        self.progress = TrainingPosition()
        # This worker's sums over the epoch so far: sample weights times the batch's loss, sample weights, and sample
        # weights times the L2 term.
        self.epoch_sums = torch.zeros(3, dtype=torch.float64, device=device)
        torch.manual_seed(random_state.derive_seed(config.seed, "dropout", collectives.rank))

    def _load_start(self, start: str) -> StartReport:
        report = load_start(self.model, start, trusted_by(self.config))
        loaded = int(checksum(self.model.state_dict().values()))
        what = f"the checksum of the weights from {start} (do all nodes read the same file?)"
        require_equal(loaded, what, self.collectives, self.device)
        return report

    def _loader(self, source: Source, *, drop_last: bool = False) -> Loader:
        return Loader(
            source,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            rank=self.collectives.rank,
            size=self.collectives.size,
            device=self.device,
            dtype=dtype_of(self.config.precision),
            drop_last=drop_last,
        )

    def data_summary(self) -> DataSummary:
        """Description of the data."""
        samples = 0 if self.data.evaluation is None else len(self.data.evaluation)
        return DataSummary.of(self.config, self.shape, samples)

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return self.loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.horizon.steps

    @property
    def epochs_done(self) -> float:
        """Epochs so far, with the fraction of the current one."""
        return self.progress.epoch + self.progress.step_in_epoch / self.steps_per_epoch

    def _samples_before(self, step_in_epoch: int) -> int:
        """Samples of the first steps of an epoch; all batches but the last have one size."""
        return min(step_in_epoch * self.config.batch_size, len(self.training))

    def batch_samples(self, step_in_epoch: int) -> int:
        """Samples of the global batch of a step of an epoch."""
        return self._samples_before(step_in_epoch + 1) - self._samples_before(step_in_epoch)

    def non_finite_samples(self, step: int) -> int:
        """Number of samples with a NaN or infinite input or target in the global batch of a step of this epoch.

        The batch is read again; all workers call this together.

        Args:
            step: number of a step that has been taken, from 1.
        """
        progress = self.progress
        with closing(self.loader.epoch(progress.epoch, progress.step_in_epoch - progress.step + step - 1)) as batches:
            inputs, targets = next(batches)
        found = torch.zeros(len(targets), dtype=torch.bool, device=self.device)
        for leaf in (*tree_leaves(inputs), targets):
            found |= ~leaf.isfinite().reshape(len(leaf), math.prod(leaf.shape[1:])).all(1)
        return int(self.collectives.sum(found.sum(dtype=torch.float64)))

    def validation_batch(self) -> Batch | None:
        """The validation batch of the next step; None for an optimizer that uses none."""
        if self.validation is None or not self.optimizer.needs_validation:
            return None
        return self.objective.batch(*self.validation.batch(self.progress.step))

    def l2_term(self) -> Tensor:
        """L2 term of the objective at the present weights, 0-d float64."""
        return self.objective.l2_value(self.objective.parameters)

    def add_loss(self, loss: Tensor, l2_term: Tensor, weight: Tensor) -> None:
        """Add the loss of a step to the sums of the epoch; one that is not finite is left out.

        Args:
            loss: mean over the global batch without the L2 term, 0-d.
            l2_term: L2 term of the objective, 0-d float64.
            weight: sum of the weights of this worker's samples, 0-d float64.
        """
        sums = torch.stack([loss.double() * weight, weight, l2_term * weight])
        self.epoch_sums += torch.where(torch.isfinite(loss), sums, 0.0)

    def epoch_means(self) -> dict[str, float]:
        """Means over the epoch so far of the loss, and of the L2 term if there is one; all workers call this together.

        NaN before the first sample.
        """
        loss, weight, l2_term = self.global_sums().tolist()
        means = {"train/epoch_loss": loss, **({"train/epoch_l2_term": l2_term} if self.config.l2 else {})}
        return {name: total / weight if weight else math.nan for name, total in means.items()}

    @torch.no_grad()
    def average_running_statistics(self) -> None:
        """Replace running statistics that every worker has of its own by their means over the workers.

        All workers call this together, before they evaluate and before a checkpoint. Nothing is done where batch
        normalisation is synchronised.
        """
        if self.config.batch_norm == "synchronised" or self.collectives.size == 1:
            return
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        if not buffers:
            return
        flat = torch.cat([buffer.double().flatten() for buffer in buffers])
        means = self.collectives.sum(flat) / self.collectives.size
        for buffer, mean in zip(buffers, means.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view(buffer.shape))

    def global_sums(self) -> Tensor:
        """Sum of :attr:`epoch_sums` over all workers, which call this together."""
        return self.collectives.sum(self.epoch_sums.clone())

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; all workers call this together."""
        state = {
            "version": VERSION,
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "epoch_sums": self.global_sums(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state.gather_states(self.collectives, self.device),
            "workers": f"{self.collectives.size} on {self.device.type}",
            "config": self.config.to_json(),
            "data": self.shape,
            "horizon": asdict(self.horizon),
            "evaluation_buffers": self.evaluation_buffers,
        }
        state |= {"loss_scale": scale} if (scale := self.objective.loss_scale.state_dict()) else {}
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def _check_workers(self, stored: str) -> None:
        """Refuse another number of workers where each has batch statistics of its own.

        Raises:
            CheckpointError: the number differs from the one in `stored`, such as "2 on cpu".
        """
        count, now = int(stored.partition(" ")[0]), self.collectives.size
        if self.config.batch_norm == "local" and count != now:
            raise CheckpointError(
                f"the run normalises by statistics of each worker's share (batch_norm='local'), so that it is another "
                f"run on another number of workers: it had {count} and now has {now}. Give it {count} "
                f"(--workers {count}), or start a new run"
            )

    def _check_horizon(self, stored: optim.Horizon) -> None:
        if not self.optimizer.follows_horizon or self.config.change_horizon or stored.steps == self.horizon.steps:
            return
        raise CheckpointError(
            f"the step sizes of {self.config.optimizer!r} follow the length of the run, which was {stored.steps} steps "
            f"and is now {self.horizon.steps}: resume with the epochs and max_steps that it was started with (end a "
            "sitting early with stop_after), or ask for the other length with change_horizon"
        )

    def restore(self, state: dict[str, Any]) -> str:
        """Restore the state of a checkpoint.

        Returns:
            A message with the position, and whether dropout masks differ from an uninterrupted run.

        Raises:
            CheckpointError: the checkpoint is of another version or of other data, or the length of the run has changed
                and the step sizes depend on it, or the number of workers has changed and the result depends on it.
        """
        if state.get("version") != VERSION:
            raise CheckpointError(
                f"the checkpoint has version {state.get('version')!r}; this release reads version {VERSION}"
            )
        if state["data"] != self.shape:
            raise CheckpointError(
                f"the data set is {self.shape} and was {state['data']} when the checkpoint was written: "
                "put the data back as it was, or start a new run"
            )
        self._check_horizon(optim.Horizon(**state["horizon"]))
        self._check_workers(str(state["workers"]))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.loss_scale.load_state_dict(state.get("loss_scale", {}))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.evaluation_buffers = [tensor.to(self.device) for tensor in state["evaluation_buffers"]]
        self.progress = TrainingPosition.of(state["progress"])
        self.epoch_sums.zero_()
        if self.collectives.rank == 0:
            # Version 0.1 has two sums: its loss contains the L2 term, until the end of this epoch.
            self.epoch_sums[: len(state["epoch_sums"])] = state["epoch_sums"]
        message = f"goes on at step {self.progress.step}, epoch {self.epochs_done:.3f}"
        if random_state.restore_states(state["random"], self.collectives, self.device):
            return message
        workers = self.collectives
        torch.manual_seed(
            random_state.derive_seed(self.config.seed, "dropout", workers.rank, workers.size, self.progress.step)
        )
        now = f"{workers.size} on {self.device.type}"
        return f"{message}; the workers are {now} and were {state['workers']}, so dropout masks are drawn anew"
