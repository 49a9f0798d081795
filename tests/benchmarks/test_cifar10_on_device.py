"""On the CPU, at the size of a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv.benchmarks import cifar10_on_device
from raycurv.benchmarks.cifar10_on_device import SHIFT, ImageTensors, TargetRun, augmented, train_to_target
from raycurv.data import TensorSource
from raycurv.data.prepare import write_split


def stripes(samples: int, seed: int) -> dict[str, torch.Tensor]:
    """Two classes: horizontal and vertical stripes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    line = 160 * (torch.arange(32) // 4 % 2)
    pictures = torch.stack([line[:, None].expand(32, 32), line[None].expand(32, 32)])[labels][..., None]
    noise = torch.randint(96, (samples, 32, 32, 3), generator=generator)
    return {"images": (pictures + noise).to(torch.uint8), "labels": labels}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save(stripes(96, 0), tmp_path / "train.pt")
    torch.save(stripes(40, 1), tmp_path / "test.pt")
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_network_reaches_the_target_and_stops(folder: Path, capsys: pytest.CaptureFixture[str], precision: str):
    cifar10_on_device.main([
        *(str(folder), "--device", "cpu", "--width", "0.1", "--batch-size", "32", "--epochs", "30"),
        *("--target", "0.95", "--precision", precision, "--channels-last"),
    ])  # fmt: skip
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["accuracy"] >= 0.95 > max([line["accuracy"] for line in lines[:-1]], default=0)
    assert lines[-1]["precision"] == precision


def test_both_layouts_of_the_file_are_the_same_images(folder: Path):
    other = stripes(96, 0)
    torch.save({**other, "images": other["images"].permute(0, 3, 1, 2).contiguous()}, folder / "planar.pt")
    first, second = (ImageTensors.load(folder / name, torch.device("cpu")) for name in ("train.pt", "planar.pt"))
    assert first.images.shape == (96, 3, 32, 32)
    assert torch.equal(first.images, second.images)


def test_other_tensors_are_refused(folder: Path):
    torch.save({"images": torch.zeros(3, 4), "labels": torch.zeros(3)}, folder / "bad.pt")
    with pytest.raises(ValueError, match=r"bad.pt holds images \(3, 4\) of torch.float32"):
        ImageTensors.load(folder / "bad.pt", torch.device("cpu"))


def test_augmentation_shifts_and_flips_by_its_seed():
    images = torch.arange(6 * 6, dtype=torch.float32).view(1, 1, 6, 6).expand(200, 3, 6, 6)
    found, again = (augmented(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(found, again)
    middle = {tuple(image[0, 2:4, 2:4].flatten().tolist()) for image in found}
    assert len(middle) == 2 * (2 * SHIFT + 1) ** 2
    last = augmented(images.contiguous(memory_format=torch.channels_last), torch.Generator().manual_seed(3))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, last)


def test_a_run_that_cannot_be_meant_is_refused():
    for settings in ({"target": 0.0}, {"precision": "fp8"}, {"epochs": 0}):
        with pytest.raises(ValueError, match=rf"TargetRun.{next(iter(settings))} is"):
            TargetRun(**settings)


def test_parquet_shards_become_tensor_files(tmp_path: Path):
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    def samples():
        for row, image in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield buffer.getvalue(), "", row % 2

    for split in ("train", "test"):
        write_split(tmp_path / "parquet", split, samples(), ["0", "1"])
    cifar10_on_device.main([str(tmp_path / "tensors"), "--write-from", str(tmp_path / "parquet")])
    for split in ("train", "test"):
        loaded = torch.load(tmp_path / "tensors" / f"{split}.pt", weights_only=True)
        assert torch.equal(loaded["images"], torch.from_numpy(pixels))
        assert loaded["labels"].tolist() == [0, 1, 0, 1, 0, 1]


def test_what_cannot_be_decoded_at_once_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'train' do not fit in memory"):
        cifar10_on_device.write(tmp_path, {"train": TensorSource(torch.zeros(2, 3), torch.zeros(2).long())})


def test_an_epoch_leaves_out_a_smaller_last_batch(folder: Path):
    data = ImageTensors.load(folder / "train.pt", torch.device("cpu"))
    sizes = [len(y) for _, y in cifar10_on_device.batches(data, TargetRun(batch_size=40), torch.Generator())]
    assert sizes == [40, 40]
    (line,) = train_to_target(data, data, TargetRun(batch_size=500, epochs=1, width=0.1))
    assert line["epoch"] == 1
