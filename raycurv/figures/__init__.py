"""Plots and pages out of results."""
