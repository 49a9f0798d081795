"""Figures and report pages of results."""
