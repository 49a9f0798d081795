"""One Ray for all the tests of this room: starting one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycurv.service import local
from tests.service.driving import Driver


@pytest.fixture(scope="session")
def head() -> Iterator[local.Head]:
    """A local Ray with two CPUs."""
    with local.local_ray(2) as head:
        yield head


@pytest.fixture
def driver(head: local.Head, tmp_path: Path) -> Iterator[Driver]:
    """Runs jobs as processes of their own, against the local Ray and a fresh folder of runs."""
    driver = Driver(head, tmp_path / "runs")
    yield driver
    driver.end()
