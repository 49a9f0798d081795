"""A tape whose tangents belong to the first rows of a batch, recorded while all rows pass through the model.

Curvature from a part of the batch needs J·z of the first samples alone, and the gradient needs all of them. A
:class:`RowTape` records the forward pass of the whole batch, and keeps each operator's derivative at the first rows: a
row is the part of a tensor that belongs to one sample, and stands in order in its first dimension. Such an operator
then gives the same rows of its output, :data:`ROW_RULES` has the conditions. All others, those that mix samples among
them, end the recording, and :attr:`RowTape.unknown` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from raycurv.curvature import memory, rules
from raycurv.curvature.memory import Geometry
from raycurv.curvature.propagation import Step
from raycurv.curvature.rules import Call, Derivative, Tangent
from raycurv.curvature.tape import Storage, Tape

# Given an operator and which of its tensors have rows: which of them to narrow, or None if its output has no rows.
RowRule = Callable[[Call, list[bool]], list[bool] | None]
ROW_RULES: dict[str, RowRule] = {}


class RowTape(Tape):
    """Records the operators between `parameters` and the first rows of the outputs while it is entered.

    Args:
        parameters: leaf tensors whose tangents will be pushed, in this order.
        inputs: tensors whose first dimension is the batch.
        rows: number of rows that have tangents, the first ones.
        samples: number of rows of the batch.

    Attributes:
        rows: the argument `rows`.
        unknown: operator at which the recording has ended because its output has no rows; None if it has not.
    """

    def __init__(self, parameters: Sequence[Tensor], inputs: Sequence[Tensor], rows: int, samples: int) -> None:
        super().__init__(parameters)
        self.unknown: str | None = None
        self.rows, self._samples = rows, samples
        self._with_rows: set[int] = set()  # slots
        # Constants that depend on the inputs. They are kept, so that no other tensor gets the same memory.
        self._constants: dict[Geometry, Tensor] = {memory.geometry(x): x for x in inputs}
        self._mixed: dict[Geometry, Tensor] = {}  # without rows
        self._copies: WeakValueDictionary[int, Tensor] = WeakValueDictionary()  # by slot
        self._narrowed = False  # whether the operator that is being recorded is narrowed

    def finish(self, outputs: Tensor) -> None:
        """End the recording: the tangents of the first rows of `outputs` are wanted.

        Raises:
            UnsupportedOperator: the outputs do not depend on the parameters through recorded operators.
        """
        if self.unknown is None and self._slot_of_outputs(outputs) not in self._with_rows:
            self._end("the outputs")
        if self.unknown is None:
            super().finish(outputs)
        self._constants.clear()
        self._mixed.clear()

    def _derivative(self, call: Call, slots: Sequence[int | None]) -> Derivative:
        tensors = rules.tensors_of(call.args)
        rows = [self._has_rows(tensor, slot) for tensor, slot in zip(tensors, slots, strict=True)]
        self._narrowed = any(rows)
        if self._mixed and any(slot is None and self._is_mixed(t) for t, slot in zip(tensors, slots, strict=True)):
            return self._end(call.name)
        if not self._narrowed:
            return super()._derivative(call, slots)
        narrows = self._narrows(call, rows)
        if narrows is None:
            return self._end(call.name)
        keep = self._narrow if call.name in _KEEP_NOTHING else self._copy
        chosen = zip(tensors, slots, narrows, strict=True)
        given = iter([keep(tensor, slot) if narrow else tensor for tensor, slot, narrow in chosen])
        keep = self._copy if call.name in _KEEP_OUTPUT else self._narrow
        out = keep(call.out) if isinstance(call.out, Tensor) else tuple(map(keep, call.out))
        args, kwargs = rules.refill(call.args, given), call.kwargs
        if call.name == "expand":
            args[1] = [-1, *args[1][1:]]
        elif call.name == "native_group_norm":
            args[3] = self.rows
        elif call.kwargs.get("attn_mask") is not None:
            kwargs = kwargs | {"attn_mask": self._narrow_mask(call)}
        return super()._derivative(Call(call.func, call.name, tuple(args), kwargs, call.active, out), slots)

    def _constant_result(self, name: str, args: Sequence[Any], out: Any) -> Any:
        """Note whether the result of an operator without tangents has rows."""
        tensors = rules.tensors_of(args)
        rows = [self._has_rows(tensor, None) for tensor in tensors]
        mixed = bool(self._mixed) and any(map(self._is_mixed, tensors))
        if any(rows) or mixed:
            outs = [out] if isinstance(out, Tensor) else out if isinstance(out, (list, tuple)) else []
            outs = [x for x in outs if isinstance(x, Tensor)]
            call = Call(None, name.rstrip("_"), tuple(args), {}, [False] * len(tensors), out)
            keeps = bool(outs) and not mixed and self._narrows(call, rows) is not None
            (self._constants if keeps else self._mixed).update((memory.geometry(x), x) for x in outs)
        return out

    def _narrows(self, call: Call, rows: list[bool]) -> list[bool] | None:
        rule = ROW_RULES.get(call.name)
        found = None if rule is None else rule(call, rows)
        outs = [call.out] if isinstance(call.out, Tensor) else call.out
        divides = all(isinstance(x, Tensor) and x.dim() and x.shape[0] % self._samples == 0 for x in outs)
        return found if divides else None

    def _append(self, step: Step) -> None:
        super()._append(step)
        if self._narrowed:
            self._with_rows.update(slot for slot in step.outputs if slot is not None)

    def record(
        self,
        name: str,
        slots: tuple[int | None, ...],
        out: Any,
        derivative: Derivative,
        *,
        in_place: bool = False,
        custom: bool = False,
    ) -> None:
        """Append one operator; the arguments are those of :meth:`Tape.record`."""
        if custom:  # its derivative is that of all rows
            self._end(name)
        super().record(name, slots, out, derivative, in_place=in_place, custom=custom)

    def _put_together(self, key: Geometry, storage: Storage) -> int:
        self._end("a write through a view")
        return super()._put_together(key, storage)

    def _end(self, name: str) -> Derivative:
        self.unknown, self._paused = self.unknown or name, True
        return Derivative(_nothing)

    def _has_rows(self, tensor: Tensor, slot: int | None) -> bool:
        if slot is not None:
            return slot in self._with_rows
        return bool(self._constants) and memory.geometry(tensor) in self._constants

    def _is_mixed(self, tensor: Tensor) -> bool:
        return memory.geometry(tensor) in self._mixed

    def _copy(self, tensor: Tensor, slot: int | None = None) -> Tensor:
        """A copy of the first rows, so that the others are freed as early as in a pass without a tape."""
        found = None if slot is None else self._copies.get(slot)
        if found is None:
            found = self._narrow(tensor).clone()
            if slot is not None:
                self._copies[slot] = found
        return found

    def _narrow(self, tensor: Tensor, _: int | None = None) -> Tensor:
        return tensor.narrow(0, 0, tensor.shape[0] * self.rows // self._samples)

    def _narrow_mask(self, call: Call) -> Tensor:
        mask: Tensor = call.kwargs["attn_mask"]
        aligned = mask.dim() == call.args[0].dim() and mask.shape[0] == call.args[0].shape[0]
        return self._narrow(mask) if aligned else mask


_OF_OUTPUT = (
    *("relu", "tanh", "sigmoid", "exp", "expm1", "sqrt", "rsqrt", "reciprocal", "_softmax", "_safe_softmax"),
    *("_log_softmax", "max_pool2d_with_indices", "native_dropout"),
)
# Operators whose derivative keeps none of their inputs, and those whose derivative keeps an output.
_KEEP_NOTHING = frozenset(
    (
        *("view", "_unsafe_view", "_reshape_alias", "expand", "t", "transpose", "permute", "unsqueeze", "squeeze"),
        *("select", "slice", "unbind", "split", "split_with_sizes", "unsafe_split", "sum", "mean", "cumsum", "flip"),
        *("cat", "add", "sub", "rsub", "neg", "clone", "_to_copy", "alias", "avg_pool2d", "_adaptive_avg_pool2d"),
        *("upsample_nearest2d", "upsample_bilinear2d", "constant_pad_nd", *_OF_OUTPUT),
    )
)
_KEEP_OUTPUT = frozenset((*_OF_OUTPUT, "native_layer_norm", "native_group_norm"))


def _nothing(*_: Tangent) -> None:
    return None


def row_rule(*names: str) -> Callable[[RowRule], RowRule]:
    """Register a condition for operators by name."""

    def register(function: RowRule) -> RowRule:
        ROW_RULES.update(dict.fromkeys(names, function))
        return function

    return register


# --- operators on each element ---------------------------------------------------------------------------------------

_OF_ONE_TENSOR = (
    *("neg", "relu", "tanh", "sigmoid", "gelu", "silu", "mish", "softplus", "elu", "leaky_relu", "hardtanh"),
    *("hardswish", "hardsigmoid", "threshold", "clamp", "clamp_min", "clamp_max", "abs", "exp", "expm1", "log"),
    *("log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf", "pow", "clone", "_to_copy", "alias"),
)
# Their outputs have no tangents.
_CONSTANT = (
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isneginf", "logical_not", "logical_and", "logical_or"),
    *("bitwise_not", "bitwise_and", "bitwise_or", "sign", "floor", "ceil", "round"),
)


@row_rule(*_OF_ONE_TENSOR, "add", "sub", "rsub", "mul", "div", "where", "masked_fill", *_CONSTANT)
def _elementwise(call: Call, rows: list[bool]) -> list[bool] | None:
    tensors, out = rules.tensors_of(call.args), call.out
    if call.kwargs.get("rounding_mode") is not None or any(tensor.is_complex() for tensor in tensors):
        return None  # torch's own derivatives, which cannot see that a narrowed tensor is overwritten
    if len(tensors) > 1 and call.name in _OF_ONE_TENSOR:
        return None
    narrows = []
    for tensor, row, active in zip(tensors, rows, call.active, strict=True):
        aligned = tensor.dim() == out.dim() and tensor.shape[0] == out.shape[0]
        if row != aligned and (row or active):
            return None
        narrows.append(aligned)
    return narrows


@row_rule("native_dropout")
def _dropout(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows


# --- operators on the shape and along other dimensions ----------------------------------------------------------------


@row_rule("view", "_unsafe_view", "_reshape_alias")
def _view(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if call.out.numel() and call.out.dtype == call.args[0].dtype else None


@row_rule("expand")
def _expand(call: Call, rows: list[bool]) -> list[bool] | None:
    x = call.args[0]
    return rows if x.dim() == call.out.dim() and x.shape[0] == call.out.shape[0] else None


def _dimensions(call: Call) -> tuple[int, ...] | None:
    """The dimensions along which an operator works; None for all."""
    x, args = call.args[0], call.args[1:]
    if call.name == "t":
        return (0, 1)
    if call.name == "transpose":
        return tuple(args[:2])
    if call.name == "permute":
        return tuple(here for here, there in enumerate(args[0]) if there % x.dim() != here)
    if call.name in ("slice", "unbind"):
        return (args[0] if args else 0,)
    if call.name in ("split", "split_with_sizes", "unsafe_split"):
        return (args[1] if len(args) > 1 else 0,)
    if call.name == "unsqueeze":
        return (x.dim() if args[0] % (x.dim() + 1) == 0 else 1,)
    found = args[0] if args else None
    return None if not found and found != 0 else (found,) if isinstance(found, int) else tuple(found)


@row_rule(
    *("t", "transpose", "permute", "unsqueeze", "squeeze", "select", "slice", "unbind", "split", "split_with_sizes"),
    *("unsafe_split", "sum", "mean", "cumsum", "flip", "_softmax", "_safe_softmax", "_log_softmax"),
)
def _along_dimensions(call: Call, rows: list[bool]) -> list[bool] | None:
    dimensions, x = _dimensions(call), call.args[0]
    return None if dimensions is None or any(dim % x.dim() == 0 for dim in dimensions) else rows


@row_rule("cat")
def _cat(call: Call, rows: list[bool]) -> list[bool] | None:
    dim = call.args[1] if len(call.args) > 1 else 0
    moving = [not row and active for row, active in zip(rows, call.active, strict=True)]
    return None if any(moving) or dim % call.out.dim() == 0 else [True] * len(rows)


# --- products --------------------------------------------------------------------------------------------------------


@row_rule("mm")
def _matrix_product(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if rows == [True, False] else None


@row_rule("addmm")
def _addmm(call: Call, rows: list[bool]) -> list[bool] | None:
    bias = call.args[0]
    return rows if rows == [False, True, False] and (bias.dim() < 2 or bias.shape[0] == 1) else None


@row_rule("bmm")
def _batched_product(call: Call, rows: list[bool]) -> list[bool] | None:
    return None if any(active and not row for row, active in zip(rows, call.active, strict=True)) else [True, True]


@row_rule("convolution")
def _convolution(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if rows[0] and not any(rows[1:]) else None


@row_rule("embedding")
def _embedding(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if rows == [False, True] else None


@row_rule("_scaled_dot_product_flash_attention_for_cpu")
def _attention(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if all(rows) and call.args[0].dim() == 4 else None


# --- normalisations and pooling of each sample -----------------------------------------------------------------------


@row_rule("native_layer_norm")
def _layer_norm(call: Call, rows: list[bool]) -> list[bool] | None:
    alone = rows[0] and not any(rows[1:])
    return rows if alone and len(call.args[1]) < call.args[0].dim() else None


@row_rule("native_group_norm")
def _group_norm(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if rows[0] and not any(rows[1:]) else None


@row_rule("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d")
def _pool(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if call.args[0].dim() == 4 else None


@row_rule("constant_pad_nd")
def _pad(call: Call, rows: list[bool]) -> list[bool] | None:
    return rows if len(call.args[1]) < 2 * call.args[0].dim() else None
