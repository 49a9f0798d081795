"""Data sets and checkpoints behind an S3 server that answers badly."""

from __future__ import annotations

import os
import time

import pytest
import torch

from raycurv.data import DataError, parquet_images
from raycurv.data.prepare import write_split
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.checkpoint_file import CheckpointError
from tests.data.cases import everything, samples, write
from tests.data.faulty_proxy import CUT, RESET, SLOW, UNAVAILABLE, FaultyProxy

pytestmark = pytest.mark.slow


@pytest.fixture
def through(s3_server, monkeypatch):
    """Put a proxy with the given faults before the server; the bucket is made before."""
    proxies = []

    def start(fault):
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        proxies.append(FaultyProxy(port, fault))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxies[-1].port}")
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.mark.parametrize(
    ("kind", "limit"), [(UNAVAILABLE, 2**30), (RESET, 4000), (CUT, 2**30), (CUT, 4000), (SLOW, 4000)]
)
def test_every_third_request_fails_and_every_image_arrives(tmp_path, s3_server, through, kind, limit):
    bucket = s3_server()
    for folder in (f"{bucket}/mine", str(tmp_path)):
        write(folder, rows=60)
    expected = everything(parquet_images(tmp_path, memory_limit=limit).train)
    proxy = through(lambda number, head: kind if number % 3 == 0 else None)
    for skip in (False, True):
        found = parquet_images(f"{bucket}/mine", memory_limit=limit, skip_corrupt=skip).train
        for one, other in zip(everything(found), expected, strict=True):
            assert torch.equal(one, other)
        assert found.skipped == 0
    assert proxy.faults > 2


def test_answers_that_are_always_cut_are_no_corrupt_data(s3_server, through):
    bucket = s3_server()
    write(f"{bucket}/mine", rows=20)
    state = {"cut": False}
    through(lambda number, head: CUT if state["cut"] and head.startswith(b"GET") else None)
    found = parquet_images(f"{bucket}/mine", skip_corrupt=True, memory_limit=4000).train
    state["cut"] = True
    with pytest.raises(OSError, match="can be reached"):
        everything(found)
    assert found.skipped == 0


def test_checkpoints_are_written_and_read_while_every_third_request_fails(s3_server, through):
    bucket = s3_server()
    through(lambda number, head: (UNAVAILABLE, RESET)[number // 3 % 2] if number % 3 == 0 else None)
    store = CheckpointStore(f"{bucket}/run")
    for step in range(1, 3):
        store.save({"step": step, "weights": torch.full((1000,), float(step))})
        assert torch.equal(CheckpointStore(f"{bucket}/run").load()["weights"], torch.full((1000,), float(step)))


@pytest.mark.parametrize("fault", [UNAVAILABLE, RESET])
def test_checkpoints_wait_for_a_server_that_comes_back(s3_server, through, fault):
    bucket = s3_server()
    back = time.monotonic() + 8.0
    proxy = through(lambda number, head: fault if time.monotonic() < back else None)
    store = CheckpointStore(f"{bucket}/run", patience=60.0)
    store.save({"step": 1, "weights": torch.ones(10)})
    assert time.monotonic() > back
    assert proxy.faults > 4
    assert torch.equal(CheckpointStore(f"{bucket}/run").load()["weights"], torch.ones(10))


def test_a_server_that_stays_away_is_an_error_after_the_patience(s3_server, through):
    bucket = s3_server()
    through(lambda number, head: RESET)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="can be reached"):
        CheckpointStore(f"{bucket}/run", patience=2.0).save({"step": 1})
    assert time.monotonic() - began < 30.0


def test_a_shard_that_is_replaced_in_mid_run_is_named(s3_server):
    bucket = s3_server()
    write(f"{bucket}/mine", rows=40, per_group=10, per_shard=4)
    found = parquet_images(f"{bucket}/mine", memory_limit=4000, skip_corrupt=True).train
    found.fetch(0)
    found._split.system.delete_file(found._split.groups[0].shard.info.path)
    write_split(f"{bucket}/mine", "train", samples(40)[::-1], [f"class {i}" for i in range(10)], rows_per_group=10)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet has been replaced since it was opened"):
        found.fetch(1)
