"""What MLflow's page of a run shows: its fields, description and parameters."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from raycurv.arguments import format_settings, mask_passwords
from raycurv.results.palette import colour_of
from raycurv.tracking import provenance
from raycurv.train.configuration import RunConfig

NOTE_TAG, COLOUR_TAG = "mlflow.note.content", "mlflow.runColor"
LAUNCH = "launch."  # prefix of parameters that are no part of the configuration
# Parameters that are logged at their defaults too, because runs are compared by them.
_ALWAYS = ("optimizer", "seed", "epochs", "batch_size", "l2", "loss", "precision")
_RESULTS = {
    "train/epoch_loss": "training loss",
    "test/loss": "test loss",
    "test/accuracy": "test accuracy",
    "averaged/test/accuracy": "test accuracy, averaged weights",
    "result/step_seconds": "seconds a step",
    "result/startup_seconds": "seconds of start-up",
}


def fields(optimizer: str | None, commit: str) -> dict[str, str]:
    """Tags of MLflow itself: user, source, commit, and the colour of the optimizer.

    Args:
        optimizer: name of the registered optimizer; None for a run that gathers others.
        commit: git commit, or ``unknown``.
    """
    found = {
        "mlflow.user": provenance.user(),
        "mlflow.source.name": mask_passwords(provenance.program()),
        "mlflow.source.type": "JOB" if provenance.in_ray_job() else "LOCAL",
    }
    found |= {} if commit in ("", "unknown") else {"mlflow.source.git.commit": commit}
    return found if optimizer is None else found | {COLOUR_TAG: colour_of(optimizer)}


def parameters(config: RunConfig) -> dict[str, str]:
    """Flat configuration without its name, and without fields at their defaults that no comparison needs."""
    values = json.loads(config.to_json())
    del values["name"]
    kept = {name: value for name, value in values.items() if name in _ALWAYS or not _is_default(name, value)}
    return flat(kept)


def launch_parameters(checkpoints: str = "") -> dict[str, str]:
    """Command, versions of packages, and folder of checkpoints of a run, as parameters."""
    versions = ", ".join(f"{name} {value}" for name, value in provenance.versions().items())
    found = {"command": provenance.command(), "versions": versions} | (
        {"checkpoints": mask_passwords(checkpoints)} if checkpoints else {}
    )
    return {LAUNCH + name: value for name, value in found.items()}


def configuration(params: Mapping[str, str]) -> dict[str, str]:
    """Flat configuration from the parameters of a run, also of one that an earlier version logged."""
    found = {name: value for name, value in params.items() if not name.startswith(LAUNCH)}
    return {**_DEFAULTS, **found} if found else {}


def versions_of(text: str) -> dict[str, str]:
    """Versions by package, from the parameter that :func:`launch_parameters` gives."""
    pairs = (part.partition(" ") for part in text.split(", ") if part)
    return {name: version for name, _, version in pairs}


def description(
    config: RunConfig, recipe: str, run: str, model: str = "", values: Mapping[str, float] | None = None
) -> str:
    """Markdown for the page of a run: what was trained, its results, how to resume it and how to load its model.

    Args:
        config: configuration of the run.
        recipe: name of the recipe.
        run: name of the launch or sweep to resume; empty if it cannot be resumed.
        model: address of the logged model; empty if there is none.
        values: results by metric.
    """
    setting = format_settings(dict(sorted(config.optimizer_settings.items())))
    text = f"Recipe `{recipe}` with **{config.optimizer}**{f' ({setting})' if setting else ''}, seed {config.seed}: "
    text += f"{config.epochs:g} epochs, batches of {config.batch_size}, network `{_last(config.model.target)}`.\n"
    row = {title: values[name] for name, title in _RESULTS.items() if name in (values or {})} if values else {}
    if row:
        text += "\n| " + " | ".join(row) + " |\n|" + "---:|" * len(row) + "\n"
        text += "| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |\n"
    if run:
        text += f"\nResume:\n\n```sh\n{_resume_command(run)}\n```\n"
    if model:
        text += f'\nLoad the model:\n\n```python\nimport mlflow\n\nmodel = mlflow.pyfunc.load_model("{model}")\n```\n'
    return text


def model_name(run: str) -> str:
    """Name of the logged model of a run, without characters that MLflow refuses in it."""
    return re.sub(r"[^\w -]", "-", run)[:200]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings into one with dotted names."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(value)
    return found


def _resume_command(run: str) -> str:
    words = shlex.split(provenance.command())
    words += [] if "--run-name" in words or any(w.startswith("--run-name=") for w in words) else ["--run-name", run]
    return shlex.join([*words, *([] if "--resume" in words else ["--resume"])])


def _last(target: str) -> str:
    return target.rpartition(":")[2]


def _is_default(name: str, value: Any) -> bool:
    return name in _DEFAULTS and str(value) == _DEFAULTS[name]


def _default_values() -> dict[str, str]:
    """Defaults of the configuration's fields, as text in the form of its JSON."""
    found = {}
    for field in dataclasses.fields(RunConfig):
        if field.default is not dataclasses.MISSING:
            found[field.name] = str(list(field.default) if isinstance(field.default, tuple) else field.default)
    return found


_DEFAULTS = _default_values()
