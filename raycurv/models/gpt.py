"""A decoder-only language model in the layout of GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycurv.models.layers import check_classes
from raycurv.models.pre_norm import PreNormLayer, check_sizes
from raycurv.models.transformer import causal_mask


class Gpt(nn.Module):
    """Scores of the next word for every position of a text.

    Args:
        words: size of the vocabulary.
        length: largest number of positions.
        size: D, the length of a word's vector; a multiple of `heads`.
        heads: number of heads of every attention.
        layers: number of layers.
        hidden: hidden units of the feed-forward networks.
        dropout: dropout probability.
    """

    def __init__(
        self, words: int, length: int, size: int, heads: int, layers: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, size), nn.Embedding(length, size)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(PreNormLayer(size, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, words, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T) word numbers to scores (B, T, words). Padding at the end of a text needs no mask."""
        inputs = inputs.long()  # a server may send the numbers of words as floats
        length = inputs.shape[1]
        places = torch.arange(length, device=inputs.device)
        x = self.drop(self.words(inputs) + self.positions(places))
        mask = causal_mask(length, x.dtype, inputs.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.out(self.norm(x))


def gpt(
    num_classes: int,
    input_shape: tuple[int, ...] = (64,),
    size: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 256,
    dropout: float = 0.0,
) -> Gpt:
    """A small GPT: learned positions, normalisation before each part, GELU, weights drawn from N(0, 0.02²).

    The output layer has weights of its own. Its loss is :func:`raycurv.objective.losses.word_cross_entropy`, with the
    number of words as weight of a text.

    Args:
        num_classes: words of the vocabulary.
        input_shape: largest number of words of a text, as a shape of one number.
        size: length of a word's vector; a multiple of `heads`.
        heads: number of heads of every attention.
        layers: number of layers.
        hidden: hidden units of the feed-forward networks.
        dropout: probability of dropping a number.

    Raises:
        ValueError: the inputs are no texts, `size` is no multiple of `heads`, or a number is out of bounds.
    """
    check_classes(num_classes)
    check_sizes(size, heads, layers, hidden, dropout)
    if len(input_shape) != 1:
        raise ValueError(f"input_shape is {tuple(input_shape)}; gpt takes texts (words,)")
    return Gpt(num_classes, input_shape[0], size, heads, layers, hidden, dropout)
