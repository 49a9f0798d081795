"""All commands by name. The only place that knows them; nothing is imported before a command is called."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

GROUPS = {
    "sweep": "many runs as one search",
    "papers": "the papers' own tables and figures",
    "benchmark": "measure steps, data, workers and optimizers",
    "prepare": "bring a data set into the form that recipes read",
    "tracking": "care for the runs in MLflow",
}

# The command of a group where options follow at once, as in `jobs/papers.py --table NAME`.
DEFAULTS = {"papers": "table"}


@dataclass(frozen=True)
class Command:
    """An entry.

    Attributes:
        name: one word, or two where several commands form a group.
        summary: one line.
        target: ``"module:class"`` in this package.
        extras: extras of the package that must be installed.
    """

    name: str
    summary: str
    target: str
    extras: tuple[str, ...] = ("cluster",)

    @property
    def group(self) -> str | None:
        """The first of two words."""
        first, _, second = self.name.partition(" ")
        return first if second else None

    def load(self) -> type[Any]:
        """Import the dataclass of its options."""
        module, _, name = self.target.partition(":")
        found: type[Any] = getattr(importlib.import_module(f"raycurv.cli.{module}"), name)
        return found


COMMANDS = (
    Command("train", "train a recipe on any number of workers, followed in MLflow", "train:Train"),
    Command("sweep grid", "search the rates of baselines, then compare the best", "sweep:Grid"),
    Command("sweep networks", "train optimizers on many random networks", "sweep:Networks"),
    Command("compare", "the table that compares tracked runs, a report, figures", "compare:Compare"),
    Command("papers table", "a paper's table, with our numbers beside its own", "papers:PaperTable"),
    Command("papers list", "all tables of the papers", "papers:PaperList"),
    Command("papers figures", "the papers' figures that need no tracked run", "papers:Figures", ("cluster", "figures")),
    Command("evaluate", "evaluate a checkpoint or a logged model on a data set", "evaluate:Evaluate"),
    Command("benchmark suite", "tasks with targets: score, and one setting for all", "suite:BenchmarkSuite"),
    Command("benchmark step", "cost of a step: operations, time, memory", "benchmark:BenchmarkStep"),
    Command("benchmark data", "speed of reading and decoding images", "benchmark:BenchmarkData"),
    Command("benchmark workers", "images per second over the number of workers", "benchmark:BenchmarkWorkers"),
    Command("benchmark starts", "how little auto depends on where it starts", "benchmark:BenchmarkStarts"),
    Command("benchmark robustness", "auto over batch sizes and disturbances", "benchmark:BenchmarkRobustness"),
    Command("benchmark table1", "CurveBall's Table 1: iterations on small problems", "benchmark:BenchmarkTable1"),
    Command("prepare digits", "write the digits, small images without a download", "prepare:PrepareDigits"),
    Command("prepare torchvision", "convert a set of torchvision.datasets", "prepare:PrepareTorchvision"),
    Command("prepare folder", "convert images in folders named after their classes", "prepare:PrepareFolder"),
    Command("tracking reap", "close MLflow runs whose driver was killed", "tracking:Reap"),
    Command("ui", "open the runs in MLflow", "ui:Ui"),
)


def tree() -> dict[str, tuple[Command, ...]]:
    """The commands by their first word."""
    firsts = dict.fromkeys(command.name.split()[0] for command in COMMANDS)
    return {first: tuple(c for c in COMMANDS if c.name.split()[0] == first) for first in firsts}
