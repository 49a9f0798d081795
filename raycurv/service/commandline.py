"""Command lines out of dataclasses, the same for every job."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from raycurv.recipes import Overrides
from raycurv.service.cluster import Cluster
from raycurv.service.failures import reported
from raycurv.train.config import RunConfig

T = TypeVar("T")


def parse(job: type[T], arguments: Sequence[str] | None = None) -> T:
    """Read a dataclass from the command line; ``--help`` shows the texts under its fields, with units and defaults.

    Args:
        job: whose fields may be dataclasses themselves; all names are flags without prefixes.
        arguments: instead of those of the process.
    """
    import tyro  # only jobs need it

    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(job, args=arguments, config=config)


def variants(config: RunConfig, compare: Sequence[str]) -> list[RunConfig]:
    """The run, then the same one with each of the optimizers of `compare` at its defaults, on the same batches.

    Raises:
        ValueError: an optimizer is compared with itself.
    """
    if len({config.optimizer, *compare}) <= len(compare):
        given = " ".join(compare)
        raise ValueError(f"--compare {given} must name different optimizers, and not {config.optimizer!r}")
    others = [
        dataclasses.replace(config, optimizer=name, optimizer_settings={}, clip_gradient=None) for name in compare
    ]
    return [config, *others]


@contextlib.contextmanager
def job(cluster: Cluster | None = None) -> Iterator[None]:
    """What every job does around its work: modules of the working directory can be imported, errors become messages.

    Yields:
        Nothing.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with reported(cluster.runs if cluster else None):
        yield


__all__ = ["Overrides", "job", "parse", "variants"]
