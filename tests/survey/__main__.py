"""Run the survey, or go on with it, and write ``docs/models.md``."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from tests.survey import cases
from tests.survey.measure import verdict
from tests.survey.page import page

OUTCOMES = Path(__file__).with_name("outcomes.jsonl")
MEMORY = 14 << 30  # bytes of addresses: a larger model is not compared
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def known() -> dict[tuple[str, str], dict[str, str]]:
    """The last outcome of each case."""
    lines = OUTCOMES.read_text().splitlines() if OUTCOMES.exists() else []
    outcomes = [json.loads(line) for line in lines]
    return {(outcome["group"], outcome["name"]): outcome for outcome in outcomes}


def write(outcomes: Iterable[dict[str, str]]) -> None:
    """Write one line per case, in order."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome["group"], outcome["name"]))
    OUTCOMES.write_text("".join(json.dumps(outcome) + "\n" for outcome in ordered))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose group and name contain this text")
    parser.add_argument("--again", nargs="*", default=[], help="verdicts whose cases are run again: wrong, refused, …")
    parser.add_argument("--seconds", type=int, default=120, help="time limit of a case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes, every = known(), list(cases.all_cases())
    for case in every:
        key = case.group, case.name
        if arguments.only not in f"{case.group} {case.name}":
            continue
        if key in outcomes and outcomes[key]["verdict"] not in arguments.again:
            continue
        # Known before it has run, so that a case that ends the process is not tried for ever.
        outcomes[key] = {
            "group": case.group,
            "name": case.name,
            "verdict": "not compared",
            "detail": "ends the process",
        }
        write(outcomes.values())
        outcomes[key]["verdict"], outcomes[key]["detail"] = verdict(case, arguments.seconds)
        write(outcomes.values())
        sys.stdout.write(f"{case.group} {case.name}: {outcomes[key]['verdict']} {outcomes[key]['detail'][:150]}\n")
        sys.stdout.flush()
        gc.collect()
    waiting = sum((case.group, case.name) not in outcomes for case in every)
    PAGE.write_text(page(list(outcomes.values()), waiting))


if __name__ == "__main__":
    main()
