"""State that a model reads and changes in its forward pass, beside parameters, inputs and torch's default generators.

All questions about one batch must see the same function of the parameters. So whatever the first forward pass moves is
kept as it was before, and set again for every later question about the batch:

- buffers, such as the vectors of spectral normalisation or moving averages that the model reads;
- the generators of Python's :mod:`random` and of numpy, and generators that are attributes of modules.

State of other kinds, such as a counter in an attribute, is not kept. :mod:`~raycurv.objective.consistency` finds it.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Values = dict[Hashable, Any]  # by the key of their source

_BATCH_NORM = nn.modules.batchnorm._BatchNorm.forward
_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm.forward


@dataclass(frozen=True)
class _Source:
    """One piece of state.

    Attributes:
        get: returns its value.
        set: sets it to a value.
        equal: whether two values are equal.
        restored: whether it is set to where it was after a repeated forward pass; buffers are restored by
            :func:`~raycurv.objective.forward.buffers_restored`.
    """

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    equal: Callable[[Any, Any], bool]
    restored: bool = True


class HiddenState:
    """The state of one model that its forward passes move.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._moving: set[Hashable] = set()  # sources that a forward pass has moved
        self._known: set[bool] = set()  # modes, training or not, in which a forward pass has been seen

    @property
    def unknown(self) -> bool:
        """Whether no forward pass of the model has been seen in its mode, training or evaluation."""
        return self.model.training not in self._known

    @property
    def moves_generators(self) -> bool:
        """Whether forward passes have drawn from other generators than torch's default ones."""
        sources = self._sources() if self._moving else {}
        return any(sources[key].restored for key in self._moving if key in sources)

    def get(self) -> Values:
        """Values of the sources that forward passes move; of all sources before the first pass."""
        if not self.unknown and not self._moving:
            return {}
        return {key: source.get() for key, source in self._sources().items() if self.unknown or key in self._moving}

    def keep_moved(self, before: Values) -> Values:
        """The values `before` the first forward pass on a batch of those sources that forward passes move."""
        if self.unknown:
            sources = self._sources()
            self._moving |= {
                key
                for key, value in before.items()
                if key in sources and not sources[key].equal(sources[key].get(), value)
            }
            self._known.add(self.model.training)
        return {key: value for key, value in before.items() if key in self._moving}

    def forget(self) -> None:
        """Treat the next forward pass in the model's mode as the first one."""
        self._known.discard(self.model.training)

    @contextlib.contextmanager
    def replayed(self, values: Values) -> Iterator[None]:
        """Context of a repeated forward pass, which starts from these values; generators go on where they were."""
        if not values:
            yield
            return
        sources = self._sources()
        pairs = [(sources[key], value) for key, value in values.items() if key in sources]
        now = [(source, source.get()) for source, _ in pairs if source.restored]
        for source, value in pairs:
            source.set(value)
        try:
            yield
        finally:
            for source, value in now:
                source.set(value)

    def of_copy(self, model: nn.Module) -> HiddenState:
        """The state of a copy of the model, with the same sources."""
        copied = HiddenState(model)
        copied._moving, copied._known = set(self._moving), set(self._known)
        return copied

    def _sources(self) -> dict[Hashable, _Source]:
        found: dict[Hashable, _Source] = {
            "Python's random": _Source(random.getstate, random.setstate, lambda a, b: bool(a == b))
        }
        numpy: Any = sys.modules.get("numpy.random")  # whoever draws from it has imported it
        if numpy is not None:
            found["numpy.random"] = _Source(numpy.get_state, numpy.set_state, _same_numpy_state)
        for path, module in self.model.named_modules():
            for name, value in vars(module).items():
                source = _generator(value)
                if source is not None:
                    found[path, name] = source
            if type(module).forward in (_BATCH_NORM, _INSTANCE_NORM) and module.training:
                continue  # running statistics, which are moved once and not read
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    found[path, name] = _buffer(module, name)
        return found


def _buffer(module: nn.Module, name: str) -> _Source:
    def get() -> tuple[Tensor, Tensor]:
        buffer = module._buffers[name]
        assert buffer is not None
        return buffer, buffer.detach().clone()

    def put(saved: tuple[Tensor, Tensor]) -> None:
        now, (_, value) = module._buffers[name], saved
        # A new tensor: a graph that waits for its backward pass may have saved the buffer itself.
        module._buffers[name] = value.to(value.dtype if now is None else now.dtype, copy=True)

    def equal(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
        return a[0] is b[0] and a[1].shape == b[1].shape and torch.equal(a[1], b[1])

    return _Source(get, put, equal, restored=False)


def _generator(value: Any) -> _Source | None:
    """The state of a random number generator; None for anything else."""
    if isinstance(value, torch.Generator):
        return _Source(value.get_state, value.set_state, torch.equal)
    if isinstance(value, random.Random):
        return _Source(value.getstate, value.setstate, lambda a, b: bool(a == b))
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None and isinstance(value, numpy.Generator):
        bits = value.bit_generator
        return _Source(lambda: bits.state, lambda state: setattr(bits, "state", state), _same_numpy_state)
    if numpy is not None and isinstance(value, numpy.RandomState):
        return _Source(value.get_state, value.set_state, _same_numpy_state)
    return None


def _same_numpy_state(a: Any, b: Any) -> bool:
    return pickle.dumps(a) == pickle.dumps(b)
