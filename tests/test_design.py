"""docs/design.md shows the imports that there are."""

from __future__ import annotations

import re
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text()
PACKAGES = {path.parent.name for path in (ROOT / "raycurv").glob("*/__init__.py")}


def arrows() -> set[tuple[str, str]]:
    """(importing package, imported package), without imports that only type checkers see."""
    graph = grimp.build_graph("raycurv", exclude_type_checking_imports=True, cache_dir=None)
    found = {
        (module.split(".")[1], imported.split(".")[1])
        for module in graph.modules - {"raycurv"}
        for imported in graph.find_modules_directly_imported_by(module) - {"raycurv"}
    }
    return {(a, b) for a, b in found if a != b and {a, b} <= PACKAGES}


def test_the_diagram_shows_every_import_between_packages():
    diagram = re.search(r"subgraph now\n(.*?)\n  end", PAGE, re.DOTALL)[1]
    names = dict(re.findall(r"(\w+)\[(\w+)\]", diagram))
    drawn = {
        (names[source], names[target])
        for source, targets in re.findall(r"(\w+)(?:\[\w+\])? --> (.*)", diagram)
        for target in re.findall(r"(\w+)(?:\[\w+\])?", targets)
    }
    assert drawn == arrows()
