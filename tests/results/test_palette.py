import itertools

import numpy as np
import pytest

from raycurv.optim import registry
from raycurv.results.palette import COLOURS, colour_of, line_styles

# From sRGB to OKLab (Ottosson 2020).
_LMS = np.array(
    [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
)
_LAB = np.array(
    [
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ]
)


def oklab(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return _LAB @ np.cbrt(_LMS @ linear)


def test_every_registered_optimizer_has_a_colour_of_its_own():
    assert set(registry.names()) <= set(COLOURS)
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(oklab(one) - oklab(other)) > 0.05


def test_colours_show_on_white_and_on_black():
    assert all(0.45 < oklab(colour)[0] < 0.76 for colour in COLOURS.values())


def test_an_optimizer_has_one_colour_whatever_stands_beside_it():
    names = registry.names()
    for name in names:
        assert line_styles([name])[name].colour == line_styles(names[::-1])[name].colour == colour_of(name)
    assert line_styles(["mine", "adam"])["mine"].colour == colour_of("mine")


def test_no_two_lines_of_a_figure_are_alike_with_or_without_colours():
    rates = [f"{name} learning_rate={rate}" for name in ("adam", "momentum", "mine") for rate in (0.1, 0.03, 1e-3)]
    found = line_styles([*rates, "adam", *registry.names()[:25], *(f"of_others_{i}" for i in range(9))])
    assert len({style.colour for style in found.values()}) == len(found)
    assert len({(style.dash, style.marker) for style in found.values()}) == len(found)


def test_settings_share_the_hue_from_dark_to_bright():
    found = line_styles(["adam learning_rate=0.1", "adam learning_rate=0.001", "adam", "adam learning_rate=0.01"])
    dark, middle, bright = (oklab(found[f"adam learning_rate={rate}"].colour) for rate in (0.001, 0.01, 0.1))
    assert dark[0] < middle[0] < bright[0]
    assert found["adam"].colour == colour_of("adam")
    hues = [np.arctan2(lab[2], lab[1]) for lab in (dark, middle, bright)]
    assert hues == pytest.approx([np.arctan2(*oklab(colour_of("adam"))[:0:-1])] * 3, abs=0.15)


def test_the_lines_of_the_example_in_the_readme_have_colours_far_apart():
    names = ["curveball", "auto", "red_adam_free", "red_rmsprop", "sgd", "adam", "momentum"]
    for one, other in itertools.combinations(names, 2):
        assert np.linalg.norm(oklab(colour_of(one)) - oklab(colour_of(other))) > 0.1
