"""Losses and weights of samples beyond the two named ones, to be named by import path in a configuration."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PADDING = 0  # the word number that stands for nothing


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of (outputs − targets)² over everything but the first dimension, shape (B,).

    Raises:
        ValueError: the shapes differ.
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"mean_squared_error takes targets in the shape of the outputs, not {tuple(targets.shape)} for "
            f"{tuple(outputs.shape)}"
        )
    return (outputs - targets).square().flatten(1).mean(1)


def word_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of −log p(word) over the words of each sentence, shape (B,).

    With :func:`words` as weights, the objective is the mean over all words of the batch, as translation is trained.

    Args:
        outputs: scores (B, T, words).
        targets: word numbers (B, T); 0 is padding, which does not count.

    Raises:
        ValueError: other shapes.
    """
    if outputs.dim() != 3 or targets.shape != outputs.shape[:2]:
        raise ValueError(
            f"word_cross_entropy takes scores (B, T, words) and word numbers (B, T), not {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    losses = F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=PADDING, reduction="none")
    return losses.sum(1) / words(targets).clamp(min=1)


def words(targets: Tensor) -> Tensor:
    """How many words each sentence has, (B,): its weight in the objective and in evaluation."""
    return (targets != PADDING).sum(1)
