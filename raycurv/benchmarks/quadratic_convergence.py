"""Convergence of CurveBall with fixed ρ and β on a quadratic (Theorem A.1, Fig. 4): computed, not measured.

On a quadratic each eigenvalue h of the Hessian makes a system of its own (eq. 36) with the transition matrix

    R = [[ρ − βh, −βh], [ρ − βh, 1 − βh]],

which converges where 3/2·βh − 1 < ρ < 1 + βh (eq. 39), by the factor max |eig R| (eq. 38) at each step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raycurv.results.histories import Array


def rate(momentum: Array, step: Array) -> Array:
    """Max |eig R| (eq. 38) for ρ and βh, which broadcast; below 1 the iteration converges."""
    trace = momentum - 2 * step + 1
    root = np.sqrt(((momentum - 2 * step) ** 2 - 2 * momentum + 1).astype(complex))
    return np.maximum(np.abs(trace + root), np.abs(trace - root)) / 2


def converges(momentum: Array, step: Array) -> NDArray[np.bool_]:
    """Eq. 39 with ρ > 0 and βh > 0."""
    return (momentum > 0) & (step > 0) & (1.5 * step - 1 < momentum) & (momentum < 1 + step)
