"""The driver killed at varied moments: MLflow has every step and evaluation once, and the run ends bit-equal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.driver_kills import Campaign, campaign

pytestmark = [pytest.mark.reliability, pytest.mark.filterwarnings("ignore")]
RUNS = int(os.environ.get("RAYCURV_DRIVER_KILLS", "30")) // 5  # of five kills each


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """The campaign, with its run without kills."""
    with campaign(Path(tmp_path_factory.mktemp("driver-kills"))) as made:
        yield made


@pytest.mark.parametrize("number", range(RUNS))
def test_nothing_is_lost_or_doubled_when_the_driver_is_killed(kills: Campaign, number: int) -> None:
    row = kills.run(number)
    assert row.complete, row


@pytest.fixture(scope="module")
def kills_without_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """The campaign whose driver trains by itself."""
    with campaign(Path(tmp_path_factory.mktemp("kills-without-ray")), without_ray=True) as made:
        yield made


@pytest.mark.parametrize("number", range(RUNS))
def test_nothing_is_lost_or_doubled_when_a_driver_that_trains_is_killed(
    kills_without_ray: Campaign, number: int
) -> None:
    row = kills_without_ray.run(number)
    assert row.complete, row
