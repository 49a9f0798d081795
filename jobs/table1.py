"""Measure CurveBall's Table 1: iterations to solve small degenerate problems, the paper's numbers beside."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from raycurv.benchmarks import table1


@dataclass(frozen=True)
class Job:
    """Measure CurveBall's Table 1: iterations to solve small degenerate problems, the paper's numbers beside."""

    runs: int = 100
    """Runs of every optimizer on every problem."""

    seed: int = 0
    """Seed of the first run; the others follow."""

    optimizers: tuple[str, ...] = tuple(row.optimizer for row in table1.ROWS)
    """Rows to measure."""

    output: Path | None = None
    """Folder for table1.md and table1.csv."""


def main(job: Job) -> None:
    """Measure, show every entry as it comes, and print the table."""
    try:
        experiment = table1.Table1Settings(runs=job.runs, seed=job.seed)
        rows = table1.select(job.optimizers)
        if job.output is not None:
            job.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"table1: {error}")
    torch.set_num_threads(1)  # tensors of a few numbers: more threads only wait for each other
    began, measured = time.monotonic(), []
    for cell in table1.cells(experiment, rows):
        measured.append(cell)
        settings = ", ".join(f"{name} {value:g}" for name, value in cell.settings.items())
        print(
            f"{time.monotonic() - began:5.0f} s  {cell.column}: {cell.row}  {cell.text()}  {settings}", file=sys.stderr
        )
    markdown = table1.to_markdown(measured)
    print(f"\nIterations to a loss of {table1.TOLERANCE:g}, mean ± deviation of {job.runs} runs [paper]\n\n{markdown}")
    if job.output is not None:
        (job.output / "table1.md").write_text(markdown, encoding="utf-8")
        (job.output / "table1.csv").write_text(table1.to_csv(measured), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Job))
