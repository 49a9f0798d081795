"""Measure how little `auto` depends on where it starts: the table "Nothing to tune" of the README."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from raycurv.benchmarks import start_sensitivity


@dataclass(frozen=True)
class Job:
    """Measure how little `auto` depends on where it starts: the table "Nothing to tune" of the README."""

    output: Path = Path("runs/free_table.jsonl")
    """One line for each run; runs that are in it are not repeated."""

    methods: tuple[str, ...] = tuple(dict.fromkeys(entry.method for entry in start_sensitivity.METHODS))
    """Rows to measure."""

    problems: tuple[str, ...] = tuple(problem.name for problem in start_sensitivity.PROBLEMS)
    """Columns to measure."""

    seed: int = 0
    """Of the initial weights and of the order of the data."""


def main(job: Job) -> None:
    """Measure what is missing, show every run as it comes, and print the table of all."""
    entries = [entry for entry in start_sensitivity.METHODS if entry.method in job.methods]
    problems = [problem for problem in start_sensitivity.PROBLEMS if problem.name in job.problems]
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    for o in start_sensitivity.campaign(job.output, problems, entries, job.seed):
        print(f"{o.seconds:4.0f} s  {o.problem}: {o.optimizer} {o.value:g}: {o.raw:.4g} / {o.averaged:.4g}",
              file=sys.stderr)  # fmt: skip
    print(start_sensitivity.to_markdown(start_sensitivity.finished(job.output)))


if __name__ == "__main__":
    main(tyro.cli(Job))
