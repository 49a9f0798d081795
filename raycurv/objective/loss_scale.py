"""Scales of derivatives that pass through float16, as autocast computes them on GPUs without bfloat16.

float16 holds 2⁻²⁴ to 65504. Derivatives are therefore multiplied by a power of two before they enter a pass and divided
by it afterwards, which is exact in the float32 of the results:

- The cotangent of a backward pass is multiplied by :attr:`LossScale.scale`, as in Micikevicius et al., *Mixed Precision
  Training* (2018), and torch's GradScaler. A gradient that is not finite halves the scale; 2,000 finite ones in a row
  double it. Steps with such a gradient are not taken.
- A direction z is multiplied by the power of two next to ‖Θ‖/‖z‖ and by a margin below 1, so that tangents are somewhat
  smaller than activations. First derivatives are divided by the factor, second derivatives by its square. The margin
  shrinks with a scale below :data:`_SCALE_OF_THE_MARGIN`, so that a tangent that overflows in every step does not for
  long.

Nothing is read from the device. Every worker sees the same global gradient, so that all take the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

INITIAL_SCALE = 2.0**16
INITIAL_SCALE_OF_SUMS = (
    2.0**8
)  # where a backward pass takes sums over the samples, which are not divided by their number
GROWTH_INTERVAL = 2000
LOWEST_SCALE, HIGHEST_SCALE = 2.0**-10, 2.0**24
_MARGIN = 2.0**-2
_SCALE_OF_THE_MARGIN = 2.0**6


class LossScale:
    """The scale of one objective; used under float16 autocast alone.

    Args:
        initial: the first scale, a power of two.
        growth_interval: gradients without an overflow after which the scale doubles.
    """

    def __init__(self, initial: float = INITIAL_SCALE, growth_interval: int = GROWTH_INTERVAL) -> None:
        self.initial, self.growth_interval = initial, growth_interval
        self._scale: Tensor | None = None
        self._finite_gradients: Tensor | None = None

    def at(self, device: torch.device) -> Tensor:
        """The scale, 0-d float32 on the device."""
        if self._scale is None or self._scale.device != device:
            scale = torch.full((), self.initial) if self._scale is None else self._scale
            counted = torch.zeros(()) if self._finite_gradients is None else self._finite_gradients
            self._scale, self._finite_gradients = scale.to(device), counted.to(device)
        return self._scale

    def update(self, gradient: Tensor) -> Tensor:
        """Halve the scale after an overflow, or double it after many gradients without one.

        Args:
            gradient: a global gradient, divided by the scale, of any shape.

        Returns:
            Whether the gradient is not finite and the scale was lowered for it, 0-d bool.
        """
        scale, counted = self.at(gradient.device), self._finite_gradients
        assert counted is not None
        overflow = ~torch.isfinite(gradient.sum())
        lowered = overflow & (scale > LOWEST_SCALE)
        counted = torch.where(overflow, 0.0, counted + 1)
        grows = counted >= self.growth_interval
        self._finite_gradients = torch.where(grows, 0.0, counted)
        factor = torch.where(lowered, 0.5, torch.where(grows, 2.0, 1.0))
        self._scale = (scale * factor).clamp(max=HIGHEST_SCALE)
        return lowered

    def state_dict(self) -> dict[str, Tensor]:
        """The scale and the number of gradients since it changed; empty before the first use."""
        if self._scale is None or self._finite_gradients is None:
            return {}
        return {"scale": self._scale, "finite_gradients": self._finite_gradients}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned, on any device.

        Raises:
            ValueError: the scale is not a positive, finite power of two.
        """
        if not state:
            self._scale = self._finite_gradients = None
            return
        scale, counted = (state[name].detach().float().cpu() for name in ("scale", "finite_gradients"))
        if not (0 < float(scale) < float("inf") and float(torch.frexp(scale)[0]) == 0.5):
            raise ValueError(f"scale is {float(scale):g}; it must be a positive, finite power of two")
        self._scale, self._finite_gradients = scale, counted


def uses_float16(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether autocast runs passes of a model with parameters of this device and dtype in float16."""
    kind = device.type
    enabled = dtype == torch.float32 and torch.is_autocast_enabled(kind)
    return enabled and torch.get_autocast_dtype(kind) == torch.float16


@torch.no_grad()
def direction_factor(direction: Sequence[Tensor | None], parameters: Sequence[Tensor], scale: Tensor) -> Tensor:
    """The power of two by which a direction is multiplied, 0-d float32; 1 where it is zero or not finite."""
    given = [tensor for tensor in direction if tensor is not None]
    norm = _norm(given) if given else scale.new_zeros(())
    ratio = _norm(parameters) / norm
    ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    nearest = ratio / torch.frexp(ratio)[0]  # a mantissa in [0.5, 1): the quotient is a power of two, without rounding
    return nearest * (scale / _SCALE_OF_THE_MARGIN).clamp(max=1.0) * _MARGIN


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))).float())
