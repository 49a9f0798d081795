"""The training loop: no branch on the name of an optimizer, no word from the device but at the log interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from raycurv.data import Data
from raycurv.objective import Batch
from raycurv.objective.collectives import Collectives
from raycurv.objective.micro_batches import divide_for_curvature
from raycurv.train.batch_norm import evaluated_weights, renew_statistics
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.configuration import RunConfig
from raycurv.train.distributed import require_equal, require_equal_parameters
from raycurv.train.evaluation import evaluate, reading
from raycurv.train.metrics import MetricBuffer, NonFiniteLoss
from raycurv.train.precision import computing
from raycurv.train.records import Kind, Record, Result
from raycurv.train.resume import Resume, open_run
from raycurv.train.training_run import TrainingRun

Emit = Callable[[list[Record]], None]


def never() -> bool:
    """Do not stop."""
    return False


def train(
    config: RunConfig,
    *,
    collectives: Collectives,
    device: torch.device | str = "cpu",
    store: CheckpointStore,
    emit: Emit,
    resume: Resume = "never",
    stop: Callable[[], bool] = never,
    data: Data | None = None,
) -> Result:
    """Train one run from its beginning, or from its newest checkpoint, to its end.

    All workers call it with the same configuration. It seeds torch's generators. On the same number of workers, a run
    that was interrupted goes on bit by bit as if it had not been; on another number it goes on in the middle of the
    epoch, with new dropout masks.

    Args:
        config: what to train.
        collectives: the workers; the first one emits and writes checkpoints.
        device: of this worker.
        store: the checkpoints; every worker must reach the same ones.
        emit: takes records, in batches; called on the first worker alone. After a crash, records of the steps since the
            checkpoint come a second time.
        resume: ``never`` for a new run, which refuses to touch one that lies in `store`; ``must`` to go on with such a
            run; ``auto`` to go on if there is something to go on with (for a worker that is started again).
        stop: asked at every log interval (at every step if there is one worker); when it says yes on any worker, all
            write a checkpoint and return.
        data: what ``config.data`` builds, where somebody has built it already.

    Raises:
        ValueError: a component or setting of the configuration is not allowed.
        ResumeError: a run lies in `store` already, or none does, or one with another configuration.
        CheckpointError: a checkpoint could not be written, or none could be read.
        NonFiniteLoss: the loss or a step became infinite or NaN.
        WorkersDisagree: the workers have different parameters, or see different checkpoints.
    """
    device = torch.device(device)
    result, state = open_run(config, store, resume, collectives, device)
    if result is not None:
        return result
    run = TrainingRun(config, collectives, device, data)
    where = f"starts: {run.total_steps} steps, {run.steps_per_epoch} an epoch" if state is None else run.restore(state)
    trainer = _Trainer(run, store, emit, stop)
    trainer.tell("event", message=where)
    return trainer.train()


class _Trainer:
    def __init__(self, run: TrainingRun, store: CheckpointStore, emit: Emit, stop: Callable[[], bool]) -> None:
        self.run, self.store, self.stop = run, store, stop
        self.emit = emit if run.collectives.rank == 0 else _nobody
        self.ledger = MetricBuffer(run.collectives, run.device)
        self.saved_at = self.first_step = run.progress.step
        self.interval_samples = 0
        self.mark = time.perf_counter()

    def train(self) -> Result:
        run = self.run
        stopped = False
        while not stopped and run.progress.step < run.total_steps:
            stopped = self.epoch()
            self.end_of_epoch()
        result = self.result(stopped=stopped and run.progress.step < run.total_steps)
        if result.stopped:
            self.tell("event", message=f"stopped as asked at step {result.steps}")
        elif run.collectives.rank == 0:
            self.store.finish(result)
        # Nobody leaves before the first worker has written everything.
        require_equal(result.steps, "the number of steps", run.collectives, run.device)
        return result

    def epoch(self) -> bool:
        """Go to the end of the epoch or of the run; True if asked to stop.

        Raises:
            RuntimeError: the loader gave fewer batches than it said.
        """
        run, config = self.run, self.run.config
        progress = run.progress
        run.model.train()
        self.restart_clock()
        with reading(run.loader, progress.epoch, progress.step_in_epoch) as batches:
            for inputs, targets in batches:
                self.step(inputs, targets)
                last = progress.step_in_epoch == run.steps_per_epoch or progress.step == run.total_steps
                save = progress.step % config.checkpoint_every == 0 and not last
                over = config.stop_after is not None and progress.step - self.first_step >= config.stop_after
                due = last or save or over or progress.step % config.log_every == 0
                asked = over or ((due or run.collectives.size == 1) and self.stop())
                if due or asked:
                    stopped = self.close_interval(asked)
                    if save or (stopped and not last):
                        self.save()
                    if stopped or last:
                        return stopped
        raise RuntimeError(
            f"epoch {progress.epoch} ended after {progress.step_in_epoch} of {run.steps_per_epoch} steps: "
            f"the loader of {config.data.target!r} gave fewer batches than it said"
        )

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        run, config, progress = self.run, self.run.config, self.run.progress
        scalars: dict[str, Tensor] = {}
        with computing(config.precision, run.device):
            batch = run.objective.batch(inputs, targets)
            if (progress.step + 1) % config.log_every == 0:
                scalars |= _observed(config, batch, run.optimizer.curvature_fraction)
            report = run.optimizer.step(batch, validation=self.validation_batch())
        if run.average is not None:
            run.average.update()
        samples = run.samples_of(progress.step_in_epoch)
        run.count_loss(report.loss.detach(), batch.sample_weights.sum())
        progress.step += 1
        progress.step_in_epoch += 1
        progress.samples += samples
        self.interval_samples += samples
        scalars |= {"train/loss": report.loss, **{f"optimizer/{name}": value for name, value in report.scalars.items()}}
        self.ledger.add(progress.step, run.epochs_done, report.finite, scalars)

    def validation_batch(self) -> Batch | None:
        run = self.run
        if run.validation is None or not run.optimizer.needs_validation:
            return None
        return run.objective.batch(*run.validation.batch(run.progress.step))

    def close_interval(self, asked: bool) -> bool:
        """Fetch and emit the scalars of the steps since the last call; True if any worker was asked to stop.

        Raises:
            NonFiniteLoss: one of the steps was not finite.
        """
        interval = self.ledger.close(stop=asked)
        self.emit(interval.records)
        if interval.broken is not None:
            raise NonFiniteLoss(self.explained(interval.broken, interval.records))
        progress = self.run.progress
        seconds = time.perf_counter() - self.mark
        progress.training_seconds += seconds
        self.tell("progress", {"throughput/images_per_second": self.interval_samples / seconds})
        self.restart_clock()
        return interval.stop

    def restart_clock(self) -> None:
        """Begin an interval; what lies between the end of one and the beginning of the next counts as other work."""
        now = time.perf_counter()
        self.run.progress.seconds += now - self.mark
        self.mark, self.interval_samples = now, 0

    def explained(self, step: int, records: list[Record]) -> str:
        loss = next((record.values["train/loss"] for record in records if record.step == step), float("nan"))
        newest = self.store.newest()
        kept = f"The last good checkpoint is {newest}" if newest else "No checkpoint had been written yet"
        return (
            f"step {step} of {self.run.config.name!r} was not finite (loss {loss:g}), and was not applied. {kept}. "
            f"Start a new run with other settings of {self.run.config.optimizer!r} (a smaller learning rate, stronger "
            "damping, clip_gradient where it has a meaning), or look for bad values in the data"
        )

    def end_of_epoch(self) -> None:
        run, progress = self.run, self.run.progress
        whole = progress.step_in_epoch == run.steps_per_epoch
        finished = progress.step == run.total_steps
        if not whole and not finished:
            return
        require_equal_parameters(run.objective.parameters, run.collectives, run.device)
        due = (progress.epoch + 1) % run.config.evaluate_every == 0
        epochs_done = run.epochs_done
        total, weight = run.global_sums().tolist()
        values = {"train/epoch_loss": total / weight if weight else math.nan}
        if finished or (whole and due):
            values |= self.evaluate()
        if whole:
            progress.epoch += 1
            progress.step_in_epoch = 0
            run.epoch_sums.zero_()
        record = Record("evaluation", progress.step, epochs_done, time.time(), values)
        progress.evaluations.append(record)
        self.emit([record])
        self.save()

    def evaluate(self) -> dict[str, float]:
        run, config = self.run, self.run.config
        sets = {"test/": run.data.evaluation, "training_set/": run.training if config.evaluate_training else None}
        given = {prefix: source for prefix, source in sets.items() if source is not None}
        options: dict[str, Any] = {
            "loss": run.loss,
            "weights": run.weights,
            "batch_size": config.batch_size,
            "collectives": run.collectives,
            "device": run.device,
            "precision": config.precision,
        }
        values: dict[str, float] = {}
        with evaluated_weights(run):
            for prefix, source in given.items():
                values |= evaluate(run.model, source, prefix=prefix, **options)
        if run.average is not None and given:
            with run.average.applied():
                renew_statistics(run)
                for prefix, source in given.items():
                    values |= evaluate(run.model, source, prefix=f"averaged/{prefix}", **options)
        return values

    def save(self) -> None:
        run = self.run
        if self.saved_at == run.progress.step:
            return
        self.restart_clock()
        state = run.state()
        if run.collectives.rank == 0:
            where = self.store.save(state)
            self.tell("event", message=f"wrote {where}")
        self.saved_at = run.progress.step
        self.restart_clock()

    def tell(self, kind: Kind, values: Mapping[str, float] | None = None, message: str = "") -> None:
        run = self.run
        self.emit([Record(kind, run.progress.step, run.epochs_done, time.time(), values or {}, message)])

    def result(self, *, stopped: bool) -> Result:
        run, progress = self.run, self.run.progress
        self.restart_clock()
        evaluations = tuple(progress.evaluations)
        return Result(
            name=run.config.name,
            steps=progress.step,
            epochs=run.epochs_done,
            values=dict(evaluations[-1].values) if evaluations else {},
            evaluations=evaluations,
            seconds=progress.seconds,
            images_per_second=progress.samples / progress.training_seconds if progress.training_seconds else 0.0,
            stopped=stopped,
        )


def _nobody(records: list[Record]) -> None:
    """The other workers have nobody to tell."""


def _observed(config: RunConfig, batch: Batch, fraction: float) -> dict[str, Tensor]:
    """What a run asks of a batch beside what its optimizer does; the batch is divided as the optimizer wants it."""
    if fraction < 1 and (config.batch_error or config.gradient_norm):
        divide_for_curvature(batch, fraction)  # afterwards it could not be
    found = {"train/batch_error": batch.error()} if config.batch_error else {}
    return {**found, "train/gradient_norm": _norm(batch.gradient())} if config.gradient_norm else found


def _norm(gradient: Any) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradient))))
