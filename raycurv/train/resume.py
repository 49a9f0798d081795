"""May this run start here, and from where?"""

from __future__ import annotations

from typing import Any, Literal

import torch

from raycurv.objective.collectives import Collectives
from raycurv.train.checkpoint import CheckpointError, CheckpointStore, differences
from raycurv.train.configuration import RunConfig
from raycurv.train.distributed import require_equal
from raycurv.train.records import Result

Resume = Literal["never", "auto", "must"]


class ResumeError(ValueError):
    """A run lies there already, or none does, or another one; the message says what to do."""


def require_startable(config: RunConfig, store: CheckpointStore, resume: Resume) -> None:
    """Refuse to continue a run silently, to resume one that is not there, or to go on as another one.

    Args:
        config: what is asked for.
        store: where the checkpoints are.
        resume: ``never`` for a new run; ``must`` to go on with one that lies in `store`; ``auto`` to go on if there is
            something to go on with, which is what a worker that is started again after a crash wants.

    Raises:
        ValueError: `resume` is none of these words.
        ResumeError: the run must not start like this.
        CheckpointError: what lies there cannot be read.
    """
    if resume not in ("never", "auto", "must"):
        raise ValueError(f"resume is {resume!r}; it must be 'never', 'auto' or 'must'")
    exists = store.exists()
    if exists and resume == "never":
        raise ResumeError(
            f"{store.uri} already holds a run: go on with it by --resume, or start a new one under another --run-name"
        )
    if not exists and resume == "must":
        raise ResumeError(
            f"there is nothing to resume in {store.uri}: check --run-name, or start a new run without --resume"
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
    """Admit the run on all workers alike, and write its configuration down.

    Args:
        config: of the run.
        store: where its checkpoints are.
        resume: as for `require_startable`.
        collectives: the workers, who all call this together.
        device: for talking to the other workers.

    Returns:
        The result if the run has finished already, and the checkpoint to go on from if there is one.

    Raises:
        ResumeError: the run must not start like this.
        CheckpointError: what lies there cannot be read, or the folder cannot be written.
        WorkersDisagree: the workers do not see the same checkpoints.
    """
    require_startable(config, store, resume)
    result = _finished(config, store)
    state = store.load() if result is None else None
    step = -1 if state is None else int(state["step"])
    # Nobody writes before everybody has looked.
    require_equal(step, f"the checkpoint in {store.uri} (do all nodes share this storage?)", collectives, device)
    if result is None and collectives.rank == 0:
        store.begin(config)
    return result, state


def _finished(config: RunConfig, store: CheckpointStore) -> Result | None:
    stored = store.config()
    if stored is None or (stored.epochs, stored.max_steps) != (config.epochs, config.max_steps):
        return None  # longer than it was: it goes on
    return store.finished()
