"""Tangents of tensors that share memory: what writes through views leave of a storage's tangent.

A tensor's memory is described by its :data:`Geometry`. After ``x[:, 0] = y``, the tangent of ``x`` consists of the
tangent that it had before and, on the written elements, that of ``y``. A tape keeps these as :class:`Write` entries,
the latest last, and :func:`assemble` makes one flat tangent of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import Derivative, Tangent, UnsupportedOperator

# (storage, offset, shape, strides, dtype, whether the elements are conjugated, whether they are negated)
Geometry = tuple[Any, ...]

_NO_PERIOD = 1 << 62  # larger than any storage: addresses modulo it are the addresses


@dataclass(frozen=True)
class Write:
    """Elements of a storage whose tangent is known.

    Attributes:
        key: their geometry.
        slot: slot of their tangent.
    """

    key: Geometry
    slot: int


def geometry(tensor: Tensor) -> Geometry:
    """The memory of a tensor.

    Raises:
        UnsupportedOperator: it has none of its own, as sparse and nested tensors.
    """
    try:
        storage = tensor.untyped_storage()._cdata
    except NotImplementedError as error:
        raise UnsupportedOperator(f"there is no rule for {tensor.layout} tensors") from error
    return (
        storage,
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def number_of_elements(key: Geometry) -> int:
    """Number of elements of a tensor, repeated ones included."""
    return math.prod(key[2])


def disjoint(a: Geometry, b: Geometry) -> bool:
    """Whether two views of one storage certainly share no element, such as the chunks of a tensor.

    They share none if for some stride their addresses modulo this stride lie in separate intervals.
    """
    if a[4] != b[4]:
        return False
    for period in {stride for stride in (*a[3], *b[3], _NO_PERIOD) if stride > 0}:
        (start, end), (other_start, other_end) = _interval(a, period), _interval(b, period)
        if max(end, other_end) <= period and (end <= other_start or other_end <= start):
            return True
    return False


def _interval(key: Geometry, period: int) -> tuple[int, int]:
    """First and end of a view's addresses modulo `period`; an end above `period` wraps around."""
    offset, shape, strides = key[1:4]
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size > 1 and stride % period)
    return offset % period, offset % period + span + 1


def covers(a: Geometry, b: Geometry) -> bool:
    """Whether all elements of `b` certainly are elements of `a`."""
    if a[4] != b[4]:
        return False
    if a[1:4] == b[1:4]:
        return True
    (start, end), (other_start, other_end) = _interval(a, _NO_PERIOD), _interval(b, _NO_PERIOD)
    dense = number_of_elements(a) == end - start and 0 not in a[3]
    return dense and start <= other_start and other_end <= end


def add_write(writes: list[Write], write: Write, *, only_if_new: bool = False) -> None:
    """Append a write, and drop the earlier ones that it overwrites.

    Args:
        writes: the writes to a storage so far.
        write: the next one.
        only_if_new: whether its tangent agrees with those of the earlier ones, so that it is left out if covered.
    """
    if only_if_new and any(covers(earlier.key, write.key) for earlier in writes):
        return
    writes[:] = [earlier for earlier in writes if not covers(write.key, earlier.key)]
    writes.append(write)


def assemble(writes: Sequence[Write]) -> tuple[Geometry, Derivative]:
    """All writes as one flat tensor: its geometry, and the derivative that puts its tangent together.

    Raises:
        UnsupportedOperator: the storage was written in several precisions.
    """
    keys = [_in_real_numbers(write.key) for write in writes]
    if len({key[4] for key in keys}) > 1:
        raise UnsupportedOperator("a storage is written through views of several dtypes, for which there is no rule")
    start = min(key[1] for key in keys)
    end = max(_interval(key, _NO_PERIOD)[1] for key in keys)
    whole = (keys[0][0], start, torch.Size([end - start]), (1,), keys[0][4], False, False)
    originals = [write.key for write in writes]

    def first(*d: Tangent) -> Tensor:
        given = next(tangent for tangent in d if tangent is not None)
        flat = torch.zeros(end - start, dtype=whole[4], device=given.device)
        for tangent, key, original in zip(d, keys, originals, strict=True):
            region = flat.as_strided(*_once(key, start))
            if tangent is None:
                region.zero_()
            else:
                region.copy_(_without_repeats(_real(_signed(tangent, original)), key))
        return flat

    return whole, Derivative(first)


def view_of(whole: Geometry, key: Geometry) -> Derivative:
    """The derivative that takes the tangent of the view `key` out of that of the tensor `whole` around it.

    Raises:
        UnsupportedOperator: their dtypes differ in precision.
    """
    inside, outside = _in_real_numbers(key), _in_real_numbers(whole)
    if inside[4] != outside[4]:
        raise UnsupportedOperator(
            f"a view in {key[4]} of a tensor in {whole[4]} was written, for which there is no rule"
        )
    start, end = outside[1], _interval(outside, _NO_PERIOD)[1]
    length = end - start
    # What lies around the writes is constant.
    low, high = min(inside[1], start), max(_interval(inside, _NO_PERIOD)[1], end)

    def first(d: Tensor) -> Tensor:
        real = _real(_signed(d, whole))
        if outside[3] == (1,) and outside[2] == (length,):
            flat = real if real.is_contiguous() else real.contiguous()
        else:
            flat = torch.zeros(length, dtype=real.dtype, device=real.device)
            flat.as_strided(*_once(outside, start)).copy_(_without_repeats(real, outside))
        if (low, high) != (start, end):
            flat = torch.nn.functional.pad(flat, (start - low, high - end))
        found = flat.as_strided(inside[2], inside[3], inside[1] - low + flat.storage_offset())
        return _signed(torch.view_as_complex(found) if key[4].is_complex else found, key)

    return Derivative(first)


def _in_real_numbers(key: Geometry) -> Geometry:
    """The geometry of the real and imaginary parts of a complex tensor, or of a real tensor."""
    storage, offset, shape, strides, dtype, _, _ = key
    if not dtype.is_complex:
        return (storage, offset, shape, strides, dtype, False, False)
    inside = (*(2 * stride for stride in strides), 1)
    return (storage, 2 * offset, (*shape, 2), inside, dtype.to_real(), False, False)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _signed(tangent: Tensor, key: Geometry) -> Tensor:
    """The tangent of a view's memory from that of the view, or the other way round: conjugated or negated."""
    tangent = tangent.conj().resolve_conj() if key[5] else tangent
    return -tangent if key[6] else tangent


def _once(key: Geometry, start: int) -> tuple[list[int], list[int], int]:
    """Shape, strides and offset of a geometry from `start` on, with repeated elements once."""
    sizes = [1 if stride == 0 else size for size, stride in zip(key[2], key[3], strict=True)]
    return sizes, list(key[3]), key[1] - start


def _without_repeats(tangent: Tensor, key: Geometry) -> Tensor:
    for dim, stride in enumerate(key[3]):
        tangent = tangent.narrow(dim, 0, 1) if stride == 0 and key[2][dim] > 1 else tangent
    return tangent
