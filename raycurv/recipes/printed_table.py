"""Papers' printed tables as text."""

from __future__ import annotations


def parse_table(text: str) -> dict[str, dict[str, str]]:
    """A printed table, row → column → entry, from a line for each row its cells between bars.

    Args:
        text: the first line has the columns' titles, every other one a label and as many entries, empty where the
            paper has none.

    Raises:
        ValueError: a row has more or fewer entries than there are columns.
    """
    (_, *titles), *rows = [[cell.strip() for cell in line.split("|")] for line in text.strip("\n").splitlines()]
    found: dict[str, dict[str, str]] = {}
    for label, *entries in rows:
        if len(entries) != len(titles):
            raise ValueError(f"the printed row {label!r} has {len(entries)} entries for {len(titles)} columns")
        found[label] = {title: entry for title, entry in zip(titles, entries, strict=True) if entry}
    return found
