"""The deep autoencoder of Hinton and Salakhutdinov (2006), which RED trains on MNIST."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from raycurv.models.layers import activation_layer


def autoencoder(
    input_shape: tuple[int, ...] = (1, 28, 28),
    widths: Sequence[int] = (1000, 500, 250, 30),
    activation: str = "elu",
) -> nn.Sequential:
    """784-1000-500-250-30-250-500-1000-784, for squared error between the outputs and the flattened inputs.

    The code is linear, as in the original. The outputs are linear too, so the squared error is convex in them, as
    CurveBall requires. RED (appendix B, Table 3) names only the activation and the loss.

    Args:
        input_shape: shape of one sample; inputs and outputs are flattened to (B, ∏ input_shape).
        widths: units of the encoder's layers, the code last; the decoder mirrors them.
        activation: activation between the layers: elu (RED's default), softplus (RED's figure 9), or another of the
            package.

    Raises:
        ValueError: a layer has no units, or there is no code.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths is {tuple(widths)}; every layer down to the code must have at least 1 unit")
    pixels = math.prod(input_shape)
    sizes = [pixels, *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for above, below in itertools.pairwise(sizes):
        layers += [nn.Linear(above, below), activation_layer(activation)]
    layers.pop()  # the code is linear
    for above, below in itertools.pairwise(sizes[::-1]):
        layers += [nn.Linear(above, below), activation_layer(activation)]
    layers.pop()
    return nn.Sequential(*layers)
