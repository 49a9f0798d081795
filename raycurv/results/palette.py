"""One optimizer, one colour: the colours of optimizers in figures, reports and MLflow.

The colours have a lightness of 0.46 to 0.75 in OKLab (Ottosson 2020), so that they show on white and on black. Within
these limits each one is far from all others. Lines differ in dashes and markers too, for print without colours.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DASHES, MARKERS = 5, 9  # numbers of kinds of dashes and markers in a figure
_DARKEST, _BRIGHTEST = -0.4, 0.45  # shares of black and white in the colours of settings
# In this order also dashes and markers are given out: the first nine optimizers have solid lines.
COLOURS = {
    "auto": "#D1243C",
    "curveball": "#0A6CB5",
    "red_adam_free": "#E8890C",
    "red_rmsprop": "#8A4B08",
    "red_sgd": "#F2636A",
    "sgd": "#7A7F87",
    "momentum": "#6A43A6",
    "adam": "#1F9E5A",
    "adamw": "#0E6B63",
    "rmsprop": "#8AA61A",
    "nesterov": "#8F86E0",
    "salera": "#A548BC",
    "llr_free": "#C23F86",
    "ntlr_sgd": "#12A5B8",
    "curveball_free": "#4FA0E8",
    "adamw_cosine": "#4FC79A",
    "prodigy": "#CD8EB2",
    "schedule_free_adamw": "#7C4661",
    "dadapt_adam": "#6A7310",
    "muon": "#A9A985",
    "soap": "#B26A61",
    "dog": "#A98522",
    "red_adam": "#97A9C4",
    "red_momentum": "#46587C",
    "red_sgd_free": "#D67CDF",
    "alera": "#976AA0",
    "llr_first_order": "#A01946",
    "llr_second_order": "#615846",
    "salera_free": "#8E2B7C",
    "spalera": "#107C10",
    "ag_adam": "#E86AA9",
    "ntlr_adam": "#CD5810",
    "schedule_free_sgd": "#DF8E7C",
    "sps": "#3D8E7C",
    "sls": "#616AD6",
    "adadelta": "#347C97",
    "adagrad": "#A93419",
    "ademamix": "#85734F",
    "alera_free": "#7C9761",
    "bfgs": "#6A73A9",
    "cdat_adam": "#3D4FB2",
    "cdat_momentum": "#73B2A9",
    "cdat_sgd": "#CDA010",
    "gen_adam": "#346A34",
    "gen_momentum": "#A98E8E",
    "gen_sgd": "#58BB58",
    "hessian_free": "#A94F6A",
    "hypergradient_additive": "#618E10",
    "hypergradient_multiplicative": "#1085DF",
    "kfac": "#BB61B2",
    "levenberg_marquardt": "#C47C46",
    "mechanic_adam": "#8E61CD",
    "momo_adam": "#C46A8E",
    "nadamw": "#B297D6",
    "nadamw_algoperf": "#73617C",
    "newton": "#F1733D",
    "ntlr_sgd_free": "#8E584F",
    "prodigy_cosine": "#7C4F8E",
    "ran_rmsprop": "#A96110",
    "ran_sgd": "#587361",
    "red_momentum_free": "#6A97B2",
    "rmsprop_bias_corrected": "#8EB26A",
    "schedule_free_adamw_algoperf": "#10A98E",
    "schedule_free_normuon": "#C4A0A0",
    "schedule_free_plus": "#61B2D6",
    "step_tuned_sgd": "#6A5810",
}
# Colours of optimizers that are not in the table above, chosen by their names.
_FURTHER = (
    "#B27CE8",
    "#9785A9",
    "#CD5861",
    "#3D854F",
    "#A04F8E",
    "#976A7C",
    "#6185F1",
    "#A08E61",
    "#73978E",
    "#348EC4",
    "#F17C97",
    "#8EA0E8",
    "#A9A046",
    "#5858A0",
    "#C49758",
    "#973D46",
    "#B27CC4",
    "#2B5897",
    "#A0346A",
    "#6A85CD",
    "#8E8E10",
    "#8E6A10",
    "#2BBBBB",
    "#10617C",
    "#B24F46",
    "#853DA0",
    "#D67361",
    "#466161",
    "#73856A",
    "#61A96A",
    "#A07C6A",
    "#B27C97",
)


@dataclass(frozen=True)
class LineStyle:
    """Style of a line.

    Attributes:
        colour: colour as ``#rrggbb``.
        dash: number of the kind of dashes, below :data:`DASHES`; 0 is solid.
        marker: number of the marker, below :data:`MARKERS`.
    """

    colour: str
    dash: int
    marker: int


def colour_of(optimizer: str) -> str:
    """Colour of an optimizer as ``#rrggbb``: the same in every figure, page and tracked run.

    An optimizer outside this package gets a colour by its name; two such optimizers may share one.
    """
    return COLOURS.get(optimizer) or _FURTHER[_hashed(optimizer) % len(_FURTHER)]


def line_styles(methods: Iterable[str]) -> dict[str, LineStyle]:
    """Styles of the lines of one page or figure, no two alike.

    The settings of an optimizer share its hue, from dark to bright in the order of their numbers. Without settings an
    optimizer has exactly the colour :func:`colour_of`.

    Args:
        methods: names of methods; the first word is the optimizer, the rest its setting.
    """
    names = list(dict.fromkeys(methods))
    settings: dict[str, list[str]] = {}
    for method in names:
        optimizer, _, setting = method.partition(" ")
        settings.setdefault(optimizer, []).append(setting)
    colours = _distinct_colours(settings)
    found: dict[str, LineStyle] = {}
    taken: set[tuple[int, int]] = set()
    for optimizer, some in settings.items():
        place = list(COLOURS).index(optimizer) if optimizer in COLOURS else _hashed(optimizer) % 45
        shaded = sorted(filter(None, some), key=_numbers)
        for rank, setting in enumerate([*([""] if "" in some else []), *shaded]):
            look = _free_pattern(place // MARKERS + rank, place, taken)
            taken.add(look)
            colour = _shade(colours[optimizer], setting, shaded, alone=len(some) == 1)
            found[f"{optimizer} {setting}" if setting else optimizer] = LineStyle(colour, *look)
    return {method: found[method] for method in names}


def _distinct_colours(optimizers: Iterable[str]) -> dict[str, str]:
    """Colour of each optimizer; unknown ones take the next colour that is free."""
    found: dict[str, str] = {}
    for optimizer in optimizers:
        first = _hashed(optimizer)
        choice = [_FURTHER[(first + step) % len(_FURTHER)] for step in range(len(_FURTHER))]
        free = [colour for colour in choice if colour not in found.values()]
        found[optimizer] = COLOURS.get(optimizer) or (free or choice)[0]
    return found


def _free_pattern(dash: int, marker: int, taken: set[tuple[int, int]]) -> tuple[int, int]:
    """The wanted dashes and marker, or the next ones that no other line has."""
    wanted = [((dash + step) % DASHES, (marker + step // DASHES) % MARKERS) for step in range(DASHES * MARKERS)]
    return next((pattern for pattern in wanted if pattern not in taken), wanted[0])


def _shade(colour: str, setting: str, shaded: Sequence[str], alone: bool) -> str:
    if alone or not setting:
        return colour
    share = shaded.index(setting) / max(1, len(shaded) - 1) if len(shaded) > 1 else 1.0
    return mixed(colour, _DARKEST + share * (_BRIGHTEST - _DARKEST))


def mixed(colour: str, share: float) -> str:
    """A colour with a share of white, or of black if the share is negative."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(p + abs(share) * ((255 if share > 0 else 0) - p)):02X}" for p in parts)


def _numbers(setting: str) -> tuple[list[float], str]:
    return [float(x) for x in re.findall(r"=(-?\d[\d.]*(?:e[+-]?\d+)?)", setting)], setting


def _hashed(name: str) -> int:
    return zlib.crc32(name.encode())
