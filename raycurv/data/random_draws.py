"""Random numbers of user code that reads samples: seeded by the sample, or found where they cannot be."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FUNCTIONS = "bernoulli multinomial normal poisson rand randint randn randperm rand_like randint_like randn_like"
_METHODS = "bernoulli multinomial bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_"
_DRAWS: frozenset[Any] = frozenset(
    [getattr(torch, name) for name in _FUNCTIONS.split()] + [getattr(Tensor, name) for name in _METHODS.split()]
)
_SEEDING = {inspect.unwrap(function).__code__ for function in (torch.manual_seed, torch.seed, torch.set_rng_state)}


class SeededDraws(TorchFunctionMode):
    """While entered, torch's random functions draw from one generator, in this thread alone.

    Args:
        generator: on the CPU.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, with the generator where it draws and has none."""
        given = dict(kwargs or {})
        if func in _DRAWS and given.get("generator") is None:
            given["generator"] = self.generator
        return func(*args, **given)


class KeptGenerators:
    """While entered, the global generators of torch, random and numpy may move; then they are set back."""

    def __enter__(self) -> KeptGenerators:
        self._torch, self._random, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_rng_state(self._torch)
        random.setstate(self._random)
        np.random.set_state(self._numpy)

    def moved(self) -> str | None:
        """The library whose generator has moved so far, if one has."""
        if not torch.equal(self._torch, torch.get_rng_state()):
            return "torch"
        if self._random != random.getstate():
            return "random"
        same = all(np.array_equal(a, b) for a, b in zip(self._numpy, np.random.get_state(), strict=True))
        return None if same else "numpy"


class SeedingWatch:
    """While entered, notices in this thread that torch's global generator is seeded or its state is set.

    Attributes:
        seen: whether it was.
    """

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> SeedingWatch:
        self._before = sys.getprofile()
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)

    def _watch(self, frame: FrameType, event: str, argument: object) -> None:
        self.seen = self.seen or (event == "call" and frame.f_code in _SEEDING)
