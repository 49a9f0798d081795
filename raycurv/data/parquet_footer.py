"""Footers of Parquet files, read without pyarrow.

pyarrow's accessors of row groups and columns end the process on a damaged footer: an exception of C++ passes through
them uncaught, for example "ColumnMetaData type does not match ColumnDescriptor". Its readers are safe.

A footer is a struct of Apache Thrift's compact protocol, whose layout ``parquet.thrift`` of the Parquet format defines.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyarrow import NativeFile

_TAIL = 2**16  # bytes; most footers are shorter, and one request brings them
_MAGIC = b"PAR1"
_DEPTH = 32  # of nested structs and lists; a footer has 6
_FORMATS = {(4, True): "<i", (4, False): "<I", (8, True): "<q", (8, False): "<Q"}


class FooterError(ValueError):
    """A footer that is damaged."""


@dataclass(frozen=True)
class ColumnFooter:
    """One column of a row group.

    Attributes:
        size: bytes in memory.
        least: encoded smallest value; None if it is not stored.
        greatest: encoded largest value; None if it is not stored.
        nulls: number of missing values; None if it is not stored.
    """

    size: int
    least: bytes | None
    greatest: bytes | None
    nulls: int | None

    def bounds(self, signed: bool) -> tuple[int, int] | None:
        """The smallest and largest value of a column of whole numbers; None if unknown, or if values are missing."""
        if self.least is None or self.greatest is None or self.nulls != 0 or len(self.least) != len(self.greatest):
            return None
        form = _FORMATS.get((len(self.least), signed))
        return None if form is None else (struct.unpack(form, self.least)[0], struct.unpack(form, self.greatest)[0])


@dataclass(frozen=True)
class RowGroupFooter:
    """One row group.

    Attributes:
        rows: number of rows.
        columns: its columns, in the order of the leaves of the schema.
        first_byte: where it begins in the file.
        last_byte: where it ends.
    """

    rows: int
    columns: tuple[ColumnFooter, ...]
    first_byte: int
    last_byte: int


def read_footer(file: NativeFile) -> bytes:
    """The end of a Parquet file, which holds the whole footer and is a Parquet file without rows of its own.

    Raises:
        FooterError: the file does not end with a footer.
        OSError: it cannot be read.
    """
    size = file.size()
    tail: bytes = file.read_at(min(size, _TAIL), max(0, size - _TAIL))
    if len(tail) < 12 or not tail.endswith(_MAGIC):
        raise FooterError("it does not end with the sign of Parquet, PAR1")
    needed = struct.unpack("<I", tail[-8:-4])[0] + 8
    if needed > size:
        raise FooterError(f"its footer claims {needed} bytes of {size}")
    return file.read_at(needed, size - needed) if needed > len(tail) else tail[-needed:]


def parse_row_groups(footer: bytes, columns: int) -> tuple[RowGroupFooter, ...]:
    """The row groups of a file.

    Args:
        footer: end of the file from :func:`read_footer`.
        columns: number of leaves of the schema.

    Raises:
        FooterError: the footer contradicts itself, or is no Thrift struct.
    """
    try:
        fields = _CompactReader(footer[:-8]).struct()
        groups = tuple(_row_group(group) for group in fields.get(4, ()))
        rows = int(fields[3])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, struct.error) as error:
        raise FooterError(f"its footer is damaged: {error!r}") from error
    for number, group in enumerate(groups):
        if len(group.columns) != columns or group.rows < 0 or any(column.size < 0 for column in group.columns):
            raise FooterError(
                f"its footer is damaged: row group {number} has {group.rows} rows and {len(group.columns)} columns of "
                f"{columns}"
            )
    if sum(group.rows for group in groups) != rows:
        raise FooterError(f"its footer is damaged: the row groups have {sum(g.rows for g in groups)} rows of {rows}")
    return groups


def _row_group(fields: dict[int, Any]) -> RowGroupFooter:
    chunks = [chunk[3] for chunk in fields[1]]
    starts = [min(int(chunk[key]) for key in (9, 11) if chunk.get(key)) for chunk in chunks]
    ends = [start + int(chunk[7]) for start, chunk in zip(starts, chunks, strict=True)]
    return RowGroupFooter(int(fields[3]), tuple(map(_column, chunks)), min(starts, default=0), max(ends, default=0))


def _column(fields: dict[int, Any]) -> ColumnFooter:
    found: dict[int, Any] = fields.get(12, {})
    least, greatest = found.get(6, found.get(2)), found.get(5, found.get(1))  # 1 and 2 are those of old writers
    if not all(value is None or isinstance(value, bytes) for value in (least, greatest)):
        raise TypeError("a statistic is no value")
    nulls = found.get(3)
    return ColumnFooter(int(fields[6]), least, greatest, None if nulls is None else int(nulls))


class _CompactReader:
    """Reads Thrift's compact protocol: structs as dictionaries by the numbers of their fields, lists as lists."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at, self._depth = content, 0, 0
        self._readers: dict[int, Callable[[], Any]] = {
            **dict.fromkeys((1, 2, 3), self._byte),  # truth values in a list, and bytes
            **dict.fromkeys((4, 5, 6), self._integer),
            **{7: lambda: self._bytes(8), 8: lambda: self._bytes(self._varint())},
            **{9: self._list, 10: self._list, 12: self.struct},
        }

    def struct(self) -> dict[int, Any]:
        """The next struct.

        Raises:
            FooterError: it ends too early, is nested too deep, or has a field of an unknown type.
        """
        self._enter()
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        self._depth -= 1
        return fields

    def _list(self) -> list[Any]:
        self._enter()
        head = self._byte()
        length = head >> 4 if head >> 4 != 15 else self._varint()
        if length > len(self._content) - self._at:  # each item takes a byte at least
            raise FooterError(f"a list claims {length} items")
        values = [self._value(head & 15) for _ in range(length)]
        self._depth -= 1
        return values

    def _value(self, kind: int) -> Any:
        reader = self._readers.get(kind)
        if reader is None:
            raise FooterError(f"a field has the unknown type {kind}")
        return reader()

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _DEPTH:
            raise FooterError("it is nested too deep")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, length: int) -> bytes:
        self._at += length
        if self._at > len(self._content):
            raise FooterError(f"a field claims {length} bytes")
        return self._content[self._at - length : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise FooterError("a number has more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
