"""Golden runs: twenty seeded steps of each method, whose losses are kept in a file.

A change that alters a method's numbers shows here first, with the method and the step. Where the change is meant,
rewrite the files and look at their difference before committing it:

    python -m tests.golden.write            # all runs
    python -m tests.golden.write red_adam   # the runs whose names begin so
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import raycurv
from raycurv import optim
from tests.cases import BY_NAME

FOLDER = Path(__file__).parent / "losses"
STEPS = 20
HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=60)

# Run: optimizer and settings. The settings make the method's mechanism show within twenty steps: SALERA and SPALERA
# raise alarms, NTLR ends a window at every step, and the methods without tuning hand over after ten.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "curveball": ("curveball", {}),
    "curveball_fixed_momentum": ("curveball", {"momentum": 1.0, "damping_interval": None}),
    "curveball_fraction": ("curveball", {"curvature_fraction": 0.5}),
    "red_sgd": ("red_sgd", {}),
    "red_sgd_lean": ("red_sgd", {"lean": True, "factor": 1.0}),
    "red_rmsprop": ("red_rmsprop", {}),
    "red_momentum": ("red_momentum", {}),
    "red_adam": ("red_adam", {}),
    "red_adam_fraction": ("red_adam", {"curvature_fraction": 0.5}),
    "ran_sgd": ("ran_sgd", {"phases": (1, 2, 1)}),
    "ran_rmsprop": ("ran_rmsprop", {"phases": (1, 2, 1)}),
    "ntlr_sgd": ("ntlr_sgd", {"learning_rate": 0.1}),
    "ntlr_adam": ("ntlr_adam", {"portion": 0.8}),
    "hypergradient_additive": ("hypergradient_additive", {"learning_rate": 0.1}),
    "hypergradient_multiplicative": ("hypergradient_multiplicative", {"learning_rate": 0.1}),
    "alera": ("alera", {"learning_rate": 0.3, "memory": 0.1, "gain": 0.01, "clip_gradient": 1.0}),
    "salera": ("salera", {"learning_rate": 12.0, "memory": 0.1, "gain": 0.01, "batch_ratio": 0.5}),
    "spalera": ("spalera", {"learning_rate": 12.0, "memory": 0.1, "gain": 0.003, "batch_ratio": 0.5}),
    "ag_adam": ("ag_adam", {"learning_rate": 0.01, "memory": 0.1, "gain": 0.01, "epsilon": 1e-3}),
    "llr_first_order": ("llr_first_order", {"learning_rate": 0.2, "meta_rate": 0.1, "momentum": 0.5}),
    "llr_first_order_validation": ("llr_first_order", {"learning_rate": 0.2, "meta_rate": 0.1, "on_validation": True}),
    "llr_second_order": ("llr_second_order", {"learning_rate": 0.2, "damping": 1.0}),
    "llr_second_order_validation": ("llr_second_order", {"damping": 1.0, "on_validation": True}),
    "red_sgd_free": ("red_sgd_free", {}),
    "red_momentum_free": ("red_momentum_free", {}),
    "red_adam_free": ("red_adam_free", {"start": 0.5}),
    "curveball_free": ("curveball_free", {}),
    "ntlr_sgd_free": ("ntlr_sgd_free", {}),
    "alera_free": ("alera_free", {}),
    "salera_free": ("salera_free", {}),
    "llr_free": ("llr_free", {}),
}


def losses(run: str) -> Iterator[tuple[float, float]]:
    """Loss and learning rate of each step, of a small network with convolutions and batch normalisation in float64.

    Every fourth batch has nine samples instead of twelve.
    """
    name, settings = RUNS[run]
    case = BY_NAME["batch-norm-l2"]
    model = case.model()
    objective = raycurv.Objective(model, case.loss, case.l2)
    optimizer = optim.create(name, model, horizon=HORIZON, **settings)
    for step in range(STEPS):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(step))
        train, held_out = rows[: 9 if step % 4 == 3 else 12], rows[12:]
        batch = objective.batch(case.inputs[train], case.targets[train])
        validation = objective.batch(case.inputs[held_out], case.targets[held_out])
        report = optimizer.step(batch, validation=validation if optimizer.needs_validation else None)
        yield float(report.loss), float(report.scalars["learning_rate"])


def path_of(run: str) -> Path:
    """The file of a run."""
    return FOLDER / f"{run}.txt"


def read(run: str) -> list[tuple[float, float]]:
    """The numbers in the file of a run."""
    lines = path_of(run).read_text().splitlines()[1:]
    return [(float(loss), float(rate)) for _, loss, rate in map(str.split, lines)]


def write(run: str) -> None:
    """Replace the file of a run by the numbers of today's code."""
    lines = ["step loss learning_rate", *(f"{i} {loss!r} {rate!r}" for i, (loss, rate) in enumerate(losses(run)))]
    path_of(run).write_text("\n".join(lines) + "\n")
