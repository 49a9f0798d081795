"""Cost of a step of every workload on a device: one table, and a JSON file.

``make gpu`` runs it after the tests. Steps are warm and timed between CUDA events; SGD and the optimizers take turns.
Ratios are to the SGD step of the same network: eager to eager, and compiled to compiled. Operations and memory are
those of eager steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from raycurv.benchmarks.step_cost import BASELINE, WORKLOADS, MeasuredOptimizer, StepRunner, Workload
from raycurv.results import table_formats

OPTIMIZERS = (
    *("auto", "curveball", "red_sgd", "red_sgd:lean=True", "red_adam", "llr_second_order", "ntlr_sgd", "ntlr_adam"),
    *("salera", "spalera", "ag_adam", "adam"),
)
HEAD = (
    *("network", "one step", "ms", "to SGD", "operations", "memory", "compiled, ms", "to compiled SGD"),
    "first steps, compiled, s",
)
_PERIOD = 5  # steps over which operations are averaged: CurveBall checks λ in every fifth


@dataclass(frozen=True)
class Row:
    """One optimizer on one network; None is not measured.

    Attributes:
        workload: name of the network.
        subject: label of the optimizer.
        milliseconds: median time of an eager step.
        to_sgd: its ratio to SGD's.
        operations: ratio of operations to SGD's.
        memory: ratio of peak memory to SGD's.
        compiled_milliseconds: median time of a compiled step.
        compiled_to_compiled_sgd: its ratio to that of compiled SGD.
        first_steps: seconds of the first steps, in which passes are compiled.
        skipped: reason why there are no numbers.
    """

    workload: str
    subject: str
    milliseconds: float | None = None
    to_sgd: float | None = None
    operations: float | None = None
    memory: float | None = None
    compiled_milliseconds: float | None = None
    compiled_to_compiled_sgd: float | None = None
    first_steps: float | None = None
    skipped: str = ""

    @property
    def cells(self) -> list[str]:
        """Cells of the table."""
        numbers = [
            *(self.milliseconds, self.to_sgd, self.operations, self.memory, self.compiled_milliseconds),
            *(self.compiled_to_compiled_sgd, self.first_steps),
        ]
        return [self.workload, self.subject, *("–" if number is None else f"{number:.2f}" for number in numbers)]


def measure(
    name: str,
    workload: Workload,
    subjects: Sequence[MeasuredOptimizer],
    device: torch.device,
    rounds: int,
    *,
    compile: bool,
) -> Iterator[Row]:
    """Measure SGD and then each optimizer on one network.

    Yields:
        One row after the other.
    """
    baseline = MeasuredOptimizer(BASELINE)
    eager, counted, memory = _eager(workload, baseline, device)
    compiled = StepRunner(workload, baseline, device, compile=True) if compile else None
    first = None if compiled is None else compiled.warm_up()
    own, _ = _in_turn(eager, eager, rounds)
    fast = None if compiled is None else _in_turn(compiled, compiled, rounds)[0]
    yield Row(name, baseline.label, own, 1.0, 1.0, 1.0, fast, None if fast is None else 1.0, first)
    for subject in subjects:
        try:
            runner, its_counted, its_memory = _eager(workload, subject, device)
            own, ratio = _in_turn(runner, eager, rounds)
            row = Row(name, subject.label, own, ratio, its_counted / counted, its_memory / memory)
            if compiled is not None:
                runner = StepRunner(workload, subject, device, compile=True)
                first = runner.warm_up()
                fast, ratio = _in_turn(runner, compiled, rounds)
                row = replace(row, compiled_milliseconds=fast, compiled_to_compiled_sgd=ratio, first_steps=first)
        except (ValueError, RuntimeError, ImportError) as error:
            row = Row(name, subject.label, skipped=str(error).splitlines()[0])
        yield row


def _eager(workload: Workload, subject: MeasuredOptimizer, device: torch.device) -> tuple[StepRunner, float, int]:
    """A runner after its first step, operations of a step, and its peak memory."""
    runner = StepRunner(workload, subject, device)
    runner.step()
    return runner, runner.operations(_PERIOD), runner.memory()


def _in_turn(runner: StepRunner, baseline: StepRunner, rounds: int) -> tuple[float, float]:
    """Median milliseconds of a step, and the median ratio to a step of the baseline after it."""
    times = [(runner.seconds(), baseline.seconds()) for _ in range(rounds)]
    return 1000 * statistics.median(own for own, _ in times), statistics.median(own / other for own, other in times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.report", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--networks", nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"))
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("no table of step costs: torch sees no CUDA device\n")
        return
    subjects, rows = [MeasuredOptimizer.parse(text) for text in given.optimizers], list[Row]()
    for name in given.networks or WORKLOADS:
        rows += measure(name, WORKLOADS[name], subjects, device, given.rounds, compile=not given.no_compile)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    record = {
        "device": named,
        "torch": torch.__version__,
        "rounds": given.rounds,
        "rows": [asdict(row) for row in rows],
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    reasons = [f"- {row.subject} on {row.workload}: {row.skipped}" for row in rows if row.skipped]
    table = table_formats.markdown(HEAD, [row.cells for row in rows])
    sys.stdout.write("\n".join([f"{named}, torch {torch.__version__}", "", table, "", *reasons]) + "\n")


if __name__ == "__main__":
    main()
