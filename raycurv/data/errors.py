"""What is wrong with a data set."""

from __future__ import annotations


class DataError(ValueError):
    """A data set that cannot be used as it is; the message names file, row and what to do where they are known."""


class CorruptRowGroupError(DataError):
    """A row group that cannot be read; the message names file and rows."""
