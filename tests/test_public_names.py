"""Semantic versioning: no public name comes, goes or moves without a line in tests/public_names.txt."""

from __future__ import annotations

import re
from pathlib import Path

from raycurv.deprecation import MOVED_NAMES
from tests.public_names import LIST, MODULES, PACKAGES, public_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/examples/*.py"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_public_names_are_those_of_the_list():
    listed, found = set(LIST.read_text().splitlines()), set(public_names())
    hint = "see 'Versions' in CONTRIBUTING.md, then write the list: python -m tests.public_names"
    assert not listed - found, f"removed or moved; {hint}"
    assert not found - listed, f"new; {hint}"


def test_the_names_that_the_documentation_imports_are_public():
    imports = re.compile(r"^\s*from (raycurv[\w.]*) import ([\w, ]+)", re.MULTILINE)
    public = {*public_names(), *PACKAGES}
    for page in PAGES:
        for module, names in imports.findall(page.read_text()):
            unlisted = {f"{module}.{name.strip()}" for name in names.split(",")} - public
            assert module in MODULES or not unlisted, f"{page.name}: {unlisted}"


def test_moved_names_lead_to_public_ones():
    listed = set(LIST.read_text().splitlines())
    paths = {new.replace(":", ".") for new in MOVED_NAMES.values()}
    assert paths - listed == {"raycurv.cli.run_options.RunOptions"}
