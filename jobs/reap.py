"""Close MLflow runs whose driver was killed, and deliver what launches could not while MLflow was away."""

from __future__ import annotations

from raycurv.service import Cluster, commandline
from raycurv.tracking.client import Tracking


def main(cluster: Cluster) -> None:
    """Reap and deliver."""
    tracking = Tracking(cluster, print)
    count = tracking.send_unsent()
    names = tracking.reap()
    tracking.finish()
    print(
        f"delivered {count} things that were waiting; closed {len(names)} runs as KILLED"
        + "".join(f"\n  {n}" for n in names)
    )


if __name__ == "__main__":
    commandline.run(Cluster, main)
