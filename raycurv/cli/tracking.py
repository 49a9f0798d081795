"""``raycurv tracking``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raycurv.service.cluster import Cluster


@dataclass(frozen=True)
class Reap:
    """Close MLflow runs whose driver was killed, and deliver what launches could not while MLflow was away."""

    SHOWN: ClassVar = ("runs", "tracking_uri", "experiment")
    EXAMPLE: ClassVar = "raycurv tracking reap --experiment raycurv"
    LOADS: ClassVar = "MLflow"

    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Close and deliver."""
        from raycurv.tracking.client import Tracking

        tracking = Tracking(self.cluster, print)
        count = tracking.send_unsent()
        names = tracking.close_abandoned()
        tracking.finish()
        print(
            f"delivered {count} messages that were waiting; closed {len(names)} runs as KILLED"
            + "".join(f"\n  {n}" for n in names)
        )
