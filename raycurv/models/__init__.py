"""The papers' networks, one family a file: plain functions that return an ``nn.Module``.

Every function takes ``num_classes`` and ``input_shape`` (of one sample, such as ``(3, 32, 32)``) by name, so that a run
can fill them from its data. Weights are drawn from torch's global generator: seed it first.
"""

from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.random_cnn import RandomCnn, draw_random_cnn, random_cnn
from raycurv.models.resnet import resnet18
from raycurv.models.vgg_f import vgg_f

__all__ = ["RandomCnn", "basic_cnn", "draw_random_cnn", "lenet", "mlp", "random_cnn", "resnet18", "vgg_f"]
