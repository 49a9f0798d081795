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
    "mlp, RED's dense LeNet": (lambda: models.mlp(input_shape=MNIST, widths=(300, 100)), 785 * 300 + 301 * 100 + 1010),
    "SALERA M0 on CIFAR-10": (lambda: models.m0(input_shape=CIFAR), 3073 * 10),
    "SALERA M2 on MNIST": (lambda: models.m2(input_shape=MNIST), 785 * 500 + 501 * 300 + 301 * 10),
    "SALERA M2b on CIFAR-10": (
        lambda: models.m2b(input_shape=CIFAR),
        3072 * 1500 + 2 * 1500 + 1500 * 900 + 2 * 900 + 901 * 10,
    ),
    "SALERA M4b on MNIST": (
        lambda: models.m4b(input_shape=MNIST),
        (25 + 2) * 32 + (32 * 25 + 2) * 64 + (64 * 4 * 4 + 2) * 128 + 130 * 128 + 129 * 10,
    ),
    "SALERA M4b on CIFAR-10": (
        lambda: models.m4b(input_shape=CIFAR),
        (75 + 2) * 32 + (32 * 25 + 2) * 64 + (64 * 5 * 5 + 2) * 384 + 386 * 384 + 385 * 10,
    ),
    "autoencoder": (
        models.autoencoder,
        785 * 1000 + 1001 * 500 + 501 * 250 + 251 * 30 + 31 * 250 + 251 * 500 + 501 * 1000 + 1001 * 784,
    ),
    "vgg11, batch norm": (models.vgg, 9_217_728 + 2 * 2_752 + 513 * 10),
    "vgg19": (lambda: models.vgg(num_classes=100, depth=19, batch_norm=False), 20_024_384 + 513 * 100),
    "wide_resnet 16-4": (models.wide_resnet, 2_748_890),  # the original's 2.7 million
    "wide_resnet 28-10": (lambda: models.wide_resnet(100, depth=28, widen=10), 36_536_884),  # the original's 36.5
    "resnet50": (models.resnet50, 25_557_032),  # torchvision's
    "transformer, one layer": (
        lambda: models.transformer(11, 13, size=16, heads=2, layers=1, hidden=8),
        (11 + 13) * 16 + 3 * 4 * 17 * 16 + 2 * (17 * 8 + 9 * 16) + (2 + 3 + 2) * 2 * 16 + 17 * 11,
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
    "airbench": (
        models.airbench,
        13 * 24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 4 * (64 + 256 + 256) + 256 * 10,
    ),
    "vision_transformer": (
        models.vision_transformer,
        (48 + 1) * 64 + 64 * 64 + 4 * (4 * 65 * 64 + 65 * 128 + 129 * 64 + 4 * 64) + 2 * 64 + 65 * 10,
    ),
    "gpt": (
        lambda: models.gpt(1000, (17,)),
        1017 * 64 + 2 * (4 * 65 * 64 + 65 * 256 + 257 * 64 + 4 * 64) + 2 * 64 + 64 * 1000,
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
    "lenet, dropout": (models.lenet, MNIST, {"dropout": 0.3, "batch_norm": True}),
    "vgg_f, small": (models.vgg_f, (3, 64, 64), {"width": 0.25}),
    "vgg_f, smallest": (models.vgg_f, (1, 39, 39), {"width": 0.25, "dropout": 0.0, "local_response_norm": False}),
    "resnet18, digits": (models.resnet18, DIGITS, {"dropout": 0.3}),
    "resnet18, large stem": (models.resnet18, (1, 64, 64), {"stem": "large"}),
    "resnet18, narrow": (models.resnet18, (1, 64, 64), {"stem": "large", "width": 0.1}),
    "resnet50, narrow": (models.resnet50, (3, 32, 32), {"width": 0.0625}),
    "vgg19, narrow": (models.vgg, CIFAR, {"depth": 19, "width": 0.05, "activation": "elu"}),
    "wide_resnet, dropout": (models.wide_resnet, (1, 9, 9), {"depth": 10, "widen": 2, "dropout": 0.3, "width": 0.5}),
    "m0": (models.m0, MNIST, {}),
    "m2, narrow": (models.m2, CIFAR, {"width": 0.01}),
    "m2b": (models.m2b, MNIST, {"width": 0.1}),
    "m4b": (models.m4b, CIFAR, {"width": 0.1}),
    "vision_transformer": (models.vision_transformer, (1, 8, 12), {"layers": 1, "dropout": 0.1}),
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


def test_resnet18_has_one_layer_of_dropout_or_the_two_of_llr():
    def found(**settings):
        network = models.resnet18(dropout=0.5, width=0.1, **settings)
        assert network.load_state_dict(models.resnet18(dropout=0.5, width=0.1).state_dict())
        return [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]

    assert found() == ["fc.0"]
    assert found(dropout_layers=2) == ["layer3.2", "fc.0"]
    assert models.resnet18(width=0.1, dropout_layers=2).layer3[-1]._get_name() == "BasicBlock"
    with pytest.raises(ValueError, match="dropout_layers is 3; it must be 1 or 2"):
        models.resnet18(dropout_layers=3)


def test_sizes_that_make_no_transformer_are_refused():
    with pytest.raises(ValueError, match="patch is 5; it must divide the image of 32 × 32"):
        models.vision_transformer(patch=5)
    with pytest.raises(ValueError, match="size is 10; it must be a multiple of the 4 heads"):
        models.gpt(100, size=10)
    with pytest.raises(ValueError, match="gpt takes texts"):
        models.gpt(100, (3, 32, 32))


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


def test_the_autoencoder_gives_its_input_back_in_shape_through_a_linear_code():
    model = models.autoencoder(input_shape=DIGITS, widths=(20, 5), activation="softplus")
    assert model(torch.randn(3, *DIGITS)).shape == (3, 64)
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Flatten", "Linear", "Softplus", "Linear", "Linear", "Softplus", "Linear"]


def test_softplus_of_red_has_its_sharpness():
    assert models.vgg(width=0.05)[2].beta == 5.0


def translator(**settings) -> nn.Module:
    torch.manual_seed(0)
    return models.transformer(11, 13, size=16, heads=2, layers=2, hidden=8, **settings).eval()


def test_the_transformer_reads_no_word_ahead_and_no_padding():
    model = translator()
    words = torch.randint(1, 11, (4, 2, 6), generator=torch.Generator().manual_seed(1))
    words[:, 0, 4:] = 0
    scores = model(words)
    assert scores.shape == (4, 6, 11)
    later = words.clone()
    later[:, 1, 3:] = 9
    torch.testing.assert_close(model(later)[:, :3], scores[:, :3])
    assert not torch.allclose(model(later)[:, 3:], scores[:, 3:])
    torch.testing.assert_close(model((words[:, 0, :4], words[:, 1])), scores)  # less padding, and as a pair


def test_the_transformer_gives_finite_scores_for_nothing_but_padding():
    assert translator()(torch.zeros(1, 2, 3, dtype=torch.int64)).isfinite().all()


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
        (lambda: models.resnet50(width=0.0), "width is 0.0"),
        (lambda: models.vgg(depth=12), "depth is 12"),
        (lambda: models.vgg(input_shape=DIGITS), "at least 32"),
        (lambda: models.wide_resnet(depth=12), "depth is 12"),
        (lambda: models.wide_resnet(widen=0), "widen is 0"),
        (lambda: models.autoencoder(widths=()), "widths"),
        (lambda: models.m2(input_shape=(64,)), "takes images"),
        (lambda: models.transformer(11, 13, size=20), "multiple of the 8 heads"),
        (lambda: models.transformer(11, 0), "source_words is 0"),
        (lambda: models.resnet18(stem="tiny"), "stem is 'tiny'"),
        (lambda: models.RandomCnn(channels=(32,), pooled=()), "pooled"),
        (lambda: models.RandomCnn(channels=(0,), pooled=(True,)), "at least 1 channel"),
    ],
)
def test_an_impossible_network_is_refused_with_what_to_change(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_sparse_initialisation_gives_each_unit_fifteen_connections():
    torch.manual_seed(0)
    network = models.mlp(input_shape=MNIST, widths=(128, 64), initialisation="sparse")
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer, deviation, bias in zip(layers, (0.5, 0.25, 0.5), (0.5, 0.5, 0.0), strict=True):
        assert set((layer.weight != 0).sum(1).tolist()) == {15}
        weights = layer.weight.detach()[layer.weight != 0]
        assert float(weights.std()) == pytest.approx(deviation, rel=0.2)
        assert (layer.bias == bias).all()


def test_sparse_initialisation_of_other_units_is_of_unit_variance_without_bias():
    torch.manual_seed(0)
    network = models.mlp(input_shape=(1, 3, 3), widths=(500,), activation="relu", initialisation="sparse")
    first, last = (layer for layer in network if isinstance(layer, nn.Linear))
    assert (first.weight != 0).all()  # nine inputs only
    assert float(first.weight.detach().std()) == pytest.approx(1, rel=0.05)
    assert set((last.weight != 0).sum(1).tolist()) == {15}
    assert not first.bias.any()
    with pytest.raises(ValueError, match="initialisation"):
        models.mlp(initialisation="zeros")
