"""``raycurv benchmark``: steps, data, workers, starts, robustness, Table 1; :mod:`suite` has the suite."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raycurv.cli.train import OPTIMIZERS

if TYPE_CHECKING:
    from raycurv.data import ParquetImages


@dataclass(frozen=True)
class BenchmarkStep:
    """Measure one step of each optimizer: operations, wall time and peak memory, as ratios to plain SGD."""

    EXAMPLE: ClassVar = "raycurv benchmark step --optimizers all --fraction 0.25 --threads 1"
    LOADS: ClassVar = "torch"

    optimizers: tuple[str, ...] = field(
        default=("adam", "curveball", "red_sgd", "red_sgd:lean=True", "llr_second_order"), metadata=OPTIMIZERS
    )
    """Registered names, with settings as in red_sgd:lean=True. `all` is every one, and comparisons."""

    networks: tuple[str, ...] = ()
    """Networks of raycurv.benchmarks.step_cost.WORKLOADS. By default all."""

    fraction: float | None = None
    """Measure CurveBall and RED with the curvature from this share of the batch too."""

    rounds: int = 20
    """Timed steps of each optimizer, with one of SGD beside each."""

    threads: int = 2
    """Threads of the CPU."""

    device: str = "cpu"
    """Device: cpu or cuda."""

    compile: bool = False
    """Compile the passes of all optimizers, SGD included; operations and memory are those without."""

    output: Path | None = None
    """Folder for step_cost.md, .csv, .png and .svg. The plot needs the extra figures."""

    tracking_uri: str | None = None
    """Address of the MLflow that the costs are logged to."""

    experiment: str | None = None
    """Experiment of MLflow that the costs are logged to, by default where --tracking-uri says."""

    def run(self) -> None:
        """Measure, print, write, track."""
        import torch

        from raycurv.benchmarks import step_cost
        from raycurv.service import step_cost_tracking

        torch.set_num_threads(self.threads)
        subjects, costs = step_cost.parse_optimizers(self.optimizers, self.fraction), []
        for network in self.networks or step_cost.WORKLOADS:
            for cost in step_cost.measure(
                network, subjects, rounds=self.rounds, device=self.device, compile=self.compile
            ):
                costs.append(cost)
                print(cost.text, flush=True)
        print(f"\nOperations / wall time / peak memory, as ratios to SGD\n\n{step_cost.to_markdown(costs)}")
        if self.output is not None:
            step_cost_tracking.write(costs, self.output)
        if self.tracking_uri is not None or self.experiment is not None:
            step_cost_tracking.track(costs, self.tracking_uri, self.experiment, print)


def _training_set(folder: str, options: dict[str, Any]) -> ParquetImages:
    from raycurv.data import ParquetImages, parquet_images

    source = parquet_images(folder, **options).train
    assert isinstance(source, ParquetImages)
    return source


@dataclass(frozen=True)
class BenchmarkData:
    """Measure how fast batches are made, beside the decoder alone, and what opening two million images takes."""

    EXAMPLE: ClassVar = "raycurv benchmark data --cifar cifar10 --photographs imagenet_sample --rows 0"
    LOADS: ClassVar = "torch"

    cifar: str = "cifar10"
    """Folder of small JPEG images, or its name in RAYCURV_DATA."""

    photographs: str = "imagenet_sample"
    """Folder of photographs, or its name in RAYCURV_DATA."""

    threads: int = 2
    """Threads that decode."""

    batch_size: int = 128
    """Images of a batch."""

    repeat: int = 3
    """Measurements of each kind; the best counts."""

    made_photographs: int = 256
    """Photographs of 512 and 1,024 pixels that are made and read, the latter also with reduced_decoding; 0 is none."""

    rows: int = 2_000_000
    """Rows of the large set. Each takes about 1 kB in a temporary folder; 0 leaves it out."""

    def run(self) -> None:
        """Print the table."""
        import torch

        from raycurv.benchmarks import data_speed

        torch.set_num_threads(1)
        how = {"threads": self.threads, "batch_size": self.batch_size, "repeat": self.repeat}
        small = {"augmentation": "crop_flip", "evaluation": None}
        photographs = {"augmentation": "resize_crop_flip", "image_size": 224, "evaluation": None}
        print(data_speed.HEAD)
        for name, folder, options in (
            ("small", self.cifar, small),
            ("photographs", self.photographs, photographs),
        ):
            for line in data_speed.measure(name, functools.partial(_training_set, folder, options), **how):
                print(line, flush=True)
        made = (("512 pixels", 512, False), ("1,024 pixels", 1024, False), ("reduced", 1024, True))
        for name, side, reduced in made if self.made_photographs else ():
            with tempfile.TemporaryDirectory() as folder:
                data_speed.write_photographs(folder, self.made_photographs, side)
                open_set = functools.partial(_training_set, folder, photographs | {"reduced_decoding": reduced})
                for line in data_speed.measure(name, open_set, **how):
                    print(line, flush=True)
        if self.rows:
            for line in data_speed.large(self.rows):
                print(line, flush=True)


@dataclass(frozen=True)
class BenchmarkWorkers:
    """Measure images per second over the number of workers, and rounds, bytes and waiting time of a step.

    The basic CNN, one global batch, one thread for each worker: as bare processes, and under Ray.
    """

    EXAMPLE: ClassVar = "raycurv benchmark workers --workers 1 2 4"

    data: str = "cifar10"
    """Folder, s3:// or gs:// address of CIFAR-10 for the runs under Ray, or a name in RAYCURV_DATA."""

    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers."""

    optimizer: str = "curveball"
    """Name of a registered optimizer."""

    batch_norm: tuple[str, ...] = ("none", "synchronised", "local")
    """Batch normalisation of the network: none, or with statistics that are synchronised or local to each worker."""

    steps: int = 200
    """Timed steps of each measurement."""

    repeat: int = 3
    """Measurements of each kind, in turn; the best counts."""

    ray: bool = True
    """Measure under Ray too."""

    pin_workers: bool = False
    """Keep each worker to a core of its own, on a machine where nothing else runs."""

    def run(self) -> None:
        """Measure in turn, show every measurement as it comes, and print the tables.

        Raises:
            ValueError: there is no such batch normalisation.
        """
        from raycurv.arguments import unknown
        from raycurv.benchmarks import worker_speed

        for kind in self.batch_norm:
            if kind not in worker_speed.NETWORKS:
                raise ValueError(unknown("batch norm", kind, worker_speed.NETWORKS))
        kinds = [kind for kind in worker_speed.NETWORKS if kind in self.batch_norm]
        best: dict[tuple[str, int], worker_speed.WorkerSpeed] = {}
        for kind, workers in self._in_turn(kinds):
            how: dict[str, Any] = {"steps": self.steps, "pinned": self.pin_workers}
            found = worker_speed.measure(kind, workers, self.optimizer, **how)
            print(f"{kind}, {workers} workers: {found.images_per_second:.0f} images/s", file=sys.stderr, flush=True)
            kept = best.get((kind, workers), found)
            best[kind, workers] = max(kept, found, key=lambda speed: speed.images_per_second)
        rows = [speed.row(best[kind, self.workers[0]].images_per_second) for (kind, _), speed in best.items()]
        pinned = ", pinned" if self.pin_workers else ""
        print("\n".join([f"Bare processes, {self.optimizer}{pinned}\n", worker_speed.HEAD, *rows]), flush=True)
        if self.ray:
            print("\n".join([f"\nUnder Ray, {self.optimizer}{pinned}\n", *self._rows_under_ray(kinds)]))

    def _in_turn(self, kinds: Sequence[Any]) -> Iterator[tuple[Any, int]]:
        """Kind and number of workers of each measurement: all kinds before any is repeated."""
        return ((kind, workers) for _ in range(self.repeat) for kind, workers in itertools.product(kinds, self.workers))

    def _rows_under_ray(self, kinds: Sequence[str]) -> list[str]:
        """Rounds and bytes of a step are those of the bare processes."""
        best: dict[tuple[str, int], tuple[float, float]] = {}
        with tempfile.TemporaryDirectory(prefix="raycurv-workers-") as folder:
            for kind, workers in self._in_turn(kinds):
                found = self._under_ray(kind, workers, folder)
                best[kind, workers] = max(best.get((kind, workers), found), found)
        rows = [
            f"| {kind} | {workers} | {speed:.0f} | {speed / best[kind, self.workers[0]][0]:.2f}× | {seconds:.0f} |"
            for (kind, workers), (speed, seconds) in best.items()
        ]
        head = "| batch norm | workers | images/s | ratio | from launch to the last step, s |"
        return [head, "|---|---|---|---|---|", *rows]

    def _under_ray(self, kind: str, workers: int, folder: str) -> tuple[float, float]:
        """Images per second after the first steps, and seconds from launch to the last one."""
        from raycurv.benchmarks.worker_speed import WARM_UP
        from raycurv.recipes import cifar10_basic_cnn
        from raycurv.service import Cluster, launch

        base, name = cifar10_basic_cnn(data=self.data, batch_norm=kind != "none"), f"workers-{workers}-{time.time_ns()}"
        config = dataclasses.replace(
            base,
            name=name,
            data=dataclasses.replace(base.data, settings={**base.data.settings, "evaluation": None}),
            optimizer=self.optimizer,
            batch_norm="local" if kind == "local" else "synchronised",
            max_steps=WARM_UP + self.steps,
            log_every=5,
        )
        began = time.monotonic()
        cluster = Cluster(
            workers=workers, run_name=name, threads=1, log_model=False, pin_workers=self.pin_workers,
            runs=folder, storage=None, tracking_uri=None, quiet=True,
        )  # fmt: skip
        (result,) = launch([config], cluster)
        speed = config.batch_size / result.step_seconds if result.step_seconds else result.images_per_second
        return speed, time.monotonic() - began


@dataclass(frozen=True)
class BenchmarkStarts:
    """Measure how little `auto` and other methods without settings depend on where they start."""

    EXAMPLE: ClassVar = "raycurv benchmark starts --output runs/starts.jsonl"
    LOADS: ClassVar = "torch"

    output: Path = Path("runs/free_table.jsonl")
    """File with one line for each run. Runs that are in it are not repeated."""

    methods: tuple[str, ...] = ()
    """Methods to measure. By default all."""

    problems: tuple[str, ...] = ()
    """Problems to measure. By default all."""

    seed: int = 0
    """Seed of the initial weights and of the order of the data."""

    def run(self) -> None:
        """Measure what is missing, show every run as it comes, and print the table of all.

        Raises:
            ValueError: there is no such method or problem.
        """
        import torch

        from raycurv.arguments import unknown
        from raycurv.benchmarks import start_sensitivity

        methods = dict.fromkeys(entry.method for entry in start_sensitivity.METHODS)
        problems = {problem.name: problem for problem in start_sensitivity.PROBLEMS}
        for kind, given, all_names in (("method", self.methods, methods), ("problem", self.problems, problems)):
            for name in given:
                if name not in all_names:
                    raise ValueError(unknown(kind, name, all_names))
        entries = [entry for entry in start_sensitivity.METHODS if entry.method in (self.methods or methods)]
        torch.set_num_threads(1)  # small tensors: more threads only wait for each other
        chosen = [problems[name] for name in self.problems or problems]
        for o in start_sensitivity.campaign(self.output, chosen, entries, self.seed):
            value = f"{o.optimizer} {o.value:g}"
            print(f"{o.seconds:4.0f} s  {o.problem}: {value}: {o.raw:.4g} / {o.averaged:.4g}", file=sys.stderr)
        print(start_sensitivity.to_markdown(start_sensitivity.finished(self.output)))


@dataclass(frozen=True)
class BenchmarkRobustness:
    """Judge `auto` over batch sizes, lengths of runs and disturbances, beside Adam at two settings."""

    EXAMPLE: ClassVar = "raycurv benchmark robustness --seeds 0 1 2 --output runs/robustness.jsonl"
    LOADS: ClassVar = "torch"

    output: Path = Path("runs/robustness.jsonl")
    """File with one line for each run. Runs that are in it are not repeated."""

    problems: tuple[str, ...] = ()
    """Problems to judge on. By default all."""

    conditions: tuple[str, ...] = ()
    """Conditions, such as "batches of 4, 300 steps". By default all."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the initial weights and of the order of the data."""

    check: bool = False
    """End with status 1 if a ratio is above 1.25, or the mean above 1."""

    def run(self) -> None:
        """Do the missing runs, show each as it ends, and print the table of all.

        Raises:
            ValueError: there is no such problem or condition.
            SystemExit: a goal is missed, and `check` is set.
        """
        import torch

        from raycurv.arguments import unknown
        from raycurv.benchmarks import robustness

        problems = {problem.name: problem for problem in robustness.PROBLEMS}
        conditions = {condition.name: condition for condition in robustness.CONDITIONS}
        for kind, given, allowed in (
            ("problem", self.problems, tuple(problems)),
            ("condition", self.conditions, tuple(conditions)),
        ):
            for name in given:
                if name not in allowed:
                    raise ValueError(unknown(kind, name, allowed))
        torch.set_num_threads(1)  # small tensors: more threads only wait for each other
        chosen = [problems[name] for name in self.problems or problems]
        varied = [conditions[name] for name in self.conditions or conditions]
        for o in robustness.campaign(self.output, chosen, varied, self.seeds):
            text = f"{o.seconds:4.0f} s  {o.problem}, {o.condition}, seed {o.seed}: {o.method}: {o.loss:.4g}"
            print(text, file=sys.stderr)
        outcomes = robustness.finished(self.output)
        print(robustness.to_markdown(outcomes))
        if self.check and (missed := robustness.missed(outcomes)):
            sys.exit("\n".join(("missed:", *missed)))


@dataclass(frozen=True)
class BenchmarkTable1:
    """Measure CurveBall's Table 1: iterations to solve small degenerate problems, the paper's numbers beside."""

    EXAMPLE: ClassVar = "raycurv benchmark table1 --runs 10 --optimizers curveball adam"
    LOADS: ClassVar = "torch"

    runs: int = 100
    """Runs of every optimizer on every problem."""

    seed: int = 0
    """Seed of the first run. The others follow."""

    optimizers: tuple[str, ...] = field(default=(), metadata=OPTIMIZERS)
    """Rows to measure. By default all."""

    output: Path | None = None
    """Folder for table1.md and table1.csv."""

    def run(self) -> None:
        """Measure, show every entry as it comes, and print the table."""
        import torch

        from raycurv.benchmarks import curveball_table1

        experiment = curveball_table1.Table1Settings(runs=self.runs, seed=self.seed)
        rows = curveball_table1.select(self.optimizers or [row.optimizer for row in curveball_table1.ROWS])
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)  # tensors of a few numbers: more threads only wait for each other
        began, measured = time.monotonic(), []
        for cell in curveball_table1.cells(experiment, rows):
            measured.append(cell)
            settings = ", ".join(f"{name} {value:g}" for name, value in cell.settings.items())
            entry = f"{cell.column}: {cell.row}  {cell.text()}  {settings}"
            print(f"{time.monotonic() - began:5.0f} s  {entry}", file=sys.stderr)
        markdown = curveball_table1.to_markdown(measured)
        head = f"Iterations to a loss of {curveball_table1.TOLERANCE:g}, mean ± deviation of {self.runs} runs [paper]"
        print(f"\n{head}\n\n{markdown}")
        if self.output is not None:
            (self.output / "table1.md").write_text(markdown, encoding="utf-8")
            (self.output / "table1.csv").write_text(curveball_table1.to_csv(measured), encoding="utf-8")
