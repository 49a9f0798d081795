"""Losses and weights of samples beyond the two named ones, to be named by import path in a configuration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raycurv.objective.losses import LossAt, closed_form, softmax_hessian

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
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="none")
    return losses.view_as(targets).sum(1) / words(targets).clamp(min=1)


@closed_form(word_cross_entropy)
def _word_cross_entropy_at(outputs: Tensor, targets: Tensor) -> LossAt:
    values = word_cross_entropy(outputs, targets)
    share = ((targets != PADDING) / words(targets).clamp(min=1)[:, None]).to(outputs.dtype)[..., None]
    p = torch.softmax(outputs, -1)
    gradient = p.scatter_add(-1, targets[..., None], torch.full_like(share, -1.0)).mul_(share)
    return LossAt(values, gradient, lambda u: softmax_hessian(p, u).mul_(share))


def words(targets: Tensor) -> Tensor:
    """How many words each sentence has, (B,): its weight in the objective and in evaluation."""
    return (targets != PADDING).sum(1)
