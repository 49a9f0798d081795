"""Automatic differentiation: products with the Jacobian and second derivatives, from one forward pass."""

from raycurv.curvature import attention, composites, elementwise, linear, norms, products  # registers their rules
from raycurv.curvature.custom_functions import register_operator
from raycurv.curvature.forward_tape import ForwardTape
from raycurv.curvature.rules import Derivative, UnsupportedOperator, rule
from raycurv.curvature.tape import PushingTape, Tape

__all__ = ["Derivative", "ForwardTape", "PushingTape", "Tape", "UnsupportedOperator", "register_operator", "rule"]
del attention, composites, elementwise, linear, norms, products
