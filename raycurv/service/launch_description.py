"""First lines of a launch: what is trained, on what, where it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from raycurv.arguments import format_settings
from raycurv.results import table_formats
from raycurv.service.cluster import Cluster
from raycurv.service.plan import LaunchPlan
from raycurv.train.configuration import Component, RunConfig

SHOWN = 4  # different values in one line
VALUE_WIDTH = 66  # characters of a value, beside its name on 80 columns


def describe_launch(plan: LaunchPlan, cluster: Cluster) -> str:
    """A title, and a line each for recipe, network, data, optimizers, length, workers and folder."""
    count = "" if len(plan.runs) == 1 else f", {len(plan.runs)} runs"
    title = f"{'resuming' if cluster.resume else 'training'} {plan.name}{count}"
    configs = [run.config for run in plan.runs]
    return _described(title, [run.recipe for run in plan.runs], configs, cluster, ("checkpoints", cluster.checkpoints))


def describe_sweep(name: str, configs: Sequence[RunConfig], cluster: Cluster, folder: Path) -> str:
    """The same lines for a sweep.

    Args:
        name: name of the sweep.
        configs: configurations of its first trials.
        cluster: resources of one trial.
        folder: folder of its outcomes.
    """
    title = f"{'resuming' if cluster.resume else 'starting'} sweep {name}, {len(configs)} trials to begin with"
    return _described(title, [config.name for config in configs], configs, cluster, ("outcomes", str(folder)))


def _described(
    title: str, recipes: Sequence[str], configs: Sequence[RunConfig], cluster: Cluster, where: tuple[str, str]
) -> str:
    one = len(configs) == 1
    rows = [
        ("recipe" if one else "recipes", _listed(recipes)),
        ("network", _listed(_component(config.model) for config in configs)),
        ("data", _listed(_data(config.data) for config in configs)),
        ("optimizer" if one else "optimizers", _listed(_optimizer(config) for config in configs)),
        ("length", _listed(_length(config) for config in configs)),
        ("workers", _workers(cluster)),
        where,
    ]
    lines = table_formats.aligned(("", ""), [(f"  {name}", value) for name, value in rows]).splitlines()
    return "\n".join([title, *lines[1:]])


def _component(component: Component) -> str:
    return f"{component.target.rpartition(':')[2]} {format_settings(component.settings)}".strip()


def _data(component: Component) -> str:
    """The address of the data; without one, what makes them."""
    path = component.settings.get("path")
    return _component(component) if path is None else str(path)


def _optimizer(config: RunConfig) -> str:
    return f"{config.optimizer} {format_settings(config.optimizer_settings)}".strip()


def _length(config: RunConfig) -> str:
    end = "" if config.max_steps is None else f", at most {config.max_steps:,} steps"
    return f"{config.epochs} epoch{'s' if config.epochs > 1 else ''} in batches of {config.batch_size:,}{end}"


def _workers(cluster: Cluster) -> str:
    device = "GPU" if cluster.use_gpu else "CPU"
    return f"{cluster.workers} on the {device}"


def _listed(values: Iterable[str]) -> str:
    different = list(dict.fromkeys(values))
    if len(different) > SHOWN:
        return f"{', '.join(map(_cut, different[:1]))} and {len(different) - 1} others"
    return ", ".join(map(_cut, different)) if len(different) > 1 else _cut(different[0])


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_WIDTH or "/" in text else f"{text[: VALUE_WIDTH - 1]}…"
