"""Where a launch or a sweep keeps what it shows: a folder, and the artifacts of the run that gathers the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raycurv.tracking.client import TrackedRun


@dataclass(frozen=True)
class ArtifactWriter:
    """Takes texts.

    Attributes:
        name: of the launch or sweep.
        folder: of its files.
        run: in MLflow.
        say: tells the user what is going on.
    """

    name: str
    folder: Path
    run: TrackedRun
    say: Callable[[str], None]

    def artifact(self, name: str, text: str) -> None:
        """Keep a text in the folder, and in MLflow."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.run.text(name, text)
