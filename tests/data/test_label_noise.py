from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv.data import DataError, noisy_images, parquet_images
from tests.data import cases


def labels(folder: Path | str, share: float, **settings: int) -> torch.Tensor:
    train = noisy_images(folder, share=share, channels=3, **settings).train
    return train.read(np.arange(len(train)), seed=0, epoch=0, training=True)[1]


def test_a_share_of_the_training_labels_is_drawn_and_stays(tmp_path: Path) -> None:
    folder = cases.write(tmp_path, rows=600)
    cases.write(tmp_path, rows=20, split="test")
    data = noisy_images(folder, share=0.4, channels=3)
    clean = parquet_images(folder, channels=3)
    rows = np.arange(600)
    images, noisy = data.train.read(rows, seed=0, epoch=0, training=True)
    expected_images, right = clean.train.read(rows, seed=0, epoch=0, training=True)
    assert torch.equal(images, expected_images)
    assert torch.equal(noisy, data.train.read(rows, seed=5, epoch=3, training=True)[1])
    assert torch.equal(noisy[7:9], data.train.read(np.array([7, 8]), seed=0, epoch=0, training=True)[1])
    classes = len(clean.train.classes or ())
    assert (noisy != right).float().mean().item() == pytest.approx(0.4 * (1 - 1 / classes), abs=0.06)
    assert data.evaluation is not None
    assert clean.evaluation is not None
    first = np.arange(20)
    for mine, theirs in zip(
        *(s.read(first, seed=0, epoch=0, training=False) for s in (data.evaluation, clean.evaluation)), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_noise_has_a_seed_of_its_own(tmp_path: Path) -> None:
    folder = cases.write(tmp_path)
    cases.write(tmp_path, rows=20, split="test")
    assert not torch.equal(labels(folder, 0.9), labels(folder, 0.9, noise_seed=1))
    assert torch.equal(labels(folder, 0.0), labels(folder, 0.0, noise_seed=1))


def test_what_cannot_have_noise_is_refused(tmp_path: Path) -> None:
    folder = cases.write(tmp_path)
    cases.write(tmp_path, rows=20, split="test")
    with pytest.raises(DataError, match=r"share is 1\.5; it must be from 0 to 1"):
        noisy_images(folder, share=1.5)
    with pytest.raises(DataError, match="raise its memory_limit"):
        noisy_images(folder, share=0.1, channels=3, memory_limit=4000)
