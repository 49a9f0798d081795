"""Files that are damaged, unusual, or meant to do harm: an error that names file and row, or right pixels."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raycurv.data import DataError, image_transforms, parquet_images
from raycurv.data.parquet_footer import FooterError, parse_row_groups, read_footer
from raycurv.data.prepare import write_split
from tests.data.cases import everything, image, numbered, samples, write, write_raw

GREY = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class TestImages:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_of_16_bits_the_upper_8_are_kept(self, kind, channels):
        decoded = image_transforms.decode(encoded(GREY, kind), channels)
        np.testing.assert_array_equal(decoded, np.repeat((GREY >> 8)[..., None], channels, 2))
        assert image_transforms.describe(encoded(GREY, kind)) == (8, 8, 1)

    @pytest.mark.parametrize(("dtype", "name"), [(np.int32, "32-bit integer"), (np.float32, "floating-point")])
    def test_pixels_without_a_known_range_are_refused(self, tmp_path, dtype, name):
        tiff = encoded(GREY.astype(dtype), "TIFF")
        with pytest.raises(ValueError, match=f"has {name} pixels, whose range is not known; convert it to 8 or 16"):
            image_transforms.decode(tiff, 1)
        write_raw(tmp_path / "train.parquet", [tiff, tiff], [0, 1])
        with pytest.raises(DataError, match=rf"none of the first 2 images can be decoded: the image has {name} pixels"):
            parquet_images(tmp_path)
        write_raw(tmp_path / "train.parquet", [numbered(0), tiff], [0, 1])
        with pytest.raises(DataError, match=rf"row 1 \(from 0\): corrupt image: the image has {name} pixels"):
            everything(parquet_images(tmp_path).train)

    def test_a_cmyk_tiff_is_converted(self):
        assert image_transforms.decode(image(0, (9, 12), "TIFF", "CMYK"), 3).shape == (9, 12, 3)

    @pytest.mark.parametrize("kind", ["DDS", "TIFF", "GIF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "BMP"])
    @pytest.mark.filterwarnings("ignore")
    def test_damaged_bytes_are_a_value_error(self, kind):
        draw, whole = random.Random(0), image(0, (24, 20), kind)
        for _ in range(400):
            content = bytearray(whole)
            for _ in range(draw.choice((1, 2, 4, 16))):
                content[draw.randrange(min(len(content), draw.choice((32, 128, 10**6))))] = draw.randrange(256)
            for read in (image_transforms.describe, lambda e: image_transforms.decode(e, 3)):
                try:
                    read(bytes(content))
                except ValueError as error:
                    assert str(error)  # noqa: PT017

    def test_images_that_claim_too_many_pixels_are_refused_unread(self):
        jpeg = bytearray(image(0, (32, 32), "JPEG"))
        start = jpeg.index(b"\xff\xc0") + 5
        jpeg[start : start + 4] = struct.pack(">HH", 65000, 65000)
        png = bytearray(image(0, (32, 32), "PNG"))
        png[16:24] = struct.pack(">II", 60000, 60000)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        for content in (jpeg, png):
            for read in (image_transforms.describe, lambda e: image_transforms.decode(e, 3)):
                with pytest.raises(ValueError, match=r"pixels; at most|decompression bomb"):
                    read(bytes(content))

    def test_postscript_is_not_run(self):
        with pytest.raises(ValueError, match="PostScript program, which is not run"):
            image_transforms.decode(image(0, (8, 8), "EPS"), 3)


class TestFooters:
    def test_a_type_that_contradicts_the_schema_names_the_file(self, tmp_path):
        write(tmp_path, rows=20, per_shard=2)
        shard = tmp_path / "train-00000-of-00001.parquet"
        content = shard.read_bytes()
        at = content.rindex(b"\x15\x04\x19")  # of a column: its type INT64, and a list follows
        shard.write_bytes(content[:at] + b"\x15\x02\x19" + content[at + 3 :])
        with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet.*corrupt row group: .*type"):
            everything(parquet_images(tmp_path).train)

    @pytest.mark.parametrize("position", range(0, 900, 29))
    def test_no_changed_byte_of_a_footer_ends_the_process(self, tmp_path, position):
        write_raw(tmp_path / "train.parquet", [numbered(0), numbered(1)], [0, 1])
        shard = tmp_path / "train.parquet"
        content = bytearray(shard.read_bytes())
        if position + 8 >= struct.unpack("<I", content[-8:-4])[0]:
            pytest.skip("the footer is shorter")
        content[-9 - position] ^= 1 << position % 8
        shard.write_bytes(content)
        try:
            everything(parquet_images(tmp_path).train)
        except DataError as error:
            assert "train.parquet" in str(error)  # noqa: PT017

    def test_rows_sizes_and_statistics_are_those_that_pyarrow_reads(self, tmp_path):
        write(tmp_path, rows=50, per_group=20, per_shard=5)
        (shard,) = tmp_path.glob("*.parquet")
        metadata = pq.read_metadata(shard)
        with pa.OSFile(str(shard)) as file:
            found = parse_row_groups(read_footer(file), metadata.num_columns)
        assert [group.rows for group in found] == [20, 20, 10]
        for i, group in enumerate(found):
            for j, column in enumerate(group.columns):
                expected = metadata.row_group(i).column(j)
                assert column.size == expected.total_uncompressed_size
            label = metadata.row_group(i).column(metadata.num_columns - 1).statistics
            assert group.columns[-1].bounds(signed=True) == (label.min, label.max)

    def test_footers_longer_than_the_first_request_are_read_whole(self, tmp_path):
        table = pa.table({"x": [1]}).replace_schema_metadata({"long": "x" * 200_000})
        pq.write_table(table, tmp_path / "long.parquet")
        with pa.OSFile(str(tmp_path / "long.parquet")) as file:
            assert parse_row_groups(read_footer(file), 1)[0].rows == 1

    @pytest.mark.parametrize(
        "content", [b"", b"PAR1", *(sign * 400 for sign in (b"\xff", b"\x19", b"\x1c", b"\x80", b"\x16\x80"))]
    )
    def test_bytes_that_are_no_footer(self, content):
        with pytest.raises(FooterError):
            parse_row_groups(content + struct.pack("<I", len(content)) + b"PAR1", 1)


class TestLabels:
    @pytest.mark.parametrize("classes", [None, 2])
    @pytest.mark.parametrize("label", [-1, 7, None])
    def test_a_label_out_of_range_names_the_row(self, tmp_path, classes, label):
        folder = tmp_path / "set"
        write(folder, rows=20)
        write_raw(folder / "train-00000-of-00001.parquet", [numbered(0), numbered(1), numbered(2)], [0, label, 1])
        if label == 7:
            named(folder / "train-00000-of-00001.parquet", 3)
        with pytest.raises(DataError, match=r"row 1 \(from 0\): the label is"):
            everything(parquet_images(folder, classes=classes).train)

    @pytest.mark.parametrize("kind", [pa.float32(), pa.string(), pa.bool_()])
    def test_labels_that_are_no_whole_numbers(self, tmp_path, kind):
        write_raw(tmp_path / "train.parquet", [numbered(0), numbered(1)], [0, 1])
        table = pq.read_table(tmp_path / "train.parquet")
        pq.write_table(table.set_column(1, "label", table["label"].cast(kind)), tmp_path / "train.parquet")
        with pytest.raises(DataError, match=r"column 'label' is \w+, not a whole number"):
            parquet_images(tmp_path)

    @pytest.mark.parametrize("statistics", [True, False])
    def test_labels_too_large_to_be_classes(self, tmp_path, statistics):
        write_raw(tmp_path / "train.parquet", [numbered(0), numbered(1)], [0, 2**62])
        pq.write_table(
            pq.read_table(tmp_path / "train.parquet"), tmp_path / "train.parquet", write_statistics=statistics
        )
        with pytest.raises(DataError, match=r"rows 0 to 1 \(from 0\): the label 4611686018427387904 is too large"):
            parquet_images(tmp_path)

    def test_unsigned_labels(self, tmp_path):
        write_raw(tmp_path / "train.parquet", [numbered(0), numbered(1)], [0, 200])
        table = pq.read_table(tmp_path / "train.parquet")
        pq.write_table(table.set_column(1, "label", table["label"].cast(pa.uint8())), tmp_path / "train.parquet")
        found = parquet_images(tmp_path).train
        assert len(found.classes) == 201
        assert everything(found)[1].tolist() == [0, 200]


class TestReplacedShards:
    def test_a_shard_that_is_replaced_in_mid_run_is_named(self, tmp_path):
        write(tmp_path, rows=40, per_group=10, per_shard=4)
        found = parquet_images(tmp_path, memory_limit=4000, skip_corrupt=True).train
        found.fetch(0)
        (tmp_path / "train-00000-of-00001.parquet").unlink()
        write_split(str(tmp_path), "train", samples(40)[::-1], [f"class {i}" for i in range(10)], rows_per_group=10)
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet has been replaced since it was opened"):
            found.fetch(1)

    def test_a_shard_that_is_touched_without_a_change_of_size(self, tmp_path):
        write(tmp_path, rows=40, per_group=10, per_shard=4)
        found = parquet_images(tmp_path, memory_limit=4000).train
        os.utime(tmp_path / "train-00000-of-00001.parquet", (1, 1))
        with pytest.raises(DataError, match="has been replaced"):
            found.fetch(1)


class TestCorruptRowGroupsAtOpening:
    @pytest.fixture
    def folder(self, tmp_path):
        """The first of two row groups is damaged."""
        write(tmp_path, rows=20, per_group=10, per_shard=2)
        shard = tmp_path / "train-00000-of-00001.parquet"
        content = bytearray(shard.read_bytes())
        column = pq.ParquetFile(shard).metadata.row_group(0).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + 60] = b"\xff" * 60
        shard.write_bytes(content)
        return tmp_path

    def test_it_is_named(self, folder):
        with pytest.raises(DataError, match=r"(?s)rows 0 to 9 \(from 0\): corrupt row group.*--skip-corrupt"):
            parquet_images(folder)

    @pytest.mark.parametrize("classes", [None, 10])
    def test_it_is_left_out(self, folder, classes):
        found = parquet_images(folder, skip_corrupt=True, classes=classes).train
        assert len(everything(found)[0]) == 10
        assert found.skipped == 10


def named(shard, classes: int) -> None:
    """Give a shard names of classes."""
    names = {"info": {"features": {"label": {"names": [str(i) for i in range(classes)]}}}}
    table = pq.read_table(shard).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, shard)
