from __future__ import annotations

import io
import random
import struct

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision import transforms
from torchvision.datasets import MNIST, FakeData

from raycurv.data import Data, DataError, Loader, from_dataset
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, Component, RunConfig, train

ROWS = 60


class Numbers(Dataset):
    """Rows that say what they are, plus what `noise()` draws."""

    classes = ("even", "odd")

    def __init__(self, rows: int = ROWS, noise=lambda: 0.0):
        self.rows, self.noise = rows, noise

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return torch.tensor([float(row), float(self.noise())]), row % 2


def jitter() -> float:
    return torch.rand(()).item() + torch.empty(()).uniform_().item() + torch.randint(9, ()).item()


def numbers() -> Data:
    return from_dataset(Numbers(noise=jitter), evaluation=Numbers(20))


def epoch(source, number=0, start=0, **settings):
    return list(Loader(source, **{"batch_size": 8, "seed": 3, **settings}).epoch(number, start))


def samples(batches) -> dict[int, tuple[float, ...]]:
    return {int(row[0]): tuple(row.tolist()) for inputs, _ in batches for row in inputs}


def test_a_random_transform_sees_seed_epoch_and_row_alone():
    source = numbers().train
    whole = samples(epoch(source, 1))
    assert len(whole) == ROWS
    assert samples(epoch(source, 1, batch_size=7, prefetch=3)) == whole
    assert samples([*epoch(source, 1, rank=0, size=2), *epoch(source, 1, rank=1, size=2)]) == whole
    assert samples(epoch(source, 1, start=4)).items() <= whole.items()
    assert samples(epoch(source, 2)) != whole
    assert samples(epoch(source, 1, seed=4)) != whole
    assert len({noise for _, noise in whole.values()}) == ROWS


def test_two_workers_share_the_batches_of_one():
    source = numbers().train
    shares = zip(*(epoch(source, rank=rank, size=2) for rank in range(2)), strict=True)
    for (inputs, targets), share in zip(epoch(source), shares, strict=True):
        assert torch.equal(inputs, torch.cat([part[0] for part in share]))
        assert torch.equal(targets, torch.cat([part[1] for part in share]))


def test_a_share_may_be_empty():
    inputs, targets = epoch(numbers().train, batch_size=1, rank=0, size=2)[0]
    assert (inputs.shape, targets.shape, targets.dtype) == ((0, 2), (0,), torch.int64)


def test_reading_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch(numbers().train)
    assert torch.equal(torch.rand(3), expected)


def network(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, num_classes))


def test_a_run_goes_on_in_the_middle_of_an_epoch_bit_by_bit(tmp_path):
    config = RunConfig("run", Component.of(network), Component.of(numbers), batch_size=8, epochs=3, log_every=2)

    def go(folder, **options):
        store = CheckpointStore(str(tmp_path / folder))
        result = train(config, collectives=Local(), store=store, emit=lambda records: None, **options)
        return result, store.load()

    whole, expected = go("whole")
    left = iter(range(11))
    stopped, _ = go("parts", stop=lambda: next(left) == 10)
    assert stopped.steps % 8 != 0
    resumed, found = go("parts", resume="must")
    assert (resumed.steps, resumed.values) == (whole.steps, whole.values)
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value)


@pytest.fixture
def mnist(data_folder, tmp_path) -> str:
    """The first images of MNIST in the files that torchvision reads."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        path = sorted((data_folder / "mnist").glob(f"{split}-*.parquet"))[0]
        rows = next(pq.ParquetFile(path).iter_batches(ROWS)).to_pylist()
        pixels = np.stack([np.array(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
        labels = np.array([row["label"] for row in rows], np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, ROWS) + labels.tobytes())
    return str(tmp_path)


def test_torchvision_with_a_random_crop(mnist):
    crop = transforms.Compose([transforms.RandomCrop(28, padding=4), transforms.ToTensor()])
    data = from_dataset(MNIST(mnist, transform=crop), evaluation=MNIST(mnist, train=False))
    assert data.train.input_shape == data.evaluation.input_shape == (1, 28, 28)
    assert len(data.train.classes) == 10
    one = [inputs for inputs, _ in epoch(data.train)]
    assert all(map(torch.equal, one, [inputs for inputs, _ in epoch(data.train)]))
    assert not torch.equal(one[0], epoch(data.train, seed=4)[0][0])
    inputs, targets = epoch(data.evaluation, training=False)[0]
    expected = MNIST(mnist, train=False)
    torch.testing.assert_close(inputs[3, 0], torch.from_numpy(np.array(expected[3][0])) / 255)
    assert targets.tolist() == expected.targets[:8].tolist()


def test_hugging_face_datasets():
    columns = {"a": list(range(ROWS)), "b": [0.5] * ROWS, "label": [row % 2 for row in range(ROWS)]}
    kinds = {"a": datasets.Value("float32"), "b": datasets.Value("float32")}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=["even", "odd"])})
    found = datasets.Dataset.from_dict(columns, features=features)
    source = from_dataset(found, inputs=("a", "b"), targets="label").train
    assert (source.classes, source.input_shape) == (("even", "odd"), (2,))
    for inputs, targets in epoch(source):
        assert (inputs[:, 0] % 2).tolist() == targets.tolist()
    with pytest.raises(DataError, match="'a', 'b', 'label'"):
        from_dataset(found)
    with pytest.raises(DataError, match=r"several splits \(train\).*data\['train'\]"):
        from_dataset(datasets.DatasetDict({"train": found}))
    with pytest.raises(DataError, match=r"IterableDataset is not map-style.*streaming=False"):
        from_dataset(found.to_iterable_dataset())


def test_preloading_reads_once_what_threads_must_not():
    fake = FakeData(12, (3, 8, 8), 4)
    with pytest.raises(DataError, match=r"FakeData seeds torch.*preload=True"):
        from_dataset(fake)
    source = from_dataset(fake, classes="abcd", preload=True).train
    inputs, targets = epoch(source, training=False, batch_size=12)[0]
    torch.testing.assert_close(inputs[5], torch.from_numpy(np.array(fake[5][0])).permute(2, 0, 1) / 255)
    assert targets[5] == fake[5][1]


@pytest.mark.parametrize("draw", [random.random, np.random.rand, np.random.default_rng().random])
def test_random_numbers_that_are_not_torchs_are_refused(draw):
    with pytest.raises(DataError, match=r"preload=True"):
        from_dataset(Numbers(noise=draw))
    from_dataset(Numbers(noise=draw), preload=True)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), 0


class Ragged(Numbers):
    def __getitem__(self, row):
        return torch.zeros(1 + row // 30), row % 2


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (Endless(), "Endless is not map-style.*numbered rows"),
        (DataLoader(Numbers()), "loader.dataset"),
        ("mnist", "str is not map-style"),
        (Numbers(0), "no rows"),
        (Ragged(), r"inputs of the rows 0 and \d+ differ: \(1,\).*\(2,\)"),
        (["abc", "def"], "holds str, which is no tensor"),
    ],
)
def test_what_cannot_be_data_is_refused_with_the_reason(dataset, match):
    with pytest.raises(DataError, match=match):
        from_dataset(dataset)


def test_a_label_outside_the_classes_is_refused_with_its_row():
    with pytest.raises(DataError, match=r"row 19 of Numbers has the label 1; 1 classes allow 0 to 0"):
        from_dataset(Numbers(20), classes=["even"])


def test_a_subset_has_the_classes_of_its_set():
    assert from_dataset(Subset(Numbers(), range(5))).train.classes == ("even", "odd")
