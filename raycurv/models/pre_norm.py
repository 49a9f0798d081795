"""Transformer layers that normalise before each part (Xiong et al., 2020), for :mod:`gpt` and `vision_transformer`."""

from __future__ import annotations

from torch import Tensor, nn

from raycurv.models.layers import check_dropout
from raycurv.models.transformer import Attention


class PreNormLayer(nn.Module):
    """Self-attention and a feed-forward network; each is applied to the normalised input and added to the input.

    Args:
        size: D, the length of a position's vector; a multiple of `heads`.
        heads: number of heads of the attention.
        hidden: hidden units of the feed-forward network.
        dropout: dropout probability for attention weights and before each sum.
    """

    def __init__(self, size: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.attention = Attention(size, heads, dropout)
        self.feed = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `mask` is added to the logits and broadcasts to (B, heads, T, T)."""
        normed = self.norms[0](x)
        x = x + self.drop(self.attention(normed, normed, mask))
        return x + self.drop(self.feed(self.norms[1](x)))


def check_sizes(size: int, heads: int, layers: int, hidden: int, dropout: float) -> None:
    """Refuse sizes that do not make a transformer.

    Raises:
        ValueError: a number is out of bounds, or `size` is no multiple of `heads`.
    """
    check_dropout(dropout)
    for name, value in (("size", size), ("heads", heads), ("layers", layers), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if size % heads:
        raise ValueError(f"size is {size}; it must be a multiple of the {heads} heads")
