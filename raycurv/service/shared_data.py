"""One decoded copy of a data set per node, in Ray's object store, which all processes of the node map."""

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
    """A reference to the decoded data; what it refers to is None where they cannot be held so."""
    return _decode.remote(component)
