"""Outcomes of a campaign in a file of JSON lines, so that a campaign that is stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T", bound="DataclassInstance")


def read(path: Path, kind: Callable[..., _T]) -> list[_T]:
    """The outcomes in a file; a last line that was cut off is left out.

    Args:
        path: the file; one that does not exist holds none.
        kind: dataclass of the outcomes.
    """
    if not path.exists():
        return []
    return [kind(**json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def rewrite(path: Path, outcomes: Sequence[DataclassInstance]) -> None:
    """Write the file anew, without a line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(_line, outcomes)))


def append(path: Path, outcome: DataclassInstance) -> None:
    """Add an outcome at the end."""
    with path.open("a") as file:
        file.write(_line(outcome))


def _line(outcome: DataclassInstance) -> str:
    return json.dumps(asdict(outcome)) + "\n"
