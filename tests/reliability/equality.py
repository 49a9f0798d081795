"""Whether two runs have the same state, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from raycurv.tracking import provenance


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested mappings and lists.

    Yields:
        The tensors, in the order of the mappings and lists.
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def difference(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """In what the states of two checkpoints differ: parameters or the optimizer; empty if in neither."""
    if one is None or other is None:
        return "no checkpoint"
    for part in ("model", "optimizer"):
        pairs = list(zip(tensors(one[part]), tensors(other[part]), strict=True))
        if not pairs or not all(torch.equal(a, b) for a, b in pairs):
            return f"another {part}"
    return ""


def undisturbed() -> str:
    """Name of the run that nothing happens to: another commit may round otherwise, and trains one of its own."""
    return f"whole-{provenance.commit()['commit'][:10]}"
