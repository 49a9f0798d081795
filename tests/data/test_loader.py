from __future__ import annotations

import threading
from itertools import chain

import numpy as np
import pytest
import torch

from raycurv.data import DataError, Loader, parquet_images, tensors
from raycurv.data.parquet import ParquetImages
from tests.data.cases import write

STREAMED = 6000  # bytes of memory_limit with which the cases below are streamed


def source(folder, **settings) -> ParquetImages:
    return parquet_images(folder, mean=(0.0,) * 3, std=(1.0,) * 3, **settings).train


def rows_of(inputs) -> list[int]:
    """The rows that numbered images say they are of."""
    values = (inputs[:, :2, 4, 4] * 255).round().long()
    return (values[:, 0] + 256 * values[:, 1]).tolist()


def read(found, epoch=0, start=0, **settings) -> list[list[int]]:
    loader = Loader(found, **{"batch_size": 16, "seed": 3, **settings})
    return [rows_of(inputs) for inputs, _ in loader.epoch(epoch, start)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("set"), rows=300, per_group=10, per_shard=3)


@pytest.fixture(params=["in memory", "streamed"])
def limit(request) -> dict[str, int]:
    return {} if request.param == "in memory" else {"memory_limit": STREAMED}


def test_both_ways_of_holding_are_tested(folder):
    assert source(folder).in_memory
    streamed = source(folder, memory_limit=STREAMED)
    assert not streamed.in_memory
    assert streamed.streams >= 2


def test_an_epoch_shows_every_sample_once_in_a_new_order(folder, limit):
    found = source(folder, **limit)
    epochs = [list(chain(*read(found, epoch))) for epoch in range(2)]
    assert [sorted(rows) for rows in epochs] == [list(range(300))] * 2
    assert epochs[0] != epochs[1]


def test_labels_belong_to_their_images(folder, limit):
    for inputs, targets in Loader(source(folder, **limit), batch_size=16, seed=0).epoch(0):
        assert [row % 10 for row in rows_of(inputs)] == targets.tolist()


def test_a_jump_equals_reading_on(folder, limit):
    found = source(folder, **limit)
    whole = read(found, epoch=1)
    for start in (1, 7, 18, 19):
        assert read(found, epoch=1, start=start) == whole[start:]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_workers_divide_the_batches_of_one_process(folder, limit, size):
    whole = read(source(folder, **limit), batch_size=13)
    shares = [read(source(folder, **limit), batch_size=13, rank=rank, size=size) for rank in range(size)]
    assert [sorted(chain(*parts)) for parts in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


def test_a_worker_reads_its_own_row_groups_alone(folder, monkeypatch):
    counts: list[list[int]] = []
    for rank in range(2):
        found, fetched = source(folder, memory_limit=STREAMED), []
        get = found._groups._read
        monkeypatch.setattr(found._groups, "_read", lambda number, f=fetched, g=get: f.append(number) or g(number))
        read(found, rank=rank, size=2)
        counts.append(fetched)
    assert set(counts[0]).isdisjoint(counts[1])
    assert set(counts[0]) | set(counts[1]) == set(range(30))
    # Once each, but for the first window of a stream, whose beginning is read again at the end of the epoch.
    assert len(counts[0]) + len(counts[1]) <= 30 + found.streams * found.window


def test_streams_hold_no_more_than_their_windows(folder):
    found, most = source(folder, memory_limit=STREAMED), 0
    for _ in Loader(found, batch_size=4, seed=0).epoch(0):
        most = max(most, len(found._groups._held))
    assert most < 30
    assert len(found._groups._held) == 0


def test_a_share_may_be_empty(folder, limit):
    batches = list(Loader(source(folder, **limit), batch_size=1, seed=0, rank=0, size=2).epoch(0))
    assert len(batches) == 300
    assert min(len(inputs) for inputs, _ in batches) == 0
    assert all(inputs.shape[1:] == (3, 8, 8) for inputs, _ in batches)


def test_augmentation_depends_on_the_sample_alone(folder, limit):
    def images(**settings):
        found = source(folder, augmentation="crop_flip", **limit)
        loader = Loader(found, seed=5, **settings)
        return {row: image for inputs, _ in loader.epoch(2) for row, image in zip(rows_of(inputs), inputs, strict=True)}

    # Zeros come in at the border, so the middle pixel still tells the row.
    one, other = images(batch_size=16), images(batch_size=7, rank=1, size=2)
    assert len(other) > 100
    assert all(torch.equal(one[row], image) for row, image in other.items())
    assert len({image.sum().item() for image in one.values()}) > 250


def test_evaluation_keeps_the_stored_order_and_the_images(folder):
    found = source(folder, augmentation="crop_flip")
    assert list(chain(*read(found, training=False))) == list(range(300))
    (inputs, _), *_ = Loader(found, batch_size=16, seed=0, training=False).epoch(0)
    assert rows_of(inputs) == rows_of(inputs.flip(-1).flip(-2))


def test_steps_per_epoch(folder):
    found = source(folder)
    assert Loader(found, batch_size=16, seed=0).steps_per_epoch == 19
    assert Loader(found, batch_size=16, seed=0, drop_last=True).steps_per_epoch == 18
    assert {len(batch) for batch in read(found, drop_last=True)} == {16}


def test_an_error_in_a_thread_reaches_the_consumer(folder):
    found = source(folder)
    del found._labels  # whatever goes wrong in there
    with pytest.raises(AttributeError, match="_labels"):
        list(Loader(found, batch_size=16, seed=0).epoch(0))
    assert_no_threads()


def assert_no_threads():
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("raycurv")]


def test_an_abandoned_epoch_leaves_no_thread(folder, limit):
    batches = Loader(source(folder, **limit), batch_size=4, seed=0, prefetch=3).epoch(0)
    next(batches)
    batches.close()
    assert_no_threads()


def test_batches_are_made_ahead_but_not_without_bound(folder):
    found, asked = source(folder), []
    original = found.read
    found.read = lambda rows, **rest: asked.append(rows) or original(rows, **rest)
    batches = Loader(found, batch_size=16, seed=0, prefetch=2).epoch(0)
    next(batches)
    assert len(asked) <= 3
    batches.close()


def test_tensors_are_a_data_set_too():
    inputs, targets = torch.arange(20.0).view(10, 2), torch.arange(10) % 3
    data = tensors(inputs, targets, evaluation=(inputs[:4], targets[:4]), classes=("a", "b", "c"))
    loader = Loader(data.train, batch_size=4, seed=0, dtype=torch.float64)
    batches = list(loader.epoch(0))
    assert batches[0][0].dtype == torch.float64
    assert sorted(torch.cat([x for x, _ in batches])[:, 0].tolist()) == inputs[:, 0].tolist()
    assert data.train.input_shape == (2,)
    assert len(data.evaluation) == 4


def test_tensors_of_bytes_and_of_token_ids_are_converted():
    picture = tensors(torch.full((2, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(2)).train
    assert picture.convert(picture.inputs, torch.float32).max() == 1
    tokens = tensors(torch.ones(2, 3, dtype=torch.int64), torch.zeros(2)).train
    assert tokens.convert(tokens.inputs, torch.float32).dtype == torch.int64


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2), "3 inputs and 2 targets"),
        (torch.zeros(0, 2), torch.zeros(0), "at least one"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), "row 2 has the label 2; 2 classes allow 0 to 1"),
    ],
)
def test_tensors_that_do_not_fit(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        tensors(inputs, targets, classes=("a", "b"))


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"prefetch": 0}, {"rank": 2, "size": 2}])
def test_arguments_out_of_bounds(folder, settings):
    with pytest.raises(DataError, match="must be at least 1"):
        Loader(source(folder), **{"batch_size": 16, "seed": 0, **settings})


def test_a_start_outside_the_epoch(folder):
    with pytest.raises(DataError, match="step 20 lies outside the epoch of 19 steps"):
        Loader(source(folder), batch_size=16, seed=0).epoch(0, start=20)


def test_a_batch_that_drops_everything(folder):
    with pytest.raises(DataError, match="leaves nothing of 300"):
        Loader(source(folder), batch_size=301, seed=0, drop_last=True)


def test_float64_is_converted_in_float64(folder):
    found = source(folder)
    (inputs, _), *_ = Loader(found, batch_size=16, seed=0, dtype=torch.float64).epoch(0)
    scaled = inputs.numpy() * 255
    assert np.abs(scaled - scaled.round()).max() < 1e-12
