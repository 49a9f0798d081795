"""The papers' ablations: one recipe, or a few, over settings of an optimizer and fields of the run.

A study (:mod:`raycurv.recipes.study`) is data; its ``runs`` are the configurations. ``jobs/train.py --study NAME``
trains them one after the other, ``--list`` shows them below the recipes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from raycurv.recipes import registry
from raycurv.recipes.study import Axes, Study

RED_BOTH: Mapping[str, Axes] = {"red_sgd": {}, "red_rmsprop": {}}
RED_SMALL = ("red_mnist_lenet", "red_cifar10_vgg11", "red_mnist_autoencoder")
RED_ALL = ("red_mnist_lenet", "red_cifar10_vgg11", "red_cifar100_vgg19", "red_mnist_autoencoder")
_ELL_ETA: Axes = {"scale": (0.5, 1.0, 2.0), "decay": (1.0, 0.5, 0.25)}  # ℓ and η; the figure shows some of them
_NESTED: Axes = {"portion": (0.1, 0.2, 0.33, 0.5, 1.0), "damping": (0.1, 0.2, 0.33, 0.5)}  # p and γ
_BATCHES: Axes = {"batch_size": (64, 128, 256, 512)}
_RATES = (1e-1, 1e-2, 1e-3)
_MILESTONES: Axes = {"learning_rate": (0.1,), "schedule": ("multi_step",)}

STUDIES = {
    study.name: study
    for study in (
        Study("red_main", "RED", "Fig. 1", RED_ALL, RED_BOTH, seeds=3),
        Study(
            "red_scale_decay", "RED", "Fig. 2, 10", ("red_cifar10_vgg11", "red_mnist_autoencoder"),
            {"red_sgd": _ELL_ETA, "red_rmsprop": _ELL_ETA},
        ),
        Study(
            "red_annealing", "RED", "Fig. 3", ("red_cifar10_vgg11", "red_cifar100_vgg19"),
            {**RED_BOTH, "ran_sgd": {}, "ran_rmsprop": {}},
        ),
        Study("red_beta3", "RED", "Fig. 4", ("red_cifar10_vgg11",), {"red_sgd": {"beta3": (0.0, 0.5, 0.9, 0.99)}}),
        Study(
            "red_momentum", "RED", "Fig. 6, 7", RED_ALL,
            {"red_momentum": {"scale": (1.0, 0.1)}, "red_adam": {"scale": (1.0, 0.1)}},
        ),
        Study("red_l2", "RED", "Fig. 8", RED_SMALL, RED_BOTH, {"l2": (1e-7, 1e-4)}, seeds=3),
        Study(
            "red_activation", "RED", "Fig. 9",
            ("red_cifar10_vgg11_elu", "red_cifar100_vgg19_elu", "red_mnist_autoencoder_softplus"), RED_BOTH, seeds=3,
        ),
        Study(
            "red_activation_l2", "RED", "Fig. 9", ("red_mnist_autoencoder_softplus",), RED_BOTH, {"l2": (1e-4,)},
            seeds=3,
        ),
        Study(
            "red_step_tuned", "RED", "Fig. 11, 12", ("red_cifar10_vgg11", "red_mnist_autoencoder"),
            {"step_tuned_sgd": {}, "red_sgd": {"decay": (0.5, 0.05)}},
        ),
        Study(
            "curveball_fixed_momentum", "CurveBall", "Fig. 8", ("cifar10_basic_cnn", "cifar10_basic_cnn_bn"),
            {"curveball": {"momentum": (1.0,)}},
        ),
        Study(
            "curveball_fixed_damping", "CurveBall", "Table 2",
            ("cifar10_basic_cnn", "cifar10_basic_cnn_bn", "cifar10_resnet18", "imagenet100_curveball"),
            {"curveball": {"damping_interval": (5, None)}},
        ),
        Study("ntlr_portion_damping", "NTLR", "Fig. 1", ("ntlr_mnist_mlp",), {"ntlr_sgd": _NESTED}),
        Study(
            "ntlr_initial_rates", "NTLR", "Fig. 2", ("ntlr_mnist_mlp",),
            {"ntlr_sgd": {"learning_rate": tuple(10.0**-i for i in range(1, 10))}, "sgd": {"learning_rate": (0.1,)}},
        ),
        Study(
            "ntlr_search", "NTLR", "section 3", ("ntlr_mnist_mlp",),
            {"ntlr_sgd": {**_NESTED, "learning_rate": tuple(10.0**-i for i in range(1, 6))}}, _BATCHES,
        ),
        Study(
            "ntlr_hypergradient", "NTLR", "Table 1", ("ntlr_cifar100_wide_resnet",),
            {
                "hypergradient_additive": {"learning_rate": _RATES, "meta_rate": (1e-1, 1e-2)},
                "hypergradient_multiplicative": {"learning_rate": _RATES, "meta_rate": (1e-4, 1e-5)},
                "ntlr_sgd": {"learning_rate": _RATES},
            },
            _BATCHES,
        ),
        Study(
            "ntlr_optimizers", "NTLR", "Fig. 3", ("ntlr_cifar100_wide_resnet",),
            {"ntlr_sgd": {}, "sgd": _MILESTONES, "adam": {}, "sps": {}, "sls": {}},
        ),
        Study(
            "ntlr_imagenet", "NTLR", "Fig. 4", ("ntlr_imagenet_resnet50",),
            {"ntlr_sgd": {}, "sgd": _MILESTONES, "adam": {}, "sps": {}},
        ),
        Study(
            "ntlr_translation", "NTLR", "Fig. 5", ("ntlr_multi30k_transformer",),
            {"ntlr_sgd": {}, "ntlr_adam": {}, "sgd": {}, "adam": {}},
        ),
        Study(
            "ntlr_wide_resnets", "NTLR", "section 3", ("ntlr_cifar10_wide_resnet", "ntlr_cifar100_wide_resnet"),
            {"ntlr_sgd": {"learning_rate": _RATES}}, _BATCHES,
        ),
        Study(
            "salera_main", "SALERA", "Table 1",
            tuple(f"salera_{data}_{model}" for data in ("mnist", "cifar10") for model in ("m0", "m2", "m2b", "m4b")),
            {"ag_adam": {}, "alera": {}, "salera": {}, "spalera": {}}, seeds=5,
        ),
        Study(
            "llr_orders", "LLR", "Fig. 1-10",
            ("llr_boston", "llr_mnist_logistic", "llr_cifar10_lenet", "llr_cifar10_resnet18", "llr_cifar100_resnet18"),
            {"sgd": {}, "llr_first_order": {}, "llr_second_order": {}},
        ),
        Study(
            "llr_initial_rates", "LLR", "Fig. 6, 8, 11", ("llr_cifar10_resnet18",),
            {"llr_second_order": {"learning_rate": (0.1, 0.05, 0.01)}, "sgd": {"learning_rate": (0.1, 0.05, 0.01)}},
        ),
        Study(
            "llr_momentum", "LLR", "Fig. 12", ("llr_cifar10_resnet18",),
            {"llr_second_order": {"learning_rate": (0.1,), "momentum": (0.9,)}, "sgd": {"learning_rate": (0.1,)}},
        ),
    )
}  # fmt: skip


def get(name: str) -> Study:
    """The study called `name`.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, 3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"there is no study {name!r}; {hint}all of them: {', '.join(STUDIES)}")
    return STUDIES[name]


def listing() -> str:
    """All studies as a table, one a line."""
    return registry.aligned(
        ("study", "paper", "shows", "runs", "optimizers"),
        [(s.name, s.paper, s.shows, str(len(s)), " ".join(s.optimizers)) for s in STUDIES.values()],
    )
