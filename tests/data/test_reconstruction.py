from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv.data import Loader, image_transforms, reconstructions
from tests.data import cases


@pytest.mark.parametrize("memory_limit", [2**28, 4000])
def test_targets_are_the_images_between_zero_and_one(memory_limit: int, tmp_path: Path) -> None:
    folder = cases.write(tmp_path)
    cases.write(tmp_path, rows=20, split="test")
    data = reconstructions(folder, channels=3, memory_limit=memory_limit)
    assert data.train.classes is None
    assert data.train.in_memory == (memory_limit > 4000)
    seen = []
    for inputs, targets in Loader(data.train, batch_size=16, seed=0, dtype=torch.float64).epoch(0):
        assert inputs.shape[1:] == data.train.input_shape == (3, 8, 8)
        assert inputs.dtype == torch.float64
        torch.testing.assert_close(targets.double(), inputs.flatten(1))
        seen += (inputs[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(seen) == list(range(60))
    assert data.evaluation is not None
    assert len(data.evaluation) == 20


def test_images_are_turned_about_their_middle() -> None:
    batch = torch.zeros(200, 9, 9, 1, dtype=torch.uint8)
    batch[:, 4, 4], batch[:, 4, 8] = 255, 255
    keys = image_transforms.sample_keys(0, 0, np.arange(200))
    turned = image_transforms.rotate(batch, keys, 15.0)
    assert (turned[:, 4, 4] > 250).all()
    torch.testing.assert_close(turned, image_transforms.rotate(batch, keys, 15.0))
    edge = turned[:, :, 7:, 0].double()
    rows = (edge.sum(2) * torch.arange(9)).sum(1) / edge.sum((1, 2)) - 4  # where the mark at the edge went
    angles = torch.atan2(rows, torch.tensor(4.0)).rad2deg()
    assert -16 < angles.min() < -10
    assert 10 < angles.max() < 16
    assert angles.mean().abs() < 2


def test_no_turn_changes_nothing() -> None:
    batch = torch.randint(256, (5, 8, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image_transforms.rotate(batch, image_transforms.sample_keys(0, 0, np.arange(5)), 0.0), batch)
