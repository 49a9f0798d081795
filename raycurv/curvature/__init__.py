"""Automatic differentiation: products with the Jacobian and second derivatives, from one forward pass."""

from raycurv.curvature import norms as _norms  # registers the rules of the normalisations
from raycurv.curvature.rules import Derivative, UnsupportedOperator, rule
from raycurv.curvature.tape import Tape

__all__ = ["Derivative", "Tape", "UnsupportedOperator", "rule"]
del _norms
