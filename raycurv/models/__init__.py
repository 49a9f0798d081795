"""Networks of the papers and of the benchmark suite, one family per file: plain functions that return an ``nn.Module``.

Every function takes the properties of the data by keyword, and a run fills them in. ``num_classes`` is the number of
classes, if the targets are classes; ``input_shape`` is the shape of one sample, such as ``(3, 32, 32)``. Weights are
drawn from torch's global generator: seed it first.
"""

from raycurv.models.airbench import airbench
from raycurv.models.autoencoder import autoencoder
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.gpt import gpt
from raycurv.models.lenet import lenet
from raycurv.models.mlp import mlp
from raycurv.models.random_cnn import RandomCnn, draw_random_cnn, random_cnn
from raycurv.models.resnet import resnet18, resnet50
from raycurv.models.salera_networks import m0, m2, m2b, m4b
from raycurv.models.transformer import transformer
from raycurv.models.vgg import vgg
from raycurv.models.vgg_f import vgg_f
from raycurv.models.vision_transformer import vision_transformer
from raycurv.models.wide_resnet import wide_resnet

__all__ = [
    "RandomCnn",
    "airbench",
    "autoencoder",
    "basic_cnn",
    "draw_random_cnn",
    "gpt",
    "lenet",
    "m0",
    "m2",
    "m2b",
    "m4b",
    "mlp",
    "random_cnn",
    "resnet18",
    "resnet50",
    "transformer",
    "vgg",
    "vgg_f",
    "vision_transformer",
    "wide_resnet",
]
