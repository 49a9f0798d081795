"""Weights by name: from checkpoints of raycurv, files of torch and of safetensors, and packages of pretrained networks.

Nothing is unpickled: files of torch are read with ``weights_only``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raycurv.arguments import unknown
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.checkpoint_folder import open_folder
from raycurv.train.configuration import pretrained_name
from raycurv.train.export import trained_from

# Under these names training scripts keep the weights beside other things.
_NESTED = ("state_dict", "model_state_dict", "model")
Weights = dict[str, Tensor]


class StartError(ValueError):
    """Weights to start from that cannot be read or do not fit; the message says what to do."""


def read_weights(start: str, trust: Collection[str] | None = None) -> Weights:
    """Weights by name, on the CPU.

    Args:
        start: one of

            - the folder of checkpoints of a raycurv run (or one of its files): the weights that the run evaluates;
            - a file of ``torch.save``, which holds a ``state_dict`` or has one under ``state_dict``,
              ``model_state_dict`` or ``model``;
            - a file of safetensors, whose name ends in ``.safetensors``;
            - ``torchvision:NAME``, ``timm:NAME`` or ``transformers:NAME``, where the package is installed. NAME is as
              the package takes it, such as ``torchvision:resnet18``, ``torchvision:ResNet50_Weights.IMAGENET1K_V1``,
              ``timm:vit_tiny_patch16_224`` or ``transformers:google/vit-base-patch16-224``.
        trust: modules whose functions a checkpoint may name; None takes those of ``RAYCURV_TRUST``.

    Raises:
        UntrustedCodeError: a checkpoint names a function of another module.
        StartError: there is no such file, it holds something else, or the package or the name is missing.
    """
    if package := pretrained_name(start):
        with _explained(start):
            return _tensors(_PACKAGES[package[0]](package[1]), start)
    try:
        content = _file(start)
        state = CheckpointStore(start).load() if content is None else None
    except (OSError, CheckpointError) as error:
        raise StartError(f"start_from: {error}") from error
    if content is not None:
        return _tensors(_parsed(start, content, trust), start)
    if state is None:
        raise StartError(
            f"start_from: there is no file and no checkpoint at {start}; give the folder of a run's checkpoints, a "
            "file of torch or safetensors, or torchvision:NAME, timm:NAME or transformers:NAME"
        )
    return _tensors(_of_checkpoint(state, start, trust), start)


def _file(start: str) -> bytes | None:
    """The content of a file; None if there is none, or a folder."""
    address, mark, options = start.rstrip("/").partition("?")
    folder, _, name = address.rpartition("/")
    try:
        return open_folder((folder or "/") + mark + options).read(name)
    except IsADirectoryError:
        return None


def _parsed(start: str, content: bytes, trust: Collection[str] | None) -> Mapping[str, Any]:
    if start.partition("?")[0].endswith(".safetensors"):
        with _explained(start):
            from safetensors.torch import load

            return load(content)
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise StartError(
            f"start_from: {start} cannot be read without unpickling objects ({reason}): write its "
            "state_dict alone, torch.save(model.state_dict(), file), or use safetensors"
        ) from error
    if isinstance(found, Mapping) and {"config", "optimizer", "horizon"} <= found.keys():
        return _of_checkpoint(dict(found), start, trust)
    return found


def _of_checkpoint(state: dict[str, Any], start: str, trust: Collection[str] | None) -> Weights:
    return dict(trained_from(state, f"start_from: {start}", trust=trust).model.state_dict())


def _tensors(found: Any, start: str) -> Weights:
    """The tensors of a mapping, or of the mapping inside it.

    Raises:
        StartError: there are none, or some are infinite or NaN.
    """
    inner = [*(found[name] for name in _NESTED if isinstance(found, Mapping) and name in found), found]
    mappings = (candidate for candidate in inner if isinstance(candidate, Mapping))
    kept = ({name: value for name, value in m.items() if isinstance(value, Tensor)} for m in mappings)
    weights = next(filter(None, kept), None)
    if weights is None:
        held = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise StartError(f"start_from: {start} holds no tensors by name (it holds {held[:200] or 'nothing'})")
    if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        raise StartError(f"start_from: {start} holds infinite or NaN values in {', '.join(bad[:3])}")
    return weights


def _from_torchvision(name: str) -> Mapping[str, Any]:
    from torchvision.models import get_model_weights, get_weight, list_models

    if "." in name:
        weights = get_weight(name)
    elif name in list_models():
        weights = get_model_weights(name).DEFAULT
    else:
        raise ValueError(unknown("network of torchvision", name, list_models()))
    found: Mapping[str, Any] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return found


def _from_timm(name: str) -> Mapping[str, Any]:
    import timm

    return dict(timm.create_model(name, pretrained=True).state_dict())


def _from_transformers(name: str) -> Mapping[str, Any]:
    from transformers import AutoModel

    return dict(AutoModel.from_pretrained(name, use_safetensors=True).state_dict())


_PACKAGES: dict[str, Callable[[str], Mapping[str, Any]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "transformers": _from_transformers,
}


@contextmanager
def _explained(start: str) -> Iterator[None]:
    """Errors of another package as ours: a missing package, an unknown name, a download that fails.

    Raises:
        StartError: in place of any of them.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # building a network draws weights
            yield
    except ModuleNotFoundError as error:
        raise StartError(
            f"start_from: {start} needs the package {error.name!r}: pip install 'raycurv[pretrained]'"
        ) from error
    except StartError:
        raise
    except Exception as error:  # packages raise many kinds
        raise StartError(f"start_from: {start} cannot be loaded: {type(error).__name__}: {error}") from error
