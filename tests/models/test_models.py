import itertools

import pytest
import torch
from torch import nn

from raycurv import models

DIGITS, CIFAR, MNIST = (1, 8, 8), (3, 32, 32), (1, 28, 28)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


BASIC = (3 * 25 * 32 + 32) + (32 * 25 * 32 + 32) + (32 * 25 * 64 + 64) + (64 * 25 * 64 + 64) + (64 * 25 * 10 + 10)
COUNTS = {
    "mlp, CurveBall on MNIST": (
        lambda: models.mlp(input_shape=MNIST),
        784 * 128 + 128 + 128 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10,
    ),
    "mlp, SALERA M0": (lambda: models.mlp(input_shape=MNIST, widths=()), 7850),
    "mlp, SALERA M2b": (
        lambda: models.mlp(input_shape=MNIST, widths=(500, 300), activation="relu", batch_norm=True),
        784 * 500 + 2 * 500 + 500 * 300 + 2 * 300 + 300 * 10 + 10,
    ),
    "basic_cnn": (models.basic_cnn, BASIC),
    "basic_cnn, batch norm": (lambda: models.basic_cnn(batch_norm=True), BASIC + 32 + 32 + 64 + 64),
    "lenet, LLR": (models.lenet, (3 * 25 + 1) * 6 + (6 * 25 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10),
    "lenet, SALERA M4 on MNIST": (
        lambda: models.lenet(input_shape=MNIST, channels=(32, 64), widths=(128, 128)),
        (25 + 1) * 32 + (32 * 25 + 1) * 64 + (64 * 4 * 4 + 1) * 128 + 129 * 128 + 129 * 10,
    ),
    "vgg_f": (
        models.vgg_f,
        (3 * 121 + 1) * 64
        + (64 * 25 + 1) * 256
        + 3 * (256 * 9 + 1) * 256
        + (6 * 6 * 256 + 1) * 4096
        + 4097 * 4096
        + 4097 * 1000,
    ),
    "resnet18, small stem": (models.resnet18, 11_173_962),  # as in every CIFAR port with projection shortcuts
    "resnet18, large stem": (
        lambda: models.resnet18(num_classes=1000, input_shape=(3, 224, 224), stem="large"),
        11_689_512,
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_parameters_are_as_many_as_counted_by_hand(case):
    build, expected = COUNTS[case]
    with torch.device("meta"):
        assert count(build()) == expected


FORWARD = {
    "mlp": (models.mlp, DIGITS, {}),
    "mlp, batch norm": (models.mlp, CIFAR, {"batch_norm": True, "activation": "relu"}),
    "basic_cnn, digits": (models.basic_cnn, DIGITS, {}),
    "basic_cnn": (models.basic_cnn, CIFAR, {"batch_norm": True}),
    "basic_cnn, odd and narrow": (models.basic_cnn, (3, 17, 23), {"width": 0.25}),
    "lenet, digits": (models.lenet, DIGITS, {"padding": 2}),
    "lenet, M4b": (models.lenet, MNIST, {"channels": (32, 64), "widths": (128, 128), "batch_norm": True}),
    "vgg_f, small": (models.vgg_f, (3, 64, 64), {"width": 0.25}),
    "vgg_f, smallest": (models.vgg_f, (1, 39, 39), {"width": 0.25, "dropout": 0.0, "local_response_norm": False}),
    "resnet18, digits": (models.resnet18, DIGITS, {"dropout": 0.3}),
    "resnet18, large stem": (models.resnet18, (1, 64, 64), {"stem": "large"}),
    "random_cnn, digits": (models.random_cnn, DIGITS, {"seed": 3}),
}


@pytest.mark.parametrize("case", FORWARD)
def test_one_row_of_scores_per_sample_and_a_gradient_for_every_parameter(case):
    function, shape, settings = FORWARD[case]
    torch.manual_seed(0)
    model = function(num_classes=7, input_shape=shape, **settings)
    outputs = model(torch.randn(4, *shape))
    assert outputs.shape == (4, 7)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("case", FORWARD)
def test_the_seed_decides_the_weights(case):
    function, shape, settings = FORWARD[case]
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(
            torch.cat([p.flatten() for p in function(num_classes=7, input_shape=shape, **settings).parameters()])
        )
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_vgg_f_gives_its_classifier_six_by_six_maps_at_224_pixels():
    with torch.device("meta"):
        model = models.vgg_f()
    shapes = [module.in_features for module in model if isinstance(module, nn.Linear)]
    assert shapes == [6 * 6 * 256, 4096, 4096]


def test_the_fifty_random_networks_are_fixed_by_their_seeds_and_as_the_paper_describes_them():
    drawn = [models.draw_random_cnn(seed) for seed in range(50)]
    assert drawn == [models.draw_random_cnn(seed) for seed in range(50)]
    assert len(set(drawn)) == 50
    depths = {len(spec.channels) + 1 for spec in drawn}
    assert depths == set(range(3, 11))
    assert set(itertools.chain.from_iterable(spec.channels for spec in drawn)) == {32, 64, 128, 256}
    assert 0.4 < sum(sum(s.pooled) for s in drawn) / sum(len(s.pooled) for s in drawn) < 0.6


def test_drawing_a_random_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    models.draw_random_cnn(11)
    assert torch.equal(before, torch.get_rng_state())


def test_the_deepest_random_network_with_all_its_poolings_takes_small_images():
    model = models.RandomCnn(channels=(32,) * 9, pooled=(True,) * 9).build(10, DIGITS)
    assert model.eval()(torch.randn(2, *DIGITS)).shape == (2, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.mlp(widths=(0,)), "widths"),
        (lambda: models.mlp(activation="step"), "activation is 'step'; it must be one of"),
        (lambda: models.mlp(num_classes=0), "num_classes is 0"),
        (lambda: models.basic_cnn(width=0.0), "width is 0.0"),
        (lambda: models.basic_cnn(input_shape=(64,)), "takes images"),
        (lambda: models.lenet(input_shape=DIGITS), "padding=2"),
        (lambda: models.vgg_f(input_shape=CIFAR), "at least 39"),
        (lambda: models.vgg_f(dropout=1.0), "dropout is 1.0"),
        (lambda: models.vgg_f(width=0.0), "width is 0.0"),
        (lambda: models.resnet18(dropout=-1.0), "dropout is -1.0"),
        (lambda: models.resnet18(stem="tiny"), "stem is 'tiny'"),
        (lambda: models.RandomCnn(channels=(32,), pooled=()), "pooled"),
        (lambda: models.RandomCnn(channels=(0,), pooled=(True,)), "at least 1 channel"),
    ],
)
def test_an_impossible_network_is_refused_with_what_to_change(build, message):
    with pytest.raises(ValueError, match=message):
        build()
