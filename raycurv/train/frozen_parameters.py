"""Parameters that training leaves as they are, by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Set ``requires_grad=False`` for the parameters whose names match a pattern.

    Optimizers and curvature leave them out. Running statistics of batch normalisation are no parameters and still move.

    Args:
        model: the model.
        patterns: patterns of the whole name with ``*``, ``?`` and ``[…]``, as in file names; ``"features.*"`` matches
            ``features.0.weight``.

    Raises:
        ValueError: a pattern matches no parameter, or no trainable parameter is left.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matching = [name for name in named if fnmatchcase(name, pattern)]
        if not matching:
            parts = ", ".join(map(repr, sorted(_patterns(named))))
            raise ValueError(f"freeze: {pattern!r} matches no parameter; the parts of the model are {parts}")
        for name in matching:
            named[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in named.values()):
        raise ValueError(
            f"freeze is {', '.join(map(repr, patterns))}, which freezes all {len(named)} parameters: leave some to "
            f"train, such as {list(named)[-1]!r}"
        )


def _patterns(names: Iterable[str]) -> set[str]:
    """Patterns of the modules of the model, and names of its own parameters."""
    heads = (name.partition(".") for name in names)
    return {f"{head}.*" if dot else head for head, dot, _ in heads}
