"""Damaged inputs by the thousand for every reader; a process of its own, so that one that ends it is counted.

    python -m tests.reliability.fuzzing --folder FOLDER [--inputs SHARE] [--readers NAME …]

Goes on where it was interrupted: FOLDER has one byte for each input of a reader.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

UNTRIED, ACCEPTED, REFUSED, UNDECLARED, WORKING, CRASHED, HUNG = b"\0", b"a", b"r", b"u", b"w", b"c", b"h"
_HANG = 120.0  # seconds of one input
_START = 900.0  # seconds until the first input
_POLL = 0.5


def counts(folder: Path, name: str) -> Counter[str]:
    """Inputs of a reader by outcome."""
    path = folder / f"{name}.outcomes"
    names = {97: "accepted", 114: "refused", 117: "undeclared", 99: "crashed", 104: "hung"}
    found = Counter(path.read_bytes() if path.exists() else b"")
    return Counter({names[byte]: n for byte, n in found.items() if byte in names})


def draw_of(name: str, number: int) -> random.Random:
    """The random numbers of one input."""
    return random.Random(f"{name} {number}")


def fuzz(name: str, first: int, stop: int, folder: Path) -> None:
    """Try the inputs `first` to `stop` of a reader in this process."""
    from tests.reliability.readers import READERS

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    reader = READERS[name]
    outcomes = os.open(folder / f"{name}.outcomes", os.O_WRONLY | os.O_CREAT)
    with tempfile.TemporaryDirectory() as scratch:
        read = reader.prepare(Path(scratch))
        for number in range(first, stop):
            os.pwrite(outcomes, WORKING, number)
            os.pwrite(outcomes, attempt(read, reader.declared, name, number, folder), number)


def attempt(read, declared, name: str, number: int, folder: Path) -> bytes:  # type: ignore[no-untyped-def]
    """Try one input; what is not declared is written down."""
    try:
        read(draw_of(name, number))
    except declared:
        return REFUSED
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        entry = {"reader": name, "number": number, "error": repr(error)[:300], "at": f"{last.filename}:{last.lineno}"}
        with (folder / "undeclared.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return UNDECLARED
    return ACCEPTED


def run(name: str, inputs: int, folder: Path) -> Counter[str]:
    """Try all inputs of a reader that have not been tried, in processes of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.outcomes"
    while True:
        done = path.read_bytes() if path.exists() else b""
        whole = len(done.partition(WORKING)[0].partition(UNTRIED)[0])
        if whole < len(done):  # an interrupted campaign
            os.truncate(path, whole)
            continue
        if len(done) >= inputs:
            return counts(folder, name)
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--child",
            name,
            str(len(done)),
            str(inputs),
            "--folder",
            str(folder),
        ]
        with (folder / f"{name}.stderr").open("wb") as errors, subprocess.Popen(command, stderr=errors) as child:
            _watch(child, path, name, folder)


def _watch(child: subprocess.Popen[bytes], path: Path, name: str, folder: Path) -> None:
    """Wait for a process; one that ends by itself or hangs is written down at its input."""
    before, since, hung = b"", time.monotonic(), False
    first = len(path.read_bytes()) if path.exists() else 0
    while child.poll() is None:
        time.sleep(_POLL)
        now = path.read_bytes() if path.exists() else b""
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > (_HANG if len(now) > first else _START):
            hung = True
            child.kill()
            child.wait()
    message = (folder / f"{name}.stderr").read_bytes().decode(errors="replace")[-600:]
    if child.returncode == 0:
        return
    done = path.read_bytes() if path.exists() else b""
    if not done.endswith(WORKING):
        raise RuntimeError(f"the process of {name} ended before its first input: {message}")
    with path.open("r+b") as file:
        file.seek(len(done) - 1)
        file.write(HUNG if hung else CRASHED)
    entry = {"reader": name, "number": len(done) - 1, "error": f"exit {child.returncode}, hung {hung}: {message}"}
    with (folder / "undeclared.jsonl").open("a") as log:
        log.write(json.dumps(entry) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--inputs", type=float, default=1.0, help="share of the inputs of the whole campaign")
    parser.add_argument("--readers", nargs="*")
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        name, first, stop = options.child
        fuzz(name, int(first), int(stop), options.folder)
        return
    from tests.reliability.readers import READERS

    bad = 0
    for name in options.readers or READERS:
        found = run(name, int(READERS[name].inputs * options.inputs), options.folder)
        bad += found["undeclared"] + found["crashed"] + found["hung"]
        sys.stdout.write(f"{name:28} {dict(found)}\n")
        sys.stdout.flush()
    if bad:
        sys.stdout.write((options.folder / "undeclared.jsonl").read_text()[-3000:])
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
