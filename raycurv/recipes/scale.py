"""The same experiment smaller: a fraction of the data, of the epochs and of the network's width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Factors of an experiment's size, above 0 and at most 1.

    Attributes:
        data: fraction of the samples of every split.
        epochs: fraction of the epochs.
        width: factor of the layers' sizes.
    """

    data: float = 1.0
    epochs: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        for name in ("data", "epochs", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"scale: {name} is {value!r}; it must be a number above 0 and at most 1, such as 0.01")

    @classmethod
    def of(cls, value: Scaling) -> Scale:
        """From one number s, or from three for data, epochs and width.

        One number takes the fraction s of the data, of the epochs and, as the cost of a layer grows with the square of
        its width, √s of the width: the run then costs s³ of the whole one.

        Raises:
            ValueError: neither one number nor three, or one that is out of bounds.
        """
        if isinstance(value, Scale):
            return value
        numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if len(numbers) == 3:
            return cls(*numbers)
        if len(numbers) != 1:
            raise ValueError(f"scale is {value!r}; it must be one number, or three for data, epochs and width")
        both = cls(data=numbers[0], epochs=numbers[0])
        return cls(both.data, both.epochs, math.sqrt(both.data))

    def rows(self, samples: int, batch_size: int) -> int | None:
        """How many of the training samples are kept; None for all.

        Raises:
            ValueError: fewer than one batch.
        """
        if self.data == 1:
            return None
        kept = round(self.data * samples)
        if kept < batch_size:
            raise ValueError(
                f"scale: {self.data:g} of the data leaves {kept} of {samples} training samples, fewer than one batch "
                f"of {batch_size}; take at least {math.ceil(1e4 * batch_size / samples) / 1e4:g}"
            )
        return kept

    def passes(self, epochs: int) -> int:
        """How many of the epochs are left, at least one."""
        return max(1, round(self.epochs * epochs))

    def sizes(self, *units: int, multiple: int = 1) -> tuple[int, ...]:
        """Sizes of layers, rounded to a `multiple` of which each keeps at least one."""
        return tuple(multiple * max(1, round(self.width * size / multiple)) for size in units)

    def named(self, *parts: object) -> str:
        """The name of a run: the parts that say something, and the scale where it is not the whole experiment."""
        factors = (self.data, self.epochs, self.width)
        if self != Scale():
            short = self == Scale.of(self.data)
            parts = (*parts, "x" + "-".join(f"{factor:g}" for factor in (factors[:1] if short else factors)))
        return "-".join(str(part) for part in parts if part)


Scaling = float | Sequence[float] | Scale
