from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv.data import DataError, Loader, parquet_images
from raycurv.data.digits import prepare_digits, write_digits
from raycurv.data.prepare import image_folder, torchvision_set, write_split
from tests.data.cases import image, numbered, samples

JOB = Path(__file__).parents[2] / "jobs" / "prepare_data.py"


def tree(root: Path, split: str, rows: int) -> None:
    for row in range(rows):
        path = root / split / ("cat", "dog")[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered(row))


def test_an_image_folder_becomes_a_set(tmp_path):
    tree(tmp_path / "in", "train", 25)
    tree(tmp_path / "in", "val", 5)
    out = str(tmp_path / "out")
    command = [
        sys.executable,
        str(JOB),
        "folder",
        "--root",
        str(tmp_path / "in"),
        "--output",
        out,
        "--rows-per-group",
        "10",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["train: 25 images", "val: 5 images"]
    data = parquet_images(out)
    assert data.train.classes == ("cat", "dog")
    assert data.train.row_groups == (10, 10, 5)
    assert len(data.evaluation) == 5
    (inputs, targets), *_ = Loader(data.train, batch_size=25, seed=0, training=False).epoch(0)
    rows = (inputs[:, 0, 0, 0] * 0.229 * 255 + 0.485 * 255).round().int()
    assert sorted(rows.tolist()) == list(range(25))
    assert rows.tolist() != list(range(25))  # shuffled, so that a row group has all classes
    assert torch.equal(rows % 2, targets)


def test_an_image_folder_without_splits(tmp_path):
    tree(tmp_path, "", 6)
    assert image_folder(tmp_path, str(tmp_path / "out")) == {"train": 6}


def test_a_torchvision_set(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    for name, count in (("train", 7), ("t10k", 3)):
        head = b"\0\0\x08"
        shape = b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + b"\x03" + shape + pixels[:count].tobytes())
        labels = head + b"\x01" + count.to_bytes(4, "big") + bytes(range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    assert torchvision_set("MNIST", tmp_path, str(tmp_path / "out")) == {"train": 7, "test": 3}
    data = parquet_images(tmp_path / "out")
    (inputs, targets), *_ = Loader(data.train, batch_size=7, seed=0, training=False).epoch(0)
    np.testing.assert_array_equal(((inputs + 1) * 127.5).round()[:, 0].numpy(), pixels)
    assert targets.tolist() == list(range(7))
    assert data.train.classes[0] == "0 - zero"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: image_folder(path / "none", str(path)), "there is no folder"),
        (lambda path: image_folder(path, str(path / "out")), "has no images in folders named after their classes"),
        (lambda path: torchvision_set("NoSet", path, str(path)), "has no set 'NoSet'"),
        (lambda path: torchvision_set("MNIST", path, str(path)), "MNIST is not under"),
        (lambda path: write_split(str(path), "train", [], ["a"]), "no samples for the split 'train'"),
        (lambda path: write_split(str(path), "train", samples(3), ["a", "b"]), "2.png has the label 2; 2 classes"),
    ],
)
def test_bad_input(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_classes_that_train_has_not(tmp_path):
    tree(tmp_path, "train", 4)
    (tmp_path / "test" / "bird").mkdir(parents=True)
    (tmp_path / "test" / "bird" / "1.png").write_bytes(image(0))
    with pytest.raises(DataError, match="has the class 'bird'"):
        image_folder(tmp_path, str(tmp_path / "out"))


def test_shards_are_never_overwritten(tmp_path):
    write_split(str(tmp_path), "train", samples(3), list("abc"))
    with pytest.raises(DataError, match="has shards of the split 'train' already"):
        write_split(str(tmp_path), "train", samples(3), list("abc"))


def test_a_set_half_written_is_no_data(tmp_path):
    def interrupted():
        yield from samples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_split(str(tmp_path), "train", interrupted(), list("abc"), rows_per_group=2)
    with pytest.raises(DataError, match="no Parquet shards"):
        parquet_images(tmp_path)
    write_split(str(tmp_path), "train", samples(3), list("abc"), rows_per_group=2)
    assert len(parquet_images(tmp_path).train) == 3


def test_the_digits_are_written_once(tmp_path):
    folder = write_digits(tmp_path / "sets" / "digits")
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_digits(folder) == folder
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    data = parquet_images(folder)
    assert (len(data.train), len(data.evaluation)) == (1437, 360)
    assert data.train.input_shape == (1, 8, 8)
    (inputs, targets), *_ = Loader(data.train, batch_size=1437, seed=0).epoch(0)
    assert inputs.shape == (1437, 1, 8, 8)
    assert torch.bincount(targets).min() > 100
    assert [p.name for p in folder.parent.iterdir()] == ["digits"]


@pytest.mark.slow
def test_the_digits_are_written_to_an_address_once(tmp_path, s3_server, monkeypatch):
    address = f"{s3_server()}/digits"
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert prepare_digits(address) == address
    assert not [*tmp_path.iterdir()]  # no folder "s3:"
    there, here = parquet_images(address), parquet_images(write_digits(tmp_path / "digits"))
    assert len(there.train) == len(here.train) == 1437
    assert len(there.evaluation) == len(here.evaluation) == 360


def test_the_digits_are_the_originals(tmp_path):
    from sklearn.datasets import load_digits

    data = parquet_images(write_digits(tmp_path / "digits"))
    (inputs, targets), *_ = Loader(data.evaluation, batch_size=360, seed=0, training=False).epoch(0)
    originals = {
        tuple(image.astype(int).flatten()): target for image, target in zip(*load_digits(return_X_y=True), strict=True)
    }
    for picture, target in zip(((inputs + 1) * 8).round().int().flatten(1).tolist(), targets.tolist(), strict=True):
        assert originals[tuple(picture)] == target
