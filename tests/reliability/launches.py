"""Launches one after the other in one process: descriptors and threads must not grow with their number.

    python -m tests.reliability.launches --folder FOLDER [--count 50] [--without-ray]

Writes a line of JSON for each launch into ``uses.jsonl``, with descriptors, threads and resident bytes after it.
Without Ray, the driver and the training are this process, as in :mod:`tests.reliability.one_process`. With it, each
launch connects to a Ray that is up, or starts one of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

COUNT = 50
WARM = 10  # launches until every cache is filled
KEPT = ("IDLE", "AutoscalingCoordinator", "Agent")  # processes of Ray that stay
SECONDS = 10.0  # for the actors of a launch to end
MORE_DESCRIPTORS, MORE_THREADS, MORE_MEMORY = 2, 1, 32 * 2**20  # after them


@dataclasses.dataclass(frozen=True)
class Use:
    """What a process holds.

    Attributes:
        descriptors: open files and sockets.
        threads: threads.
        memory: resident bytes.
        processes: processes of the Ray, without those that wait for work; 0 without one.
    """

    descriptors: int
    threads: int
    memory: int
    processes: int = 0


OF_RAY = Use(1, 1, 2 * 2**20)  # what ray.shutdown leaves: a thread, and a socket of gRPC


def uses(folder: Path, count: int, head: Callable[[], int] = lambda: 0) -> list[Use]:
    """Launch a small run again and again.

    Args:
        folder: folder of all runs.
        count: number of launches.
        head: number of processes of the Ray.

    Returns:
        What this process holds after each.
    """
    from raycurv.service import Cluster, launch
    from tests.service.problems import mine

    process, found = psutil.Process(), []
    cluster = Cluster(runs=str(folder), experiment="test", system_metrics_every=0, trust=("tests",), workers=1)
    for number in range(count):
        with contextlib.redirect_stdout(io.StringIO()):
            launch([dataclasses.replace(mine(epochs=1), name=f"launch-{number}")], cluster)
        gc.collect()
        found.append(Use(process.num_fds(), process.num_threads(), process.memory_info().rss, head()))
        with (folder / "uses.jsonl").open("a") as file:
            file.write(json.dumps(dataclasses.asdict(found[-1])) + "\n")
    return found


def growth(found: Sequence[Use], of_ray: Use = Use(0, 0, 0)) -> str:
    """What grew after the first launches by more than Ray's own share of each launch; empty if nothing did."""
    first, last = found[min(WARM, len(found) - 1)], found[-1]
    launches = max(len(found) - WARM, 0)
    more = (
        last.descriptors - first.descriptors - launches * of_ray.descriptors,
        last.threads - first.threads - launches * of_ray.threads,
        last.memory - first.memory - launches * of_ray.memory,
    )
    started = last.processes - first.processes
    if more[0] <= MORE_DESCRIPTORS and more[1] <= MORE_THREADS and more[2] <= MORE_MEMORY and started <= 0:
        return ""
    own = f"{more[0]} descriptors, {more[1]} threads, {more[2] >> 20} MB"
    return f"{len(found) - WARM} launches took {own}, {started} processes"


def in_a_process(folder: Path, count: int, *options: str) -> list[Use]:
    """What a process of its own holds after each of its launches."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", __name__, "--folder", str(folder), "--count", str(count), *options]
    environment = os.environ | {"RAYCURV_TRUST": "tests"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [Use(**json.loads(line)) for line in (folder / "uses.jsonl").read_text().splitlines()]


def run(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """The same process launches again and again; the numbers of Ray's own client are in docs/reliability.md."""
    for number in range(first, stop):
        note(number, growth(in_a_process(folder / "launches", COUNT, "--without-ray")))


def run_on_ray(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """As :func:`run`, with a Ray that stays up: each launch connects, starts a worker and leaves."""
    from raycurv.service import local_ray
    from tests.service.driving import ROOT

    for number in range(first, stop):
        with local_ray.local_ray(2, environment={"PYTHONPATH": str(ROOT), "RAYCURV_TRUST": "tests"}) as head:
            os.environ |= head.environment
            found = in_a_process(folder / "launches_on_ray", COUNT, "--session", str(head.pid))
        note(number, growth(found, OF_RAY))


def busy(session: int) -> int:
    """Processes of a Ray, without workers that wait for work, once those of a launch have ended."""
    deadline = time.monotonic() + SECONDS
    while (working := _working(session)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return len(working)


def _working(session: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            name = " ".join(process.cmdline())
            if (
                os.getsid(process.pid) == session
                and name.startswith("ray::")
                and not any(kept in name for kept in KEPT)
            ):
                found.append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--session", type=int, help="session of the processes of the Ray that is up")
    given = parser.parse_args()
    if given.without_ray:
        from tests.reliability import one_process

        one_process.without_ray()
    session = given.session
    uses(given.folder, given.count, (lambda: busy(session)) if session else (lambda: 0))


if __name__ == "__main__":
    main()
