from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raycurv.data import DataError, Loader, locate, parquet_images, tensors
from raycurv.data.decoded_images import decoded
from raycurv.data.digits import write_digits
from raycurv.data.parquet import ImageSettings
from tests.data.cases import everything, image, numbered, write, write_raw


def test_names_shapes_and_splits(tmp_path):
    write(tmp_path, rows=30)
    write(tmp_path, rows=20, split="test")
    data = parquet_images(str(tmp_path))
    assert data.train.classes == tuple(f"class {label}" for label in range(10))
    assert data.train.input_shape == (3, 8, 8)
    assert (len(data.train), len(data.evaluation)) == (30, 20)
    assert data.train.row_groups == (10, 10, 10)


def test_a_set_without_an_evaluation_split(tmp_path):
    assert parquet_images(write(tmp_path)).evaluation is None


def test_validation_comes_before_test_and_a_name_before_both(tmp_path):
    for split, rows in (("train", 30), ("test", 20), ("validation", 10)):
        write(tmp_path, rows=rows, split=split)
    assert len(parquet_images(tmp_path).evaluation) == 10
    assert len(parquet_images(tmp_path, evaluation="test").evaluation) == 20
    assert parquet_images(tmp_path, evaluation=None).evaluation is None


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "plain_text/{}/0000.parquet", "{}.parquet"])
def test_the_layouts_of_the_hub(tmp_path, layout):
    for split in ("train", "test"):
        write_raw(tmp_path / layout.format(split), [numbered(i) for i in range(4)], [0, 1, 2, 2])
    data = parquet_images(tmp_path)
    assert len(data.train) == len(data.evaluation) == 4
    assert data.train.classes == ("0", "1", "2")  # no metadata: the labels are the names


def test_one_file_is_a_training_set(tmp_path):
    write_raw(tmp_path / "mine.parquet", [numbered(0)], [0])
    assert len(parquet_images(tmp_path / "mine.parquet").train) == 1


def test_the_columns_img_and_fine_label(tmp_path):
    write_raw(tmp_path / "train.parquet", [numbered(0), numbered(1)], [1, 0], image="img", label="fine_label")
    assert everything(parquet_images(tmp_path, label_column="fine_label").train)[1].tolist() == [1, 0]


def test_grey_images_have_one_channel_unless_three_are_asked(tmp_path):
    write_raw(tmp_path / "train.parquet", [image(i, mode="L") for i in range(3)], [0, 1, 2])
    assert parquet_images(tmp_path).train.input_shape == (1, 8, 8)
    inputs, _ = everything(parquet_images(tmp_path, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3).train)
    assert inputs.shape == (3, 3, 8, 8)
    assert torch.equal(inputs[:, 0], inputs[:, 2])


def test_drawn_classes_are_renumbered_and_named(tmp_path):
    write(tmp_path, rows=100)
    write(tmp_path, rows=50, split="test")
    data = parquet_images(tmp_path, classes=3, class_seed=1)
    names = data.train.classes
    assert len(names) == 3
    assert data.evaluation.classes == names
    assert len(data.train) == 30
    inputs, targets = everything(parquet_images(tmp_path, classes=3, class_seed=1, mean=(0,) * 3, std=(1,) * 3).train)
    rows = (inputs[:, 0, 0, 0] * 255).round().int().tolist()
    assert [names[target] for target in targets.tolist()] == [f"class {row % 10}" for row in rows]
    assert parquet_images(tmp_path, classes=3, class_seed=2).train.classes != names


def test_classes_are_kept_by_name(tmp_path):
    write(tmp_path, rows=100)
    write(tmp_path, rows=50, split="test")
    data = parquet_images(tmp_path, classes=("class 7", "class 2"), mean=(0,) * 3, std=(1,) * 3)
    assert data.train.classes == data.evaluation.classes == ("class 2", "class 7")
    assert (len(data.train), len(data.evaluation)) == (20, 10)
    inputs, targets = everything(data.train)
    assert set(((inputs[:, 0, 0, 0] * 255).round().int() % 10).tolist()) == {2, 7}
    assert targets.unique().tolist() == [0, 1]
    with pytest.raises(DataError, match="class 'class 10' is unknown; did you mean 'class 1'"):
        parquet_images(tmp_path, classes=("class 2", "class 10"))


def test_max_rows_keeps_the_first(tmp_path):
    write(tmp_path, rows=60)
    found = parquet_images(tmp_path, max_rows=25).train
    assert len(found) == 25
    assert found.row_groups == (10, 10, 5, 0, 0, 0)
    assert len(parquet_images(tmp_path, max_rows=25, memory_limit=4000).train) == 25


def test_a_streamed_subset_equals_the_one_in_memory(tmp_path):
    write(tmp_path, rows=200)
    arguments = {"classes": 4, "max_rows": 70}
    held, streamed = (parquet_images(tmp_path, memory_limit=m, **arguments).train for m in (2**30, 3000))
    assert held.in_memory
    assert not streamed.in_memory
    expected, labels = everything(held)
    found, found_labels = everything(streamed)
    key = [tuple(x.flatten().tolist()) for x in expected]
    other = [tuple(x.flatten().tolist()) for x in found]
    assert sorted(zip(key, labels.tolist(), strict=True)) == sorted(zip(other, found_labels.tolist(), strict=True))


def test_decoded_images_replace_the_encoded_ones(tmp_path):
    found = parquet_images(write(tmp_path)).train
    first, _ = everything(found)
    assert found._groups._held == {}
    assert torch.equal(everything(found)[0], first)


def test_a_name_is_looked_up_in_the_data_folder(tmp_path, monkeypatch):
    write(tmp_path / "mine")
    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path))
    assert locate("mine") == str(tmp_path / "mine")
    assert len(parquet_images("mine").train) == 60


def test_statistics(tmp_path):
    write(tmp_path)
    plain, _ = everything(parquet_images(tmp_path, mean=(0, 0, 0), std=(1, 1, 1)).train)
    usual, _ = everything(parquet_images(tmp_path).train)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(usual, (plain - mean) / std)
    assert usual.is_contiguous()


def test_settings_are_a_component():
    from raycurv.train.configuration import Component

    component = Component.of(parquet_images, path="cifar10", augmentation="crop_flip")
    assert component.target == "raycurv.data.parquet:parquet_images"
    assert Component("raycurv.data:parquet_images", component.settings).resolve() is parquet_images


class TestBadInput:
    def test_empty_or_missing_path(self, tmp_path, monkeypatch):
        monkeypatch.delenv("RAYCURV_DATA", raising=False)
        with pytest.raises(DataError, match="data path is empty"):
            parquet_images("")
        with pytest.raises(DataError, match=r"no data at .*/nothing; `raycurv prepare --help`"):
            parquet_images(str(tmp_path / "nothing"))

    def test_a_folder_without_shards(self, tmp_path):
        (tmp_path / "cat.jpg").write_bytes(b"")
        with pytest.raises(DataError, match=r"no Parquet shards below .* \(1 other files\); `raycurv prepare folder`"):
            parquet_images(tmp_path)

    def test_no_such_split(self, tmp_path):
        with pytest.raises(DataError, match=r"no shards of the split 'dev' .* it has train-00000"):
            parquet_images(write(tmp_path), evaluation="dev")

    def test_a_missing_shard(self, tmp_path):
        write(tmp_path)
        (tmp_path / "train-00001-of-00003.parquet").unlink()
        with pytest.raises(DataError, match="1 of 3 shards are missing, the first is 00001"):
            parquet_images(tmp_path)

    def test_several_sets_in_one_folder(self, tmp_path):
        write(tmp_path / "one")
        write(tmp_path / "two")
        with pytest.raises(DataError, match=r"several data sets \(one, two"):
            parquet_images(tmp_path)

    def test_missing_columns(self, tmp_path):
        write_raw(tmp_path / "train.parquet", [numbered(0)], [0], image="picture", label="class")
        with pytest.raises(
            DataError, match=r"train.parquet has no column 'image' .* it has picture: struct.*class: int64"
        ):
            parquet_images(tmp_path)
        with pytest.raises(DataError, match=r"has no column 'label'"):
            parquet_images(tmp_path, image_column="picture")

    def test_columns_of_another_type(self, tmp_path):
        pq.write_table(pa.table({"image": [b"x"], "label": [0]}), tmp_path / "train.parquet")
        with pytest.raises(DataError, match="column 'image' is binary, not struct<bytes, path>"):
            parquet_images(tmp_path)

    def test_a_label_outside_the_classes(self, tmp_path):
        names = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
        write_raw(tmp_path / "train.parquet", [numbered(i) for i in range(4)], [0, 1, 2, 1])
        table = pq.read_table(tmp_path / "train.parquet").replace_schema_metadata({"huggingface": json.dumps(names)})
        for statistics in (True, False):
            pq.write_table(table, tmp_path / "train.parquet", write_statistics=statistics)
            with pytest.raises(
                DataError, match=r"train.parquet, row 2 \(from 0\): the label is 2; 2 classes allow 0 to 1"
            ):
                everything(parquet_images(tmp_path).train)

    def test_a_missing_label(self, tmp_path):
        write_raw(tmp_path / "train.parquet", [numbered(0), numbered(1)], [0, None])
        with pytest.raises(DataError, match=r"row 1 \(from 0\): the label is -1"):
            everything(parquet_images(tmp_path).train)

    def test_more_classes_than_there_are(self, tmp_path):
        with pytest.raises(DataError, match=r"classes is 11, but .* has 10 classes"):
            parquet_images(write(tmp_path), classes=11)

    def test_images_of_several_sizes(self, tmp_path):
        write_raw(tmp_path / "train.parquet", [image(0, (8, 8)), image(1, (9, 12))], [0, 1])
        with pytest.raises(DataError, match=r"differ in size \(8×8, 9×12 …\); set image_size"):
            parquet_images(tmp_path)
        assert parquet_images(tmp_path, image_size=8).train.input_shape == (3, 8, 8)

    @pytest.mark.parametrize(
        "settings",
        [
            {"augmentation": "flip"},
            {"channels": 2},
            {"image_size": 0},
            {"max_rows": 0},
            {"memory_limit": 0},
            {"classes": 0},
        ],
    )
    def test_settings_out_of_bounds(self, tmp_path, settings):
        name = next(iter(settings))
        with pytest.raises(DataError, match=f"{name} is .*; it must be"):
            parquet_images(write(tmp_path), **settings)

    def test_statistics_of_another_number_of_channels(self, tmp_path):
        with pytest.raises(DataError, match="must have 3 values each"):
            parquet_images(write(tmp_path), mean=(0.5,), std=(0.5,))


class TestCorrupt:
    @pytest.fixture(params=[2**30, 700], ids=["in memory", "streamed"])
    def limit(self, request) -> int:
        return request.param

    def corrupt_image(self, folder: Path) -> Path:
        encoded = [numbered(i) for i in range(10)]
        encoded[3], encoded[7], encoded[8] = encoded[3][:40], b"no image", None
        write_raw(folder / "train.parquet", encoded, [i % 2 for i in range(10)])
        return folder

    def test_an_image_names_file_and_row(self, tmp_path, limit):
        data = parquet_images(self.corrupt_image(tmp_path), memory_limit=limit)
        with pytest.raises(DataError, match=r"train.parquet, row 3 \(from 0\): corrupt image: .* --skip-corrupt"):
            everything(data.train)

    def test_images_are_skipped_and_counted_once(self, tmp_path, limit):
        found = parquet_images(self.corrupt_image(tmp_path), memory_limit=limit, skip_corrupt=True).train
        loader = Loader(found, batch_size=4, seed=0)
        for epoch in range(2):
            assert sum(len(inputs) for inputs, _ in loader.epoch(epoch)) == 7
        assert loader.skipped == 3
        assert loader.steps_per_epoch == 3

    def test_a_truncated_photograph_is_corrupt(self, tmp_path):
        whole = image(0, (64, 64), "JPEG")
        write_raw(tmp_path / "train.parquet", [whole, whole[: len(whole) // 2]], [0, 1])
        with pytest.raises(DataError, match=r"row 1 .*corrupt image"):
            everything(parquet_images(tmp_path).train)

    def corrupt_group(self, folder: Path) -> Path:
        write(folder, rows=40, per_group=10, per_shard=4)
        shard = folder / "train-00000-of-00001.parquet"
        column = pq.ParquetFile(shard).metadata.row_group(2).column(0)
        content = bytearray(shard.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + 60] = b"\xff" * 60
        shard.write_bytes(content)
        return folder

    def test_a_row_group_names_file_and_rows(self, tmp_path, limit):
        data = parquet_images(self.corrupt_group(tmp_path), memory_limit=limit)
        with pytest.raises(
            DataError, match=r"train-00000-of-00001.parquet, rows 20 to 29 \(from 0\): corrupt row group"
        ):
            everything(data.train)

    def test_a_row_group_is_skipped_and_counted(self, tmp_path, limit):
        found = parquet_images(self.corrupt_group(tmp_path), memory_limit=limit, skip_corrupt=True).train
        assert len(everything(found)[0]) == 30
        assert found.skipped == 10

    def test_a_shard(self, tmp_path):
        write(tmp_path, rows=60)
        shard = tmp_path / "train-00001-of-00003.parquet"
        shard.write_bytes(shard.read_bytes()[:-30])
        with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet cannot be read as Parquet"):
            parquet_images(tmp_path)
        found = parquet_images(tmp_path, skip_corrupt=True).train
        assert len(found) == 40
        assert found.skipped == 1


class TestOnS3:
    def test_a_set_in_a_bucket_equals_the_local_one(self, tmp_path, s3_server):
        bucket = s3_server()
        write(f"{bucket}/sets/mine", rows=60)
        write(tmp_path, rows=60)
        assert not list(tmp_path.glob(".*"))
        for limit in (2**30, 4000):
            local, remote = (parquet_images(p, memory_limit=limit).train for p in (tmp_path, f"{bucket}/sets/mine"))
            for one, other in zip(everything(local), everything(remote), strict=True):
                assert torch.equal(one, other)

    def test_nothing_in_the_bucket(self, s3_server):
        bucket = s3_server()
        with pytest.raises(DataError, match=rf"no data at {bucket}/sets/mine"):
            parquet_images(f"{bucket}/sets/mine")

    def test_a_server_that_goes_away_is_no_corrupt_shard(self, s3_server, monkeypatch):
        bucket = s3_server()
        write(f"{bucket}/mine", rows=20)
        found = parquet_images(f"{bucket}/mine", skip_corrupt=True).train
        object.__setattr__(found._split, "system", dead_file_system())
        with pytest.raises(OSError, match="can be reached"):
            everything(found)


def dead_file_system():
    from pyarrow import fs

    retries = fs.AwsStandardS3RetryStrategy(max_attempts=1)
    return fs.S3FileSystem(endpoint_override="http://127.0.0.1:9", region="us-east-1", retry_strategy=retries)


class TestRealSets:
    @pytest.mark.parametrize(
        ("name", "rows", "shape", "classes"),
        [("mnist", 60000, (1, 28, 28), 10), ("cifar10", 50000, (3, 32, 32), 10)],
    )
    def test_open_and_read(self, data_folder, name, rows, shape, classes):
        data = parquet_images(data_folder / name, augmentation="crop_flip", max_rows=None)
        assert (len(data.train), len(data.evaluation)) == (rows, 10000)
        assert data.train.input_shape == shape
        assert len(data.train.classes) == classes
        inputs, targets = next(iter(Loader(data.train, batch_size=64, seed=0).epoch(0)))
        assert inputs.shape == (64, *shape)
        assert 0 <= targets.min() <= targets.max() < classes

    @pytest.mark.parametrize("augmentation", ["resize_crop_flip", "short_side_crop_flip"])
    def test_photographs(self, data_folder, augmentation):
        arguments = {"image_size": 224, "augmentation": augmentation, "memory_limit": 2**24}
        found = parquet_images(data_folder / "imagenet_sample", **arguments).train
        assert not found.in_memory
        inputs, _ = next(iter(Loader(found, batch_size=32, seed=0).epoch(0)))
        assert inputs.shape == (32, 3, 224, 224)
        assert 0.5 < inputs.std() < 2
        hundred = parquet_images(data_folder / "imagenet_sample", image_size=224, classes=100).train
        assert len(hundred) == 100


def test_photographs_are_decoded_at_a_part_of_their_size_only_where_that_is_asked_for(tmp_path):
    write_raw(tmp_path / "train.parquet", [image(i, (160, 200), "JPEG") for i in range(4)], [0, 1, 0, 1])

    def read(**settings):
        found = parquet_images(tmp_path, image_size=16, augmentation="resize_crop_flip", **settings).train
        return [found.read(np.arange(4), seed=0, epoch=0, training=training)[0] for training in (True, False)]

    for whole, default, reduced in zip(read(reduced_decoding=False), read(), read(reduced_decoding=True), strict=True):
        assert torch.equal(whole, default)
        assert not torch.equal(whole, reduced)
        assert (whole.float() - reduced.float()).abs().mean() < 20  # noise, which every average changes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_batches_are_normalised_as_small_ones(dtype):
    picture = ImageSettings(3, (96, 96), "none", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(256, (161, 96, 96, 3), generator=generator).to(torch.uint8).permute(0, 3, 1, 2)
    found = picture.converted(batch, dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, torch.cat([picture.converted(part, dtype) for part in batch.split(1)]))


def test_a_copy_of_the_shards_under_another_name_is_another_set(tmp_path):
    write(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert torch.equal(*(everything(parquet_images(tmp_path / n).train)[0] for n in ("one", "two")))


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "crop_flip_rotate"])
def test_decoded_images_give_the_same_batches(tmp_path, augmentation):
    data = parquet_images(write_digits(tmp_path / "digits"), channels=1, augmentation=augmentation)
    shared = decoded(parquet_images(tmp_path / "digits", channels=1, augmentation=augmentation))
    assert shared is not None
    rows = np.array([5, 0, 700, 5])
    for training in (True, False):
        for one, other in zip(
            data.train.read(rows, seed=1, epoch=2, training=training),
            shared.train.read(rows, seed=1, epoch=2, training=training),
            strict=True,
        ):
            assert torch.equal(one, other)
    assert shared.evaluation is not None
    assert shared.train.classes == data.train.classes
    assert decoded(tensors(torch.zeros(3, 2), torch.zeros(3))) is None
