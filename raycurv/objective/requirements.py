"""What a model and a batch must be; everything else is refused before any state changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from raycurv.objective.objective import Objective

Covers = Literal["all", "weights"] | Callable[[str, nn.Parameter], bool]


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and tensors of the trainable parameters.

    Raises:
        TypeError: `model` is not a module, or a parameter is not real and floating.
        ValueError: there is none, they differ in device or dtype, or their gradients would be sparse.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("model has no trainable parameter: nothing can be optimised")
    for name, parameter in named:
        if not parameter.is_floating_point():
            raise TypeError(f"parameter {name!r} is {parameter.dtype}; trainable parameters must be real and floating")
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) has sparse=True; directions are dense vectors, so make it "
                "with sparse=False"
            )
    for what, found in (("device", {p.device for _, p in named}), ("dtype", {p.dtype for _, p in named})):
        if len(found) > 1:
            raise ValueError(f"trainable parameters must share one {what}, not {', '.join(sorted(map(str, found)))}")
    return named


def in_l2_term(l2_covers: Covers, name: str, parameter: nn.Parameter) -> bool:
    """Whether the L2 term contains this parameter.

    Raises:
        ValueError: `l2_covers` is neither a known word nor a function.
    """
    if callable(l2_covers):
        return bool(l2_covers(name, parameter))
    if l2_covers not in ("all", "weights"):
        raise ValueError(f"l2_covers is {l2_covers!r}; it must be 'all', 'weights' or a function of (name, parameter)")
    return l2_covers == "all" or parameter.dim() >= 2


def check_batch(objective: Objective, inputs: Any, targets: Tensor) -> None:
    """Refuse inputs and targets that are not a batch for this objective.

    Raises:
        TypeError: `targets` or a leaf of `inputs` is not a tensor.
        ValueError: numbers of samples differ, a tensor is on another device than the model, or a single worker has no
            sample.
    """
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a tensor, not {type(targets).__name__}")
    if targets.dim() == 0:
        raise ValueError("targets must have the batch as first dimension, not be a single number")
    if targets.device != objective.device:
        raise ValueError(f"targets are on {targets.device} and the model is on {objective.device}; move one of them")
    for leaf in pytree.tree_leaves(inputs):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"inputs must be a tensor or a pytree of tensors; one leaf is {type(leaf).__name__}")
        if leaf.device != objective.device:
            raise ValueError(f"inputs are on {leaf.device} and the model is on {objective.device}; move one of them")
        if leaf.dim() == 0 or len(leaf) != len(targets):
            raise ValueError(
                f"inputs of shape {tuple(leaf.shape)} and targets of shape {tuple(targets.shape)} differ in the number "
                "of samples"
            )
    if len(targets) == 0 and objective.collectives.size == 1:
        raise ValueError("the batch has no sample; only one of several workers may have an empty share")
