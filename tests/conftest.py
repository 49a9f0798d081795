"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Two processes of pytest share two cores; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Checkpoints of the tests name functions of the tests.
os.environ.setdefault("RAYCURV_TRUST", "tests")

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.service.fixtures"]

# The same cases on every machine, however slow.
hypothesis.settings.register_profile("raycurv", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("raycurv")


class OneRay(LoadScopeScheduling):
    """Tests that start Ray or servers go to one process: one Ray serves them all, and some measure time.

    The marks of --dist loadgroup do not reach xdist 3.8 from pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "service" if nodeid.startswith(("tests/service/", "tests/tracking/", "tests/cluster/")) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRay:
    """Which process takes which test."""
    return OneRay(config, log)


@pytest.fixture(scope="session")
def _s3_endpoint() -> Iterator[str]:
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_server(_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """A real S3 server on loopback: call it for the address ``s3://bucket`` of a new bucket.

    The environment points AWS clients of this process, and of those it starts, at the server (``AWS_ENDPOINT_URL``).
    """
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": _s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)

    def bucket() -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", endpoint_url=_s3_endpoint, region_name="us-east-1").create_bucket(Bucket=name)
        return f"s3://{name}"

    return bucket


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets; tests that use it skip when there is none."""
    folder = os.environ.get("RAYCURV_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data sets: set RAYCURV_DATA to their folder")
    return Path(folder)
