"""Every bound in docs/cluster.md names a test of this folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_VALUES = r"(?:@pytest.mark.parametrize\(\"\w+\", \[(?P<values>[^]]+)\]\)\n)?"
_TEST = re.compile(rf"^{_VALUES}def (?P<name>test_\w+)", re.MULTILINE)


def machine_tests() -> list[str]:
    """Names of the tests on machines, with their parameters, as pytest has them."""
    found = []
    for match in _TEST.finditer((ROOT / "tests" / "cluster" / "test_machines.py").read_text()):
        values = match["values"].split(", ") if match["values"] else []
        found += [f"{match['name']}[{value}]" for value in values] or [match["name"]]
    return found


def rows() -> list[list[str]]:
    """Fault and chosen test of each row of the table of bounds."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    table = page[page.index("| fault | bound, in seconds |") :].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [[row[0], row[-1].strip('`"')] for row in cells]


@pytest.mark.parametrize(("fault", "chosen"), rows())
def test_a_bound_names_one_test(fault: str, chosen: str) -> None:
    assert chosen, f"{fault} has no test"
    words = chosen.split(" and ")
    assert len([name for name in machine_tests() if all(word in name for word in words)]) == 1, fault
