"""Where files lie: a local path, ``s3://`` or ``gs://``, behind one pyarrow file system."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

# Seconds. A dead server is an error after a few attempts, not a run that hangs.
CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 60.0
ATTEMPTS = 4
RETRY_SECONDS = 1.0  # between two attempts of `retried`
_QUERY = ("region", "endpoint_override", "scheme", "anonymous")
# Errors of pyarrow's S3 that a server away for a while gives; others, such as a refused key, stay as they are.
_PASSING = re.compile(
    "NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|HTTP status 5"
)
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class StorageError(OSError):
    """A file system that could not be reached or refused; the message says which and what to check."""


def resolve(uri: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """The file system of `uri`, and the path in it.

    ``s3://bucket/path`` takes its credentials as every AWS tool does (environment, profile, instance role), its server
    from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` and its region from ``AWS_REGION`` or ``AWS_DEFAULT_REGION``.
    The URI can say otherwise, ``s3://bucket/path?endpoint_override=http://localhost:9000&region=eu-west-1``, or ask for
    a public bucket with ``?anonymous=true``. ``gs://bucket/path`` takes Google's default credentials.

    Raises:
        ValueError: the address is empty, of another scheme, without a bucket, or has an unknown option.
        StorageError: the region of the bucket could not be found out.
    """
    text = os.fspath(uri)
    if not text:
        raise ValueError("the address is empty; it must be a local path, s3://bucket/path or gs://bucket/path")
    scheme, separator, _ = text.partition("://")
    if not separator:
        return fs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    if scheme == "file":
        return fs.LocalFileSystem(), unquote(urlsplit(text).path)
    if scheme not in ("s3", "gs", "gcs"):
        raise ValueError(f"{text!r} has the scheme {scheme!r}; it must be a local path, s3://bucket/path or gs://…")
    bucket, path, options = _split(text)
    with explained(text):
        system = _s3(bucket, options) if scheme == "s3" else _gcs(options)
    return system, f"{bucket}/{path}".rstrip("/")


def join(uri: str, *names: str) -> str:
    """`uri` with `names` below it; the options of a URI stay at its end."""
    if "://" not in uri:
        return os.path.join(uri, *names)
    address, mark, query = uri.partition("?")
    return "/".join([address.rstrip("/"), *names]) + mark + query


@contextmanager
def explained(uri: str | os.PathLike[str]) -> Iterator[None]:
    """Name `uri` and its server in the errors of a remote file system that are raised inside.

    Raises:
        FileNotFoundError: as it came; a missing file is often an answer.
        StorageError: in place of any other OSError of pyarrow.
        OSError: as it came, on a local path.
    """
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except OSError as error:
        text = os.fspath(uri)
        if "://" not in text or text.startswith("file://"):
            raise
        server = _endpoint(dict(parse_qsl(urlsplit(text).query))) if text.startswith("s3://") else None
        raise StorageError(
            f"{text}: {error}. Check that {server or 'the service'} can be reached from this machine, that the bucket "
            "exists and that the credentials may use it"
        ) from error


def retried(function: Callable[[], T], patience: float) -> T:
    """Call a function again while a server is away.

    Args:
        function: reads or writes; it may be called several times.
        patience: seconds from the first error on.

    Raises:
        StorageError: the last error of the function, or the first one that no wait can mend.
    """
    deadline: float | None = None
    while True:
        try:
            return function()
        except StorageError as error:
            if _PASSING.search(str(error)) is None or patience <= 0:
                raise
            if deadline is None:
                deadline = time.monotonic() + patience
                _LOG.warning("%s. Trying again for up to %.0f s", error, patience)
            if time.monotonic() >= deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query))
    if not parts.netloc:
        raise ValueError(f"{text!r} names no bucket; write {parts.scheme}://bucket/path")
    if unknown := sorted(set(options) - set(_QUERY)):
        raise ValueError(f"{text!r} has the unknown option {', '.join(unknown)}; the options are {', '.join(_QUERY)}")
    path = unquote(parts.path).strip("/")
    if {".", ".."} & {parts.netloc, *path.split("/")}:
        raise ValueError(
            f"{text!r} has '.' or '..' between its slashes, which could lead into another bucket; write the whole path"
        )
    return parts.netloc, path, options


def _endpoint(options: dict[str, str]) -> str | None:
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return options.get("endpoint_override") or next((os.environ[v] for v in variables if os.environ.get(v)), None)


def _s3(bucket: str, options: dict[str, str]) -> fs.FileSystem:
    endpoint = _endpoint(options)
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    settings = {} if endpoint is None else {"endpoint_override": endpoint}
    if "scheme" in options:
        settings["scheme"] = options["scheme"]
    return fs.S3FileSystem(
        region=region,
        anonymous=_truth(options),
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **settings,
    )


def _gcs(options: dict[str, str]) -> fs.FileSystem:
    settings = {name: options[name] for name in ("endpoint_override", "scheme") if name in options}
    limit = timedelta(seconds=REQUEST_TIMEOUT)
    return fs.GcsFileSystem(anonymous=_truth(options), retry_time_limit=limit, **settings)


def _truth(options: dict[str, str]) -> bool:
    return options.get("anonymous", "false").lower() in ("1", "true", "yes")
