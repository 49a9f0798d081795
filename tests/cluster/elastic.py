"""A run over 1 → 3 → 2 machines, and the figure of its losses beside those of an undisturbed process.

python -m tests.cluster.elastic docs/figures
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from raycurv.figures import style
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, RunConfig, train
from raycurv.train.records import Record
from tests.cluster.machines import Machines
from tests.service.problems import mine

RECIPE = ("--recipe", "tests.service.problems:mine", "--system-metrics-every", "0")
SECONDS_ON_A_GROUP = 12.0  # that training goes on after a change, for the curve
SAMPLES = 25600  # epochs of 800 steps: checkpoints are written by the clock alone


@dataclass(frozen=True)
class ElasticRun:
    """What was measured.

    Attributes:
        output: lines of the driver.
        grown: seconds from the start of Ray on two machines to three workers.
        shrunk: seconds from the power cut of a machine to two workers.
        repeated: seconds of training that were done again after the power cut.
        losses: step and training loss, from MLflow.
        undisturbed: training losses of one process, from step 1.
        changes: first step and number of workers of each group.
    """

    output: str
    grown: float
    shrunk: float
    repeated: float
    losses: list[tuple[int, float]]
    undisturbed: list[float]
    changes: list[tuple[int, int]]


def losses_of_one_process(config: RunConfig, folder: Path) -> list[float]:
    """Training losses of a run in this process, which nothing happens to."""
    records: list[Record] = []
    train(config, collectives=Local(), store=CheckpointStore(str(folder)), emit=records.extend)
    return [record.values["train/loss"] for record in records if record.kind == "step"]


def run(machines: Machines, folder: Path, name: str = "elastic") -> ElasticRun:
    """Train on n1, on n1 to n3, and on two machines after a power cut of n3, until Ctrl-C.

    Args:
        machines: n1 and n2 in the cluster.
        folder: empty folder for the undisturbed run.
        name: name of the run.
    """
    machines.kill("n2")
    options = ("--option", "epochs=2", "pause=0.2", f"samples={SAMPLES}")
    words = (*options, "--checkpoint-every", "10000", "--workers", "1-3", "--run-name", name)
    job = machines.train(*RECIPE, *words)
    job.wait_for("loss", since=job.wait_for("training on 1 worker "))
    time.sleep(SECONDS_ON_A_GROUP)
    machines.boot("n2", "n3")
    joined = time.monotonic()
    grown = job.wait_for("training on 3 workers") - joined
    job.wait_for("goes on at step", since=joined + grown)
    time.sleep(SECONDS_ON_A_GROUP)
    killed, clock = machines.kill("n3", silent=True), time.time()
    shrunk = job.wait_for("training on 2 workers", since=killed) - killed
    job.wait_for("goes on at step", since=killed)
    time.sleep(SECONDS_ON_A_GROUP)
    machines.interrupt(name)
    assert job.finish() == 130, job.output

    found = machines.history(name, "train/loss")
    changes = changes_in(job.output)
    resumed = changes[-1][0]
    before = [when for step, _, when in found if when < clock and step >= resumed]
    return ElasticRun(
        job.output,
        grown,
        shrunk,
        before[-1] - before[0] if before else 0.0,
        [(step, loss) for step, loss, _ in found],
        losses_of_one_process(mine(epochs=2, samples=SAMPLES, stop_after=len(found)), folder),
        changes,
    )


def changes_in(output: str) -> list[tuple[int, int]]:
    """First step and number of workers of each group that trained."""
    changes, workers = [], 1
    for line in output.splitlines():
        if found := re.search(r"training on (\d+) worker", line):
            workers = int(found[1])
        elif found := re.search(r": (?:starts|goes on at step (\d+))", line):
            changes.append((int(found[1] or 0) + 1, workers))
    return changes


def draw(measured: ElasticRun, folder: Path) -> None:
    """Write the figure as SVG."""
    figure = style.figure_of(6.4, 3.6)
    axes = figure.subplots()
    steps, losses = zip(*measured.losses, strict=True)
    axes.plot(steps, measured.undisturbed, color=style.INK, alpha=0.35, linewidth=4, label="one process, undisturbed")
    ends = [first for first, _ in measured.changes[1:]] + [steps[-1] + 1]
    for index, ((first, workers), end) in enumerate(zip(measured.changes, ends, strict=True)):
        part = slice(max(first - 2, 0), end - 1)  # from the last step of the group before
        label = f"{workers} worker{'s' if workers > 1 else ''}"
        shown = label if workers not in [earlier for _, earlier in measured.changes[:index]] else None
        axes.plot(steps[part], losses[part], color=style.COLOURS[workers - 1], linewidth=1.2, label=shown)
        if index:
            axes.axvline(first, color=style.INK, linewidth=0.6, linestyle=":")
    style.scale(axes, "x", False, (0, steps[-1] + 1))
    style.scale(axes, "y", True)
    axes.set(xlabel="step", ylabel="training loss of a batch")
    largest = max(abs(a - b) / b for a, b in zip(losses, measured.undisturbed, strict=True))
    text = (
        f"Every step of the elastic run has the loss of one undisturbed process: they differ by at most {largest:.1g} "
        f"of it. Two machines came (three workers after {measured.grown:.0f} s), and one lost its power (two workers "
        f"after {measured.shrunk:.0f} s, {measured.repeated:.0f} s of training done again)."
    )
    handles = axes.get_legend_handles_labels()[0]
    title = f"A run over {' → '.join(str(workers) for _, workers in measured.changes)} workers"
    style.finish(figure, 3.6, title, handles, text)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "elastic_run.svg").open("w", encoding="utf-8") as file:
        style.write_svg(figure, file, {"Title": title, "Description": text})


def main(folder: str) -> None:
    machines = Machines()
    try:
        with tempfile.TemporaryDirectory() as empty:
            measured = run(machines, Path(empty))
    finally:
        machines.close()
    draw(measured, Path(folder))
    sys.stdout.write(measured.output + "\n")
    seconds = (measured.grown, measured.shrunk, measured.repeated)
    sys.stdout.write("grown {:.1f} s, shrunk {:.1f} s, repeated {:.1f} s\n".format(*seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
