"""Measurements that return no recipe: cost of a step, sensitivity to the start, small problems, data."""
