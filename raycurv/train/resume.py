"""Whether a run may start in a folder of checkpoints, and the checkpoint that it resumes from."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from raycurv.arguments import require
from raycurv.objective.collectives import Collectives
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.checkpoint_file import MALFORMED, CheckpointError
from raycurv.train.configuration import RunConfig
from raycurv.train.distributed import require_equal
from raycurv.train.out_of_memory import is_out_of_memory
from raycurv.train.records import Result
from raycurv.train.training_run import TrainingRun, lacking

Resume = Literal["never", "auto", "must"]
# Errors of these modules, and errors with these folders in their traceback, are no fault of an optimizer's state.
_OTHER_ERRORS = ("raycurv.", "torch._dynamo", "torch._inductor")
_OTHER_FOLDERS = frozenset(("distributed", "autograd"))
# Fields that a resumed run may change, because no update depends on them. Methods whose step sizes follow the length of
# the run refuse other epochs and max_steps themselves, unless change_horizon is set.
FREE_TO_CHANGE = frozenset(
    (
        "name",
        "epochs",
        "max_steps",
        "stop_after",
        "change_horizon",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "evaluate_every",
        "evaluate_every_steps",
        "metrics",
        "best_metric",
        "best_mode",
        "gradient_norm",
        "batch_error",
        "check_consistency",
    )
)


class ResumeError(ValueError):
    """A run exists and must not be resumed, is missing and must be, or has another configuration."""


class UnusableState(RuntimeError):
    """The first step after a checkpoint fails, since the optimizer's state in it is not what the optimizer writes.

    Attributes:
        cause: the error of the step.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


def require_startable(config: RunConfig, store: CheckpointStore, resume: Resume) -> None:
    """Refuse to continue a run silently, to resume a missing one, or to resume with another configuration.

    Args:
        config: the configuration asked for.
        store: the checkpoints.
        resume: ``never`` for a new run; ``must`` to resume one that is in `store`; ``auto`` to resume if `store` holds
            a run, as a worker that is restarted after a crash does.

    Raises:
        ValueError: `resume` is another word.
        ResumeError: the run must not start like this.
        CheckpointError: `store` cannot be read.
    """
    require("resume", resume, resume in get_args(Resume), "'never', 'auto' or 'must'")
    exists = store.exists()
    if exists and resume == "never":
        raise ResumeError(
            f"{store.uri} already holds a run: go on with it by --resume, or start a new one under another --run-name"
        )
    if not exists and resume == "must":
        raise ResumeError(
            f"there is nothing to resume in {store.uri}: check --run-name, or give --resume auto, which starts a run "
            "where there is none"
        )
    if not exists:
        return
    stored = store.config()
    if stored is None:
        raise CheckpointError(
            f"{store.uri} holds checkpoints without their config.json: put it back, or start a new run"
        )
    if found := differences(stored, config):
        raise ResumeError(
            f"the run in {store.uri} was started with another configuration ({'; '.join(found)}): "
            "give the values that it was started with, or start a new run under another --run-name"
        )


def open_run(
    config: RunConfig, store: CheckpointStore, resume: Resume, collectives: Collectives, device: torch.device
) -> tuple[Result | None, dict[str, Any] | None]:
    """Check on all workers that the run may start, and store its configuration.

    Args:
        config: configuration of the run.
        store: its checkpoints.
        resume: see `require_startable`.
        collectives: the workers, which all call this together.
        device: device of the tensors that the workers exchange.

    Returns:
        The result if the run has finished, and the checkpoint to resume from if there is one.

    Raises:
        ResumeError: the run must not start like this.
        CheckpointError: `store` cannot be read or written.
        WorkersDisagree: the workers do not see the same checkpoints.
    """
    require_startable(config, store, resume)
    result = finished_result(config, store)
    state = store.load(lacking) if result is None else None
    step = -1 if state is None else int(state["step"])
    # No worker writes before all have read.
    require_equal(step, f"the checkpoint in {store.uri} (do all nodes share this storage?)", collectives, device)
    if result is None and collectives.rank == 0:
        store.begin(config)
    return result, state


def restore(run: TrainingRun, store: CheckpointStore, state: dict[str, Any]) -> str:
    """Restore a run from a checkpoint, or from the one before if its content cannot be used.

    Args:
        run: the run; all workers call this together.
        store: its checkpoints.
        state: the newest checkpoint.

    Returns:
        A message with the position.

    Raises:
        CheckpointError: no checkpoint can be used, or the run cannot go on at this one.
        WorkersDisagree: the workers restored different checkpoints.
        OutOfMemoryError: the device has no room for the state.
    """
    loaded: dict[str, Any] | None = state
    while loaded is not None:
        try:
            message = run.restore(loaded)
        except (CheckpointError, torch.OutOfMemoryError):  # the content is right
            raise
        except (RuntimeError, *MALFORMED) as error:
            store.reject(loaded, error)
            loaded = store.load(lacking)  # all workers find the same content wrong
            continue
        require_equal(run.progress.step, "the step of the checkpoint", run.collectives, run.device)
        return message
    raise CheckpointError(f"there is no checkpoint in {store.uri} any more")


@contextlib.contextmanager
def first_step() -> Iterator[None]:
    """The first step after :func:`restore`: torch loads any optimizer state, and only a step finds that it is wrong.

    Yields:
        Nothing.

    Raises:
        UnusableState: the step fails, and nothing else than the state may be the cause.
    """
    try:
        yield
    except Exception as error:  # of any kind, from torch's optimizers
        if is_out_of_memory(error) or _has_another_cause(error):
            raise
        raise UnusableState(error) from error


def _has_another_cause(error: Exception) -> bool:
    """Whether the package declares the error, or the other workers, the model or a compiler may be the cause."""
    folders = {part for frame in traceback.extract_tb(error.__traceback__) for part in Path(frame.filename).parts}
    return type(error).__module__.startswith(_OTHER_ERRORS) or bool(folders & _OTHER_FOLDERS)


def differences(stored: RunConfig, asked: RunConfig) -> list[str]:
    """Fields in which two configurations of one run contradict each other, as ``field: stored → asked``."""
    old, new = (_flat(json.loads(config.to_json())) for config in (stored, asked))
    missing = object()
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, missing), new.get(name, missing)
        if before != after and name.partition(".")[0] not in FREE_TO_CHANGE:
            texts = ["unset" if value is missing else repr(value) for value in (before, after)]
            found.append(f"{name}: {texts[0]} → {texts[1]}")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def finished_result(config: RunConfig, store: CheckpointStore) -> Result | None:
    """The stored result; None if there is none, or the run is now longer than it was."""
    stored = store.config()
    if stored is None or (stored.epochs, stored.max_steps) != (config.epochs, config.max_steps):
        return None
    return store.finished()
