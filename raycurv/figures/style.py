"""How figures look: colours that everybody can tell apart, readable in print and on a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any form of colour blindness can tell apart; beyond them the dashes differ.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
DASHES = ("-", "--", ":", "-.")


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # an extra; without pyplot, which would look for a display
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'raycurv[figures]'") from error
    return Figure(figsize=(width, height), layout="constrained")
