"""The training loop: no branch on an optimizer's name, and no wait for the device before the log interval."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from torch import Tensor

from raycurv.data import Data
from raycurv.objective import Batch
from raycurv.objective.collectives import Collectives
from raycurv.objective.micro_batches import divide_for_curvature
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.checkpoint_writer import CheckpointWriter
from raycurv.train.configuration import RunConfig
from raycurv.train.distributed import require_equal, require_equal_parameters
from raycurv.train.divergence import add_losses, divergence
from raycurv.train.evaluation import evaluate_run
from raycurv.train.metrics import MetricBuffer, NonFiniteLoss
from raycurv.train.out_of_memory import (
    StepOutOfMemory,
    halve_micro_batch,
    halved_message,
    is_out_of_memory,
    release_memory,
)
from raycurv.train.precision import autocast
from raycurv.train.records import OPERATIONS, STEPS, Kind, Record, Result, newest_is_best
from raycurv.train.resume import Resume, UnusableState, first_step, open_run, restore
from raycurv.train.step_clock import StepClock, extra_startup_seconds, steady_step_seconds
from raycurv.train.training_run import TrainingRun, lacking

Emit = Callable[[list[Record]], None]
SAVE_SHARE = 20  # times the seconds that a checkpoint took, until the clock asks for the next one


def train(
    config: RunConfig,
    *,
    collectives: Collectives,
    device: torch.device | str = "cpu",
    store: CheckpointStore,
    emit: Emit,
    resume: Resume = "never",
    stop: Callable[[], bool] = lambda: False,
    data: Data | None = None,
    checkpoint_seconds: float | None = None,
) -> Result:
    """Train one run from its start, or from its newest checkpoint, to its end.

    All workers call it with the same configuration. It seeds torch's generators. On the same number of workers, a
    resumed run is bit by bit the run without an interruption. On another number it resumes in the middle of the epoch
    with new dropout masks.

    Args:
        config: configuration of the run.
        collectives: the workers; the first one emits records and writes checkpoints.
        device: device of this worker.
        store: the checkpoints; every worker must reach the same ones.
        emit: receives records in batches, on the first worker alone. After a crash, it receives the records of the
            steps since the checkpoint a second time.
        resume: ``never`` for a new run, which refuses a `store` that holds a run; ``must`` to resume that run; ``auto``
            to resume if `store` holds a run, for a worker that is restarted.
        stop: asked at every log interval, and at every step on a single worker. If any worker's answer is true, all
            write a checkpoint and return.
        data: the data of ``config.data``, if it is built already.
        checkpoint_seconds: write a checkpoint at the next log interval after that many seconds, beside those of
            `config`. Writing takes at most a twentieth of the time.

    Raises:
        ValueError: a component or setting of the configuration is not allowed.
        ResumeError: `store` holds a run and should not, does not and should, or holds one of another configuration.
        CheckpointError: a checkpoint cannot be written, or none can be read.
        NonFiniteLoss: a loss or step is infinite or NaN.
        StepOutOfMemory: a step does not fit in memory, with several workers or for the second time. A single worker
            goes on by itself, in micro-batches of half the size.
        WorkersDisagree: the workers have different parameters, or see different checkpoints.
    """
    device = torch.device(device)
    seconds = math.inf if checkpoint_seconds is None else checkpoint_seconds
    try:
        return _train(config, collectives, device, store, emit, resume, stop, data, seconds)
    except StepOutOfMemory as error:
        if collectives.size > 1 or not error.halved:
            raise  # the other workers wait in the step: all are started again
    release_memory(device)
    return _train(config, collectives, device, store, emit, "auto", stop, data, seconds)


def _train(
    config: RunConfig,
    collectives: Collectives,
    device: torch.device,
    store: CheckpointStore,
    emit: Emit,
    resume: Resume,
    stop: Callable[[], bool],
    data: Data | None,
    checkpoint_seconds: float,
) -> Result:
    result, state = open_run(config, store, resume, collectives, device)
    if result is not None:
        return result
    halved = store.micro_batch()
    require_equal(halved or 0, "the samples that are computed at once", collectives, device)
    run = TrainingRun(config, collectives, device, data, resumed=state is not None, halved=halved)
    while True:
        start = f"starts: {_size(run)}" if state is None else restore(run, store, state)
        trainer = _Trainer(run, store, emit, stop, checkpoint_seconds, resumed=state is not None)
        trainer.emit_record("event", {STEPS: run.total_steps}, start + halved_message(run))
        trainer.emit_record("data", message=run.data_summary().to_json())
        if run.start is not None:
            trainer.emit_record("event", message=str(run.start))
        try:
            return trainer.train()
        except UnusableState as error:
            run.operations.take()  # of the step that failed
            store.reject({"step": run.progress.step}, error.cause)
            state = store.load(lacking)


class _Trainer:
    def __init__(
        self,
        run: TrainingRun,
        store: CheckpointStore,
        emit: Emit,
        stop: Callable[[], bool],
        checkpoint_seconds: float,
        *,
        resumed: bool,
    ) -> None:
        self.run, self.store, self.stop = run, store, stop
        self.between_saves = self.checkpoint_seconds = checkpoint_seconds
        self.save_time = time.monotonic()
        self.save_asked = False
        self.emit = emit if run.collectives.rank == 0 else _discard
        self.metrics = MetricBuffer(run.collectives, run.device)
        self.writer = CheckpointWriter(store)
        self.saved_at = self.first_step = run.progress.step
        self.resumed = resumed
        self.interval_samples = 0
        self.interval_start = time.perf_counter()
        self.clock = StepClock(run.progress, run.device)

    def train(self) -> Result:
        try:
            return self.train_to_end()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                self.writer.wait()
            raise

    def train_to_end(self) -> Result:
        run = self.run
        stopped = False
        while not stopped and run.progress.step < run.total_steps:
            stopped = self.train_epoch()
            self.end_epoch()
        self.writer.wait()
        self.emit_written()
        result = self.result(stopped=stopped and run.progress.step < run.total_steps)
        if result.stopped:
            self.emit_record("event", message=f"stopped as asked at step {result.steps}")
        elif run.collectives.rank == 0:
            self.store.finish(result)
        # No worker returns before the first one has written everything.
        require_equal(result.steps, "the number of steps", run.collectives, run.device)
        return result

    def train_epoch(self) -> bool:
        """Train to the end of the epoch or of the run; True if asked to stop.

        Raises:
            StepOutOfMemory: a step does not fit in memory.
            RuntimeError: the loader gave fewer batches than its number of steps.
        """
        run, config = self.run, self.run.config
        progress = run.progress
        run.model.train()
        self.start_interval()
        with closing(run.loader.epoch(progress.epoch, progress.step_in_epoch)) as batches:
            for inputs, targets in batches:
                try:
                    self.step(inputs, targets)
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        halve_micro_batch(run, self.store, error)
                    raise
                last = progress.step_in_epoch == run.steps_per_epoch or progress.step == run.total_steps
                save = progress.step % config.checkpoint_every == 0 and not last
                evaluate = self.at_evaluation_step and not last
                over = config.stop_after is not None and progress.step - self.first_step >= config.stop_after
                due = last or save or evaluate or over or progress.step % config.log_every == 0
                asked = over or ((due or run.collectives.size == 1) and self.stop())
                if due or asked:
                    stopped = self.end_interval(asked)
                    if evaluate:
                        self.record_evaluation(self.evaluate())
                    if save or (evaluate and self.at_best) or ((stopped or self.save_asked) and not last):
                        self.save()
                    if stopped or last:
                        return stopped
        raise RuntimeError(
            f"epoch {progress.epoch} ended after {progress.step_in_epoch} of {run.steps_per_epoch} steps: "
            f"the loader of {config.data.target!r} gave fewer batches than its length"
        )

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        run, config, progress = self.run, self.run.config, self.run.progress
        scalars: dict[str, Tensor] = {}
        l2_term = run.l2_term()  # of the weights before the step, as the loss is
        with autocast(config.precision, run.device):
            batch = run.objective.batch(inputs, targets)
            if (progress.step + 1) % config.log_every == 0:
                scalars |= _batch_metrics(config, batch, run.optimizer.curvature_fraction)
            validation = run.validation_batch()
            restored = self.resumed and progress.step == self.first_step
            with run.operations.step(), first_step() if restored else contextlib.nullcontext():
                report = run.optimizer.step(batch, validation=validation)
        if run.average is not None:
            run.average.update()
        samples = run.batch_samples(progress.step_in_epoch)
        loss = report.loss.detach() - l2_term
        run.add_loss(loss, l2_term, batch.sample_weights.sum())
        progress.step += 1
        progress.step_in_epoch += 1
        progress.samples += samples
        self.interval_samples += samples
        scalars |= {"train/loss": loss, **({"train/l2_term": l2_term} if config.l2 else {})}
        scalars |= {f"optimizer/{name}": value for name, value in report.scalars.items()}
        if batch.lowered is not None:
            scalars["optimizer/loss_scale"] = run.objective.loss_scale.at(run.device)
        self.metrics.add(progress.step, run.epochs_done, batch.is_sound(report.finite, loss), scalars)
        self.clock.step()

    def end_interval(self, asked: bool) -> bool:
        """Fetch and emit the scalars of the log interval; True if any worker was asked to stop.

        Raises:
            NonFiniteLoss: a step of the interval was not finite.
        """
        late = time.monotonic() - self.save_time > self.between_saves
        interval = self.metrics.fetch(stop=asked, operations=self.run.operations.take(), save=late)
        self.save_asked = interval.save
        self.clock.end()
        progress = self.run.progress
        progress.operations += interval.operations
        add_losses(progress, interval.records, self.run.config.batch_size, self.run.total_steps)
        seconds = time.perf_counter() - self.interval_start
        progress.training_seconds += seconds
        values = {"throughput/images_per_second": self.interval_samples / seconds}
        if not math.isnan(progress.operations):
            values[OPERATIONS] = progress.operations
        self.emit(interval.records)
        self.emit_record("progress", values)
        self.emit_written()
        if interval.non_finite_step is not None:
            raise NonFiniteLoss(self.non_finite_message(interval.non_finite_step, interval.records))
        self.check_losses(interval.records)
        self.start_interval()
        return interval.stop

    def check_losses(self, records: list[Record]) -> None:
        """Look into losses that are not finite although the optimizer goes on, as SALERA does after an explosion.

        Raises:
            NonFiniteLoss: samples of the first such batch are NaN or infinite.
        """
        lost = [record for record in records if not math.isfinite(record.values["train/loss"])]
        if not lost:
            return
        run, step = self.run, lost[0].step
        if samples := run.non_finite_samples(step):
            raise NonFiniteLoss(
                f"step {step} of {run.config.name!r} was not finite (loss {lost[0].values['train/loss']:g}), since "
                f"{samples} of its samples have a NaN or infinite input or target: repair them or leave them out"
            )
        self.emit_record(
            "event",
            message=f"{len(lost)} steps had a loss that is not finite, the first of them step {step}; "
            f"{run.config.optimizer!r} went on, and the epoch's training loss leaves them out",
        )

    def start_interval(self) -> None:
        """Start the clock of a log interval; time since the last start counts as work of the run."""
        now = time.perf_counter()
        self.run.progress.seconds += now - self.interval_start
        self.interval_start, self.interval_samples = now, 0
        self.clock.start()

    def non_finite_message(self, step: int, records: list[Record]) -> str:
        loss = next((record.values["train/loss"] for record in records if record.step == step), math.nan)
        self.writer.wait()
        newest = self.store.newest()
        kept = f"The last good checkpoint is {newest}" if newest else "No checkpoint had been written yet"
        return (
            f"step {step} of {self.run.config.name!r} was not finite (loss {loss:g}), and was not applied. {kept}. "
            f"Start a new run with other settings of {self.run.config.optimizer!r} (a smaller learning rate, stronger "
            "damping, clip_gradient where it has a meaning), or look for bad values in the data"
        )

    def end_epoch(self) -> None:
        """Evaluate and write a checkpoint, if the epoch or the run is complete."""
        run, progress = self.run, self.run.progress
        whole = progress.step_in_epoch == run.steps_per_epoch
        finished = progress.step == run.total_steps
        if not whole and not finished:
            return
        require_equal_parameters(run.objective.parameters, run.collectives, run.device)
        epochs_done = run.epochs_done
        values = run.epoch_means()
        if finished or self.evaluation_due():
            values |= self.evaluate()
        if whole:
            progress.epoch += 1
            progress.step_in_epoch = 0
            run.epoch_sums.zero_()
        self.record_evaluation(values, epochs_done)
        self.save()

    @property
    def at_evaluation_step(self) -> bool:
        """Whether ``evaluate_every_steps`` divides the step."""
        every = self.run.config.evaluate_every_steps
        return every is not None and self.run.progress.step % every == 0

    def evaluation_due(self) -> bool:
        """Whether the end of an epoch is evaluated."""
        config = self.run.config
        if config.evaluate_every_steps is not None:
            return self.at_evaluation_step
        return (self.run.progress.epoch + 1) % config.evaluate_every == 0

    def evaluate(self) -> dict[str, float]:
        """Evaluate the run.

        Raises:
            ValueError: the metric of the best checkpoint is not among the metrics.
        """
        self.run.average_running_statistics()
        values, metric = evaluate_run(self.run), self.run.config.best_metric
        if metric is not None and metric not in (*values, "train/epoch_loss"):
            known = ", ".join(("train/epoch_loss", *values))
            raise ValueError(f"RunConfig.best_metric is {metric!r}, which is not measured; it may be: {known}")
        return values

    @property
    def at_best(self) -> bool:
        """Whether the run was evaluated at this step, with the best value so far of the metric of best checkpoints."""
        config, progress = self.run.config, self.run.progress
        if config.best_metric is None or not progress.evaluations or progress.evaluations[-1].step != progress.step:
            return False
        return newest_is_best(progress.evaluations, config.best_metric, largest=config.largest_is_best)

    def record_evaluation(self, values: Mapping[str, float], epoch: float | None = None) -> None:
        """Keep and emit metrics of whole sets.

        Args:
            values: the metrics.
            epoch: epochs so far, with the fraction of the current one; None takes the position of the run.
        """
        progress = self.run.progress
        epoch = self.run.epochs_done if epoch is None else epoch
        record = Record("evaluation", progress.step, epoch, time.time(), values)
        progress.evaluations.append(record)
        self.emit([record])
        self.start_interval()

    def save(self) -> None:
        """Begin to write a checkpoint, unless one of this step is there."""
        run = self.run
        if self.saved_at == run.progress.step:
            return
        self.start_interval()
        run.average_running_statistics()
        began = time.monotonic()
        state = run.state()
        if run.collectives.rank == 0:
            self.writer.save(state, best=self.at_best)
            self.emit_written()
        self.saved_at = run.progress.step
        self.save_time = time.monotonic()
        self.between_saves = max(self.checkpoint_seconds, SAVE_SHARE * (self.save_time - began))
        self.start_interval()

    def emit_written(self) -> None:
        """Report a checkpoint that is complete.

        Raises:
            CheckpointError: it cannot be written.
        """
        if (address := self.writer.take_written()) is not None:
            self.emit_record("event", message=f"wrote {address}")

    def emit_record(self, kind: Kind, values: Mapping[str, float] | None = None, message: str = "") -> None:
        run = self.run
        self.emit([Record(kind, run.progress.step, run.epochs_done, time.time(), values or {}, message)])

    def result(self, *, stopped: bool) -> Result:
        run, progress = self.run, self.run.progress
        self.start_interval()
        evaluations = tuple(progress.evaluations)
        startup = extra_startup_seconds(progress)
        trained = progress.training_seconds - startup
        return Result(
            name=run.config.name,
            steps=progress.step,
            epochs=run.epochs_done,
            values=dict(evaluations[-1].values) if evaluations else {},
            evaluations=evaluations,
            seconds=progress.seconds,
            images_per_second=progress.samples / trained if trained > 0 else 0.0,
            stopped=stopped,
            step_seconds=steady_step_seconds(progress),
            startup_seconds=startup,
            diverged="" if stopped else divergence(progress, run.config.batch_size, run.total_steps),
            operations=0.0 if math.isnan(progress.operations) else float(round(progress.operations)),
        )


def _size(run: TrainingRun) -> str:
    """Size of a run in words."""
    parameters, samples = sum(p.numel() for p in run.model.parameters()), len(run.training)
    return f"{parameters:,} parameters, {samples:,} training samples, {run.total_steps:,} steps"


def _discard(records: list[Record]) -> None:
    """Emit nothing; only the first worker emits."""


def _batch_metrics(config: RunConfig, batch: Batch, fraction: float) -> dict[str, Tensor]:
    """Metrics of the mini-batch that the configuration asks for.

    Args:
        config: configuration of the run.
        batch: the mini-batch.
        fraction: fraction of the samples that the optimizer uses for curvature. They are chosen before the first pass
            through the model, since they cannot be chosen afterwards.
    """
    if fraction < 1 and (config.batch_error or config.gradient_norm):
        divide_for_curvature(batch, fraction)
    values = {"train/batch_error": batch.error()} if config.batch_error else {}
    if not config.gradient_norm:
        return values
    norms = torch._foreach_norm(list(batch.gradient()))
    return values | {"train/gradient_norm": torch.linalg.vector_norm(torch.stack(norms))}
