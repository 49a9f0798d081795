"""The reliability campaign: faults by kind, the table of what was tried, survived and lost, and the check against it.

    python -m tests.reliability.campaign --folder FOLDER [--kinds NAME …] [--share 0.1]

Goes on where it was interrupted: FOLDER has a line for every fault. In the end the table is written into
``docs/reliability.md``; a kind that loses more than the table says is a failure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_ROW = re.compile(
    r"^\| (?P<kind>[^|]+) \| (?P<tried>[\d,]+) \| (?P<survived>[\d,]+) \| (?P<lost>[\d,]+) \|", re.MULTILINE
)


_RULE = "|---|---:|---:|---:|"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: short name, for the command line.
        title: first cell of its row.
        faults: number of faults of the whole campaign.
        run: tries the faults from one number to another, in a folder; calls the function with the number of each, and
            with what was lost, empty if nothing.
    """

    name: str
    title: str
    faults: int
    run: Callable[[int, int, Path, Callable[[int, str], None]], None]


def kinds() -> dict[str, Kind]:
    """All kinds by name; those that need no Ray come first."""
    from tests.reliability import (
        disks,
        launches,
        on_machines,
        on_ray,
        optimizers,
        security,
        worker_counts,
        writer_kills,
    )

    below = "below the queue for MLflow, MLflow's file, or both"
    found = (
        Kind("writer", "SIGKILL in each phase of the writing of checkpoints", 200, writer_kills.run),
        Kind("writer_disk", "disk full in each phase of the writing of checkpoints", 60, writer_kills.run_full_disk),
        Kind("writer_read_only", "disk read-only from a moment on", 60, writer_kills.run_read_only),
        Kind("writer_slow", "disk whose operations take up to 50 ms", 20, writer_kills.run_slow_disk),
        Kind("tracking_full", f"disk full {below}", 20, disks.run_full),
        Kind("tracking_read_only", f"disk read-only {below}, from a moment on", 20, disks.run_read_only),
        Kind("tracking_slow", f"disk of {disks.WRITES} writes a second {below}", 20, disks.run_slow),
        Kind("numbers", "NaN, infinity or overflow in the share of one of two workers", 0, optimizers.run_numbers),
        Kind("leaks", "2,000 steps of an optimizer: memory and descriptors", 0, optimizers.run_leaks),
        Kind("worker_counts", "number of workers changed in mid-epoch, several times", 40, worker_counts.run),
        Kind("launches", f"{launches.COUNT} launches in one process: descriptors, threads, memory", 1, launches.run),
        Kind("driver_without_ray", "a run in its driver, killed five times", 10, on_ray.run_driver_without_ray),
        Kind(
            "launches_on_ray", f"{launches.COUNT} launches on a Ray in one process: also actors", 1, launches.run_on_ray
        ),
        Kind("worker", "SIGKILL of a worker", 40, on_ray.run_worker),
        Kind("worker_start", "SIGKILL of a worker that starts", 10, on_ray.run_worker_start),
        Kind("driver", "a run whose driver is killed five times", 20, on_ray.run_driver),
        Kind("mlflow", "MLflow server killed or stopped for seconds", 20, on_ray.run_mlflow),
        Kind("s3", "S3 server that resets all connections for seconds", 10, on_ray.run_s3),
        Kind("sweep", "SIGKILL of a sweep's driver", 20, on_ray.run_sweep),
        Kind("raylet", "SIGKILL of the raylet", 10, on_ray.run_raylet),
        Kind("supervisor", "SIGKILL of the job supervisor", 10, on_ray.run_supervisor),
        Kind("security", "job with planted secrets: beyond loopback, or in MLflow, logs, artifacts", 4, security.run),
        Kind("node", "machine with a worker switched off and on", 10, on_machines.run_node),
    )
    counts = {"numbers": optimizers.cases(), "leaks": optimizers.names()}
    return {k.name: Kind(k.name, k.title, k.faults or len(counts[k.name]), k.run) for k in found}


@dataclass(frozen=True)
class Row:
    """What became of the faults of a kind."""

    kind: str
    tried: int
    survived: int

    @property
    def lost(self) -> int:
        """Faults after which something was wrong."""
        return self.tried - self.survived


def faults(folder: Path, name: str) -> dict[int, str]:
    """What was lost by each fault of a kind so far."""
    path = folder / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["number"]: line["lost"] for line in lines}


def run(kind: Kind, count: int, folder: Path) -> Row:
    """Try the faults of a kind that have not been tried."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind.name}.jsonl"

    def note(number: int, lost: str) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"number": number, "lost": lost, "time": time.time()}) + "\n")
        sys.stdout.write(f"{kind.name} {number}: {lost or 'survived'}\n")
        sys.stdout.flush()

    done = faults(folder, kind.name)
    first = next(number for number in range(count + 1) if number not in done or number == count)
    if first < count:
        kind.run(first, count, folder, note)
    return row(kind, folder)


def row(kind: Kind, folder: Path) -> Row:
    """What became of the faults of a kind so far."""
    done = faults(folder, kind.name)
    return Row(kind.title, len(done), sum(not lost for lost in done.values()))


def fuzzing_rows(folder: Path, share: float) -> list[Row]:
    """Damaged inputs for every reader; those that have not been tried are tried, up to a share of all."""
    from tests.reliability import fuzzing
    from tests.reliability.readers import READERS

    rows = []
    for name, reader in READERS.items():
        where = folder / "fuzzing"
        found = fuzzing.run(name, int(reader.inputs * share), where) if share else fuzzing.counts(where, name)
        rows.append(Row(f"damaged {name.replace('_', ' ')}", found.total(), found["accepted"] + found["refused"]))
    return rows


def recorded(page: str) -> dict[str, Row]:
    """The rows of the table in the page."""
    rows = (
        Row(match["kind"], *(int(match[key].replace(",", "")) for key in ("tried", "survived")))
        for match in _ROW.finditer(page)
    )
    return {row.kind: row for row in rows}


def worse(before: Row | None, now: Row) -> bool:
    """Whether a larger share of the faults of a kind was lost than the page says."""
    lost = before.lost / before.tried if before is not None and before.tried else 0.0
    return now.tried > 0 and now.lost / now.tried > lost


def with_rows(page: str, rows: list[Row]) -> str:
    """The page with the numbers of `rows`; kinds that are not in its table are added at the end of it."""
    for row in rows:
        line = f"| {row.kind} | {row.tried:,} | {row.survived:,} | {row.lost:,} |"
        old = next((match[0] for match in _ROW.finditer(page) if match["kind"] == row.kind), None)
        if old is not None:
            page = page.replace(old, line)
            continue
        end = max((match.end() for match in _ROW.finditer(page)), default=None)
        end = page.index(_RULE) + len(_RULE) if end is None else end
        page = page[:end] + "\n" + line + page[end:]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", help="names of kinds, or fuzzing; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="share of the faults and inputs")
    parser.add_argument("--faults", type=int, help="faults of each kind, in place of the share")
    parser.add_argument("--show", action="store_true", help="try nothing: write the page from what was tried")
    parser.add_argument("--no-page", action="store_true", help="leave docs/reliability.md as it is")
    options = parser.parse_args()
    known = kinds()
    names = options.kinds or [*known, "fuzzing"]
    rows: list[Row] = []
    for name in names:
        if name == "fuzzing":
            rows += fuzzing_rows(options.folder, 0.0 if options.show else options.share)
            continue
        if options.show:
            rows.append(row(known[name], options.folder))
            continue
        count = min(known[name].faults, options.faults or max(1, round(known[name].faults * options.share)))
        rows.append(run(known[name], count, options.folder))
    page = PAGE.read_text()
    before = recorded(page)
    fallen = [row for row in rows if worse(before.get(row.kind), row)]
    for each in rows:
        sys.stdout.write(f"{each.kind:75} tried {each.tried:7,}  survived {each.survived:7,}  lost {each.lost:5,}\n")
    if not options.no_page and not fallen:
        PAGE.write_text(with_rows(page, [each for each in rows if each.tried]))
    sys.exit(f"more was lost than {PAGE.name} says: {', '.join(each.kind for each in fallen)}" if fallen else 0)


if __name__ == "__main__":
    main()
