"""One cluster of separate machines for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.machines import Machines


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """A head without CPUs and two worker machines; a test that ends one boots it again."""
    machines = Machines()
    yield machines
    machines.close()
