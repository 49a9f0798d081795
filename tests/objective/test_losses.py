from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from raycurv.objective.losses import Loss, mean_squared_error, word_counts, word_cross_entropy


def test_padding_counts_neither_in_the_loss_nor_in_the_weight() -> None:
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[1, 2, 3, 4], [4, 1, 0, 0], [0, 0, 0, 0]])
    losses = word_cross_entropy(scores, targets)
    assert word_counts(targets).tolist() == [4, 2, 0]
    torch.testing.assert_close(losses[1], functional.cross_entropy(scores[1, :2], targets[1, :2]))
    assert losses[2] == 0
    expected = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=0)
    torch.testing.assert_close((losses * word_counts(targets)).sum() / word_counts(targets).sum(), expected)


def test_hessian_products_of_sentences_are_those_of_their_words() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, u = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.tensor([[1, 2, 3], [4, 0, 0]])
    found = Loss(word_cross_entropy).at(scores, targets)
    by_word = Loss("cross_entropy").at(scores.flatten(0, 1), targets.flatten())
    share = ((targets != 0) / word_counts(targets)[:, None])[..., None]
    torch.testing.assert_close(found.gradient, by_word.gradient.view_as(u) * share)
    torch.testing.assert_close(found.hessian(u), by_word.hessian(u.flatten(0, 1)).view_as(u) * share)


def test_mean_squared_error_is_the_mean_over_a_sample() -> None:
    outputs, targets = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert mean_squared_error(outputs, targets).tolist() == [2.0, 12.5]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"not \(2, 3\) for \(2, 1\)"):
        mean_squared_error(torch.zeros(2, 1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"not \(2, 3\) and \(2, 3\)"):
        word_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))
