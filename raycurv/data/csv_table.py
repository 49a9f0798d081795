"""Regression on a table in a CSV file, such as Boston housing: numbers, one column of them the target."""

from __future__ import annotations

import csv
import io
import os

import numpy as np
import torch
from torch import Tensor

from raycurv.data import storage
from raycurv.data.errors import DataError
from raycurv.data.order import hash64
from raycurv.data.shards import locate
from raycurv.data.source import Data, tensors


def csv_table(
    path: str | os.PathLike[str],
    *,
    target: str,
    held_out: int,
    seed: int = 0,
    max_rows: int | None = None,
    standardise: bool = True,
) -> Data:
    """Read a CSV file with a line of names; features and target are standardised by the training rows.

    So a squared error of 1 is that of always answering with the mean.

    Args:
        path: a file, ``s3://bucket/file`` or ``gs://bucket/file``, or a name in the folder RAYCURV_DATA.
        target: the column to predict, in capitals or not; all others are features.
        held_out: rows for evaluation, drawn by `seed`.
        seed: seed of that draw.
        max_rows: keep the first so many of the rows left to learn from.
        standardise: whether to standardise; False gives features and target as they are in the file.

    Raises:
        DataError: a cell is no number, a line has another number of cells, the column is missing, or too few rows.
    """
    uri = locate(path)
    names, rows = _numbers(uri)
    lower = [name.lower() for name in names]
    if target.lower() not in lower:
        raise DataError(f"{uri} has no column {target!r}; it has {', '.join(names)}")
    if not 1 <= held_out < len(rows):
        raise DataError(f"held_out is {held_out}; it must be at least 1 and leave some of the {len(rows)} rows")
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows is {max_rows}; it must be at least 1")
    order = np.argsort(hash64(seed, np.arange(len(rows))), kind="stable")
    train, test = rows[order[held_out:][:max_rows]], rows[order[:held_out]]
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation == 0] = 1.0  # a column that says nothing stays 0
    if not standardise:
        mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
    column = lower.index(target.lower())

    def parts(found: np.ndarray) -> tuple[Tensor, Tensor]:
        standard = torch.from_numpy((found - mean) / deviation)
        features = [index for index in range(len(names)) if index != column]
        return standard[:, features], standard[:, [column]]

    return tensors(*parts(train), evaluation=parts(test))


def _numbers(uri: str) -> tuple[list[str], np.ndarray]:
    """The names of the columns and the numbers below them, (rows, columns) in float64.

    Raises:
        DataError: the file is no table of numbers.
    """
    with storage.explained(uri):
        system, where = storage.resolve(uri)
        with system.open_input_file(where) as file:
            stored = file.read()
    try:
        lines = [line for line in csv.reader(io.StringIO(stored.decode("utf-8-sig"))) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{uri} is no CSV file: {error}") from error
    if len(lines) < 2:
        raise DataError(f"{uri} has {len(lines)} lines; a line of names and at least one of numbers are wanted")
    names = [name.strip(" '\"") for name in lines[0]]
    rows = np.empty((len(lines) - 1, len(names)))
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(names):
            raise DataError(f"{uri}, line {number}: {len(cells)} cells; {len(names)} numbers are wanted")
        try:
            rows[number - 2] = [float(cell.strip(" '\"")) for cell in cells]
        except ValueError as error:
            raise DataError(f"{uri}, line {number}: {error}; every cell must be a number") from error
    if not np.isfinite(rows).all():
        raise DataError(f"{uri}, line {2 + int(np.argmin(np.isfinite(rows).all(1)))}: a number is not finite")
    return names, rows
