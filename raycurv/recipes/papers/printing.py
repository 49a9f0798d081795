"""How papers' numbers are written down here, and tables whose numbers are no training runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycurv.recipes.study import Axes
from raycurv.recipes.tables import Entry


@dataclass(frozen=True)
class Measured:
    """A table that is computed at once, without runs that MLflow follows.

    Attributes:
        name: what it is called.
        paper: where it comes from.
        shows: table or figure.
        measure: the entries, from the scale's number.
        note: what the reader must know.
    """

    name: str
    paper: str
    shows: str
    measure: Callable[[float], list[Entry]]
    note: str = ""

    def only(
        self, recipes: Sequence[str] = (), optimizers: Sequence[str] = (), axes: Axes | None = None,
        seeds: int | None = None,
    ) -> Measured:  # fmt: skip
        """The whole of it.

        Raises:
            ValueError: a part was asked for.
        """
        if recipes or optimizers or axes or seeds is not None:
            raise ValueError(f"table {self.name!r} is computed as a whole; leave recipes, optimizers, axes, seeds out")
        return self


def grid(text: str) -> dict[str, dict[str, str]]:
    """A printed table, row → column → entry, from a line for each row with its cells parted by bars.

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
