"""Performance profiles of the benchmark suite, the best methods by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raycurv.figures import performance_profile, style
from raycurv.results import table_formats
from raycurv.results.performance_profile import PerformanceProfile
from raycurv.results.target_score import LARGEST, score

STEM = "suite_profile"
SHOWN = 12  # lines of the figure


def save(found: Sequence[PerformanceProfile], folder: Path, optimizers: Mapping[str, str]) -> list[Path]:
    """Save the figure as PNG and SVG, and all profiles as CSV.

    Args:
        found: profiles of all methods; the figure shows those with the best scores.
        folder: folder of the files.
        optimizers: name of each method → its optimizer.

    Raises:
        ValueError: there is no profile.
        ImportError: matplotlib is not installed.
    """
    ranked = sorted(found, key=score, reverse=True)
    figure = performance_profile.draw(ranked[:SHOWN], cost="operations", largest=LARGEST, optimizers=optimizers)
    rows = [(p.name, f"{score(p):.4f}", " ".join(f"{ratio:.4g}" for ratio in p.ratios)) for p in ranked]
    data = table_formats.comma_separated(("method", "score", "ratios"), rows)
    title = "Tasks whose target is reached, over the operations of the best method"
    return style.save(figure, folder, STEM, data, {"Title": title})
