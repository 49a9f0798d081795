"""What the adapters' tests share."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils import _pytree as pytree

from raycurv import Objective


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Copies of the inputs and targets of every batch that any objective is asked for."""
    found: list[tuple[Any, Any]] = []
    make = Objective.batch

    def recorded(self: Objective, inputs: Any, targets: Any) -> Any:
        found.append(pytree.tree_map(lambda x: x.clone(), (inputs, targets)))
        return make(self, inputs, targets)

    monkeypatch.setattr(Objective, "batch", recorded)
    return found
