"""The encoder-decoder transformer (Vaswani et al., 2017) of NTLR's translation experiment (section 3, figure 5).

NTLR uses the network of PyTorch's translation tutorial: 3 + 3 layers, 8 heads, normalisation after each residual sum.
Linear layers and ``scaled_dot_product_attention`` support forward-mode and second derivatives.

Padding is token 0, masked by large finite numbers. A sentence of padding alone, used for the empty share of a worker,
thus gives finite outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycurv.models.layers import check_classes, check_dropout
from raycurv.objective.losses import PADDING

_MASKED = -1e9  # exp of it is 0 in every floating type that can hold it


class Attention(nn.Module):
    """Multi-head attention from queries (B, T, D) to keys and values (B, S, D)."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D); `mask`, if there is one, is added to the logits and broadcasts to (B, heads, T, S)."""
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(found.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """One layer: self-attention, in a decoder also cross-attention to the encoder's output, and a feed-forward network.

    The output of every part passes through dropout, is added to the part's input and normalised.
    """

    def __init__(self, size: int, heads: int, hidden: int, dropout: float, *, decoder: bool) -> None:
        super().__init__()
        self.itself = Attention(size, heads, dropout)
        self.across = Attention(size, heads, dropout) if decoder else None
        self.feed = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, size))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3 if decoder else 2))
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = self.norms[0](x + self.drop(self.itself(x, x, mask)))
        if self.across is not None and memory is not None and memory_mask is not None:
            x = self.norms[1](x + self.drop(self.across(x, memory, memory_mask)))
        return self.norms[-1](x + self.drop(self.feed(x)))


class Transformer(nn.Module):
    """Scores of the next word for every position of the sentence so far.

    Args:
        source_words: size of the source's vocabulary.
        target_words: size of the target's vocabulary.
        size: D, the length of a word's vector; a multiple of `heads`.
        heads: number of heads of every attention.
        layers: number of layers of the encoder, and of the decoder.
        hidden: hidden units of the feed-forward network.
        dropout: dropout probability for embeddings, attention weights, hidden units and before each residual sum.
    """

    def __init__(
        self, source_words: int, target_words: int, size: int, heads: int, layers: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.size = size
        self.source = nn.Embedding(source_words, size)
        self.target = nn.Embedding(target_words, size)
        self.encoder = nn.ModuleList(Layer(size, heads, hidden, dropout, decoder=False) for _ in range(layers))
        self.decoder = nn.ModuleList(Layer(size, heads, hidden, dropout, decoder=True) for _ in range(layers))
        self.encoded, self.decoded = nn.LayerNorm(size), nn.LayerNorm(size)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(size, target_words)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Scores (B, T, target_words) for the words after each of the target's.

        Args:
            inputs: source (B, S) and target (B, T) word numbers as a pair, or both in one tensor (B, 2, T). The target
                begins with its start symbol; 0 is padding.
        """
        # A server may send the numbers of words as floats.
        source, target = (words.long() for words in (inputs.unbind(1) if isinstance(inputs, Tensor) else inputs))
        dtype = self.out.weight.dtype
        source_mask = _padding_mask(source, dtype)
        later = causal_mask(target.shape[1], dtype, target.device)
        target_mask = torch.clamp(_padding_mask(target, dtype) + later, min=_MASKED)
        memory = self.embedded(self.source, source)
        for layer in self.encoder:
            memory = layer(memory, source_mask)
        memory = self.encoded(memory)
        x = self.embedded(self.target, target)
        for layer in self.decoder:
            x = layer(x, target_mask, memory, source_mask)
        return self.out(self.decoded(x))

    def embedded(self, embedding: nn.Embedding, words: Tensor) -> Tensor:
        """(B, T) word numbers to (B, T, D) vectors with positional encodings."""
        x = embedding(words) * math.sqrt(self.size)
        return self.drop(x + positions(words.shape[1], self.size, words.device).to(x.dtype))


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, length): 0 for a position and those before it, a large negative number for later ones."""
    later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    return _MASKED * later.to(dtype)


def positions(length: int, size: int, device: torch.device) -> Tensor:
    """Sines and cosines of positions 0 to `length` − 1, (length, size) in float32."""
    angle = torch.arange(length, device=device)[:, None] / 10_000 ** (torch.arange(0, size, 2, device=device) / size)
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def transformer(
    num_classes: int,
    source_words: int,
    size: int = 512,
    heads: int = 8,
    layers: int = 3,
    hidden: int = 512,
    dropout: float = 0.1,
) -> Transformer:
    """Network of the tutorial, as NTLR trains it on Multi30k.

    Its loss is :func:`raycurv.objective.losses.word_cross_entropy`, with the number of words as weight of a sentence.

    Args:
        num_classes: words of the target's vocabulary.
        source_words: words of the source's vocabulary.
        size: length of a word's vector; an even multiple of `heads`.
        heads: number of heads of every attention.
        layers: number of layers of the encoder, and of the decoder.
        hidden: hidden units of the feed-forward network.
        dropout: probability of dropping a number.

    Raises:
        ValueError: `size` is no even multiple of `heads`, or a number is out of bounds.
    """
    check_classes(num_classes)
    check_dropout(dropout)
    for name, value in (("source_words", source_words), ("heads", heads), ("layers", layers), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if size < 2 or size % heads or size % 2:
        raise ValueError(f"size is {size}; it must be an even multiple of the {heads} heads")
    return Transformer(source_words, num_classes, size, heads, layers, hidden, dropout)


def _padding_mask(words: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, S): 0 for words, a large negative number for padding."""
    return (_MASKED * (words == PADDING).to(dtype))[:, None, None]
