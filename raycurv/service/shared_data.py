"""One decoded copy of a data set per node, in Ray's object store, mapped by all processes of the node."""

from __future__ import annotations

from typing import Any

import ray

from raycurv.data import Data
from raycurv.data.decoded_images import decoded
from raycurv.train.configuration import Component


@ray.remote(num_cpus=1, max_retries=2)
def _decode(component: Component) -> Data | None:
    return decoded(component.build())


def share(component: Component) -> Any:
    """Reference to the decoded data, or to None where the data cannot be decoded into memory."""
    return _decode.remote(component)
