"""Tables and plots out of tracked runs; :func:`runs` and :func:`metrics` give them to a notebook."""

from raycurv.figures.tracked import metrics, runs

__all__ = ["metrics", "runs"]
