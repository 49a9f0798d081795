"""Command lines out of dataclasses, the same for every job."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from raycurv.recipes import Overrides
from raycurv.service.cluster import Cluster
from raycurv.service.errors import reported
from raycurv.train.configuration import RunConfig

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


def run(job: type[T], main: Callable[[T], None]) -> None:
    """What every job does around its work: modules of the working directory can be imported, errors become messages.

    Args:
        job: dataclass to read from the command line.
        main: the work.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    parsed = parse(job)
    cluster = getattr(parsed, "cluster", parsed)
    with reported(cluster.runs if isinstance(cluster, Cluster) else None):
        main(parsed)


__all__ = ["Overrides", "parse", "run", "variants"]
