"""Curvature of models that nobody here wrote, against float64 differences: ``python -m tests.survey``.

Each case builds a model with random weights, asks a batch for its gradient and its Taylor expansions along a random
direction, and compares them with differences of its values. ``outcomes.jsonl`` has one line per case, so that a survey
goes on where it was stopped. ``docs/models.md`` is written from it.
"""
