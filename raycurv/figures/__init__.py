"""Figures and report pages of results."""

from raycurv.deprecation import moved_names

__getattr__ = moved_names(__name__)
