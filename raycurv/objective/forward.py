"""Forward passes: the model as one function, repeatable random numbers and buffers, the recording tape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raycurv.curvature import Tape

_NormBase = nn.modules.batchnorm._NormBase


class ModelCall(nn.Module):
    """The model as a module of one argument that returns one tensor.

    Args:
        model: the model.
        call: ``call(model, inputs)`` returns the outputs; None is ``model(inputs)``.
    """

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Any], Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, inputs: Any) -> Tensor:
        """The outputs, (B, …)."""
        return output_tensor(self.model(inputs) if self.call is None else self.call(self.model, inputs))

    def at(self, names: Sequence[str], points: Sequence[Tensor], inputs: Any) -> Tensor:
        """The outputs with `points` in place of the parameters of these names."""
        replaced = {f"model.{name}": point for name, point in zip(names, points, strict=True)}
        return functional_call(self, replaced, (inputs,), tie_weights=True)


def output_tensor(outputs: Any) -> Tensor:
    """The tensor that a model returned.

    Raises:
        TypeError: the model returned something else than one tensor with the batch as first dimension.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() == 0:
        raise TypeError(
            f"model must return one tensor with the batch as first dimension, not {type(outputs).__name__}; pick "
            "the outputs of a model that returns more: Objective(…, call=lambda model, inputs: model(inputs).logits)"
        )
    return outputs


class RandomState:
    """State of the random number generators of the CPU and of one device.

    Args:
        device: device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device: torch.device | None = device if device.type == "cuda" else None
        self._saved = self._get()

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Context in which the generators start from the saved state; afterwards they go on where they were."""
        now = self._get()
        self._set(self._saved)
        try:
            yield
        finally:
            self._set(now)

    def _get(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if self._device is not None else None

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None and self._device is not None:
            torch.cuda.set_rng_state(state[1], self._device)


@contextlib.contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Restore all buffers at the end, including those that the model replaced by other tensors."""
    found = [(m, name, buffer) for m in model.modules() for name, buffer in m._buffers.items() if buffer is not None]
    saved = [buffer.clone() for _, _, buffer in found]
    try:
        yield
    finally:
        for (module, name, buffer), value in zip(found, saved, strict=True):
            buffer.data.copy_(value)  # .data: a graph that waits for its backward pass has saved this buffer
            module._buffers[name] = buffer


@contextlib.contextmanager
def finite_statistics(model: nn.Module) -> Iterator[None]:
    """Put running statistics back at the end if any is NaN or infinite; decided on the device.

    Otherwise one such sample, whose step is not taken, would stay in them for good.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.running_mean is not None]
    statistics = [b for m in norms for b in (m.running_mean, m.running_var, m.num_batches_tracked) if b is not None]
    saved = [buffer.clone() for buffer in statistics]
    yield
    if not norms:
        return
    with torch.no_grad():
        finite = torch.isfinite(torch.stack([buffer.double().sum() for buffer in statistics])).all()
        for buffer, value in zip(statistics, saved, strict=True):
            buffer.data.copy_(torch.where(finite, buffer, value))


def recording(tape: Tape | None) -> contextlib.AbstractContextManager[Any]:
    """The tape as a context, or an empty context."""
    return contextlib.nullcontext() if tape is None else tape


def finished(tape: Tape | None, outputs: Tensor) -> Tensor:
    """The outputs, after they are marked as the tape's outputs."""
    if tape is not None:
        tape.finish(outputs)
    return outputs


def without_autocast(outputs: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context without autocast: derivatives are taken in the dtypes that the forward pass has chosen."""
    return torch.autocast(outputs.device.type, enabled=False)
