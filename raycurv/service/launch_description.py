"""First lines of a launch: what is trained, on what, where it is kept."""

from __future__ import annotations

from collections.abc import Iterable

from raycurv.arguments import format_settings
from raycurv.results import table_formats
from raycurv.service.cluster import Cluster
from raycurv.service.plan import LaunchPlan
from raycurv.train.configuration import Component, RunConfig

SHOWN = 4  # different values in one line
VALUE_WIDTH = 66  # characters of a value, beside its name on 80 columns


def describe_launch(plan: LaunchPlan, cluster: Cluster) -> str:
    """A title, and a line each for recipe, network, data, optimizers, length, workers and folder."""
    configs = [run.config for run in plan.runs]
    one = len(configs) == 1
    rows = [
        ("recipe" if one else "recipes", [run.recipe for run in plan.runs]),
        ("network", [_component(config.model) for config in configs]),
        ("data", [_data(config.data) for config in configs]),
        ("optimizer" if one else "optimizers", [_optimizer(config) for config in configs]),
        ("length", [_length(config) for config in configs]),
        ("workers", [_workers(cluster)]),
        ("checkpoints", [cluster.checkpoints]),
    ]
    lines = table_formats.aligned(("", ""), [(f"  {name}", _listed(values)) for name, values in rows]).splitlines()
    count = "" if one else f", {len(configs)} runs"
    return "\n".join([f"{'resuming' if cluster.resume else 'training'} {plan.name}{count}", *lines[1:]])


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
