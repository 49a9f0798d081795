"""Optimizers as classes: signatures, texts, wrong arguments, torch's schedulers."""

import copy
import inspect
import re
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import raycurv
from raycurv import optim
from tests.cases import BY_NAME

CASE = BY_NAME["mlp"]
HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=120)
CLASSES = [value for name in optim.__all__ if inspect.isclass(value := getattr(optim, name))]
METHODS = [c for c in CLASSES if "model_or_params" in inspect.signature(c).parameters]
BY_CLASS = {
    "auto": (optim.Auto, {}),
    "red_adam_free": (optim.AveragedRED, {}),
    "red_momentum_free": (optim.AveragedRED, {"beta2": None}),
    "red_sgd_free": (optim.AveragedRED, {"beta1": 0.0, "beta2": None}),
    "curveball": (optim.CurveBall, {}),
    "curveball_free": (optim.CurveBall, {"damping": 1.0, "damping_factor": 0.95}),
    "red_sgd": (optim.RED, {}),
    "red_rmsprop": (optim.RED, {"beta2": 0.999}),
    "red_momentum": (optim.RED, {"beta1": 0.9}),
    "red_adam": (optim.RED, {"beta1": 0.9, "beta2": 0.999}),
    "ran_sgd": (optim.RAn, {}),
    "ran_rmsprop": (optim.RAn, {"beta2": 0.999}),
    "ntlr_sgd": (optim.NTLR, {}),
    "ntlr_adam": (optim.NTLRAdam, {}),
    "hypergradient_additive": (optim.Hypergradient, {"rule": "additive"}),
    "hypergradient_multiplicative": (optim.Hypergradient, {"rule": "multiplicative"}),
    "alera": (optim.ALERA, {}),
    "salera": (optim.SALERA, {}),
    "spalera": (optim.SPALERA, {}),
    "ag_adam": (optim.AgAdam, {}),
    "llr_first_order": (optim.LLRFirstOrder, {}),
    "llr_second_order": (optim.LLRSecondOrder, {}),
    "bfgs": (optim.BFGS, {}),
    "hessian_free": (optim.HessianFree, {}),
    "kfac": (optim.KFAC, {}),
    "levenberg_marquardt": (optim.LevenbergMarquardt, {}),
    "newton": (optim.Newton, {}),
    "sls": (optim.SLS, {}),
    "sps": (optim.SPS, {}),
    "step_tuned_sgd": (optim.StepTunedSGD, {}),
    "schedule_free_plus": (optim.ScheduleFreePlus, {}),
    "schedule_free_normuon": (optim.ScheduleFreeNorMuon, {}),
    "cdat_sgd": (optim.CDAT, {}),
    "cdat_momentum": (optim.CDAT, {"beta1": 0.9}),
    "cdat_adam": (optim.CDAT, {"beta1": 0.9, "beta2": 0.999}),
    "gen_sgd": (optim.GeN, {}),
    "gen_momentum": (optim.GeN, {"beta1": 0.9}),
    "gen_adam": (optim.GeN, {"beta1": 0.9, "beta2": 0.999, "learning_rate": 1e-3}),
}


def losses(optimizer, model, steps=6):
    objective = raycurv.Objective(model, CASE.loss)
    rows = [slice(i % 3, None, 2) for i in range(steps)]
    return [float(optimizer.step(objective.batch(CASE.inputs[r], CASE.targets[r])).loss) for r in rows]


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_class_is_the_optimizer_of_that_name(name):
    build, settings = BY_CLASS[name]
    first, second = CASE.model(), CASE.model()
    named, direct = optim.create(name, first, horizon=HORIZON), build(second, horizon=HORIZON, **settings)
    assert type(named) is build
    assert losses(named, first) == losses(direct, second)


def test_every_class_of_a_method_stands_beside_a_name():
    assert {build for build, _ in BY_CLASS.values()} == set(METHODS)
    built = {type(optim.create(name, CASE.model(), horizon=HORIZON)) for name in optim.names()}
    assert built <= set(CLASSES)


@pytest.mark.parametrize("build", CLASSES, ids=lambda c: c.__name__)
def test_signatures_and_docstrings_name_every_argument(build):
    parameters = inspect.signature(build).parameters
    if build is optim.StepOptimizer:  # torch's own signature
        return
    assert not {p.kind for p in parameters.values()} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    assert [name for name in parameters if f"{name}: " not in build.__doc__] == []


@pytest.mark.parametrize("name", BY_CLASS)
def test_the_text_of_an_optimizer_shows_its_settings(name):
    optimizer = optim.create(name, CASE.model(), horizon=HORIZON)
    assert repr(optimizer).startswith(f"{type(optimizer).__name__}(")
    for setting in optim.settings(name):
        if setting != "start" or type(optimizer) is optim.Auto:
            assert f"{setting}={getattr(optimizer, setting)!r}" in repr(optimizer)


def test_the_text_of_a_first_order_optimizer_shows_the_one_of_torch():
    text = repr(optim.create("momentum", CASE.model(), learning_rate=0.5, clip_gradient=2.0))
    assert text.startswith("FirstOrder(SGD(lr=0.5, momentum=0.9, ")
    assert text.endswith("clip_gradient=2.0)")
    assert repr(optim.Auto(CASE.model())) == "Auto(beta1=0.8, beta2=0.999, start=1.0)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("adam", r"it is str; an optimizer by name is raycurv\.optim\.create"),
        (DataLoader(TensorDataset(torch.zeros(2, 3))), "it is DataLoader; its batches go to step"),
        (torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), "it is SGD; raycurv.optim.FirstOrder"),
        (raycurv.Objective(nn.Linear(1, 1), "cross_entropy"), "it is Objective; give its model"),
        (torch.zeros(3), "it is Tensor; a single parameter"),
        (nn.Linear(1, 1).state_dict(), "it is OrderedDict"),
        (nn.Linear, "it is type"),
        (None, "it is NoneType"),
        ([1.0, 2.0], "an iterable with an entry of type float"),
    ],
)
@pytest.mark.parametrize("build", [*METHODS, lambda m: optim.create("adam", m)])
def test_anything_but_parameters_is_refused_with_what_was_expected(build, given, message):
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, an iterable of its parameters.*" + message):
        build(given)


@pytest.mark.parametrize("build", METHODS)
def test_no_parameters_are_refused_with_what_was_expected(build):
    for empty in ([], nn.ReLU(), iter(())):
        with pytest.raises(ValueError, match=r"no trainable parameter.*give a torch\.nn\.Module"):
            build(empty)


@pytest.mark.parametrize("given", [nn.Linear(1, 1), "sgd", optim.CurveBall(nn.Linear(1, 1))])
def test_a_wrapper_refuses_anything_but_an_optimizer_of_torch(given):
    with pytest.raises(TypeError, match=rf"such as torch\.optim\.SGD.*; it is {type(given).__name__}"):
        optim.FirstOrder(given)


SCHEDULED = {
    "sgd": 0.01,
    "momentum": 0.01,
    "nesterov": 0.01,
    "adam": 1e-3,
    "rmsprop": 1e-3,
    "rmsprop_bias_corrected": 1e-3,
    "adagrad": 0.01,
    "adadelta": 1.0,
    "kfac": 0.1,
    "step_tuned_sgd": 0.1,
    "ntlr_sgd": 0.01,
    "ntlr_adam": 1e-3,
    "hypergradient_additive": 0.01,
    "hypergradient_multiplicative": 0.01,
}
OWN_RATE = sorted(set(BY_CLASS) - set(SCHEDULED) | {"alera_free", "llr_free", "ntlr_sgd_free", "salera_free"})


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedulers_of_torch_change_a_rate_that_is_set(name):
    model = CASE.model()
    optimizer = optim.create(name, model)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    batch = raycurv.Objective(model, CASE.loss).batch(CASE.inputs, CASE.targets)
    first = optimizer.step(batch)
    scheduler.step()
    assert float(first.scalars["learning_rate"]) == pytest.approx(SCHEDULED[name])
    report = optimizer.step(batch)
    expected = SCHEDULED[name] / 2
    if name == "step_tuned_sgd":  # has factors of its own beside the rate
        expected *= float(report.scalars["factor"]) / 2 ** (0.5 + 0.001)
    assert float(report.scalars["learning_rate"]) == pytest.approx(expected)


SCHEDULERS = [
    lambda o: ExponentialLR(o, 0.9),
    lambda o: OneCycleLR(o, max_lr=0.1, total_steps=10, cycle_momentum=False),
    ReduceLROnPlateau,
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", OWN_RATE)
def test_schedulers_of_torch_are_refused_where_the_method_sets_the_rate(name, scheduler):
    model = CASE.model()
    optimizer = optim.create(name, model, horizon=HORIZON)
    with pytest.raises(TypeError, match="it sets its learning rate itself"):
        scheduler(optimizer)
    assert losses(optimizer, model) == losses(optim.create(name, other := CASE.model(), horizon=HORIZON), other)


def test_schedulers_are_still_refused_after_a_copy_and_a_loaded_state():
    optimizer = optim.create("curveball", model := CASE.model())
    losses(optimizer, model, 1)
    loaded = optim.create("curveball", CASE.model())
    loaded.load_state_dict(optimizer.state_dict())
    for other in (loaded, copy.deepcopy(optimizer)):
        with pytest.raises(TypeError, match="it sets its learning rate itself"):
            StepLR(other, 1)


@pytest.mark.parametrize("name", ["kfac", "step_tuned_sgd"])
def test_states_saved_before_the_rate_stood_in_the_group_still_load(name):
    first, second = CASE.model(), CASE.model()
    optimizer, other = optim.create(name, first), optim.create(name, second)
    losses(optimizer, first, 3)
    state = optimizer.state_dict()
    del state["param_groups"][0]["lr"]
    other.load_state_dict(state)
    second.load_state_dict(first.state_dict())
    assert losses(optimizer, first) == losses(other, second)


OTHER_SETTINGS = {
    "red_adam": ({"beta3": 0.5, "decay": 0.25}, r"beta3 \(stored 0.9, now 0.5\).*decay|decay.*beta3"),
    "ran_sgd": (
        {"scales": (1.0, 0.5, 3.0)},
        r"scales \(stored \(1.0, 0.5, 2.0\), now \(1.0, 0.5, 3.0\)\); the values of now",
    ),
    "curveball": (
        {"damping_factor": 0.95},
        r"CurveBall: .*damping_factor \(stored 0.999, now 0.95\); the values of now",
    ),
    "salera": ({"gain": 1e-5}, r"gain \(stored 3e-06, now 1e-05\); the values of now"),
    "llr_second_order": ({"learning_rate": 0.5}, r"learning_rate \(stored .*, now 0.5\); the values of now"),
    "ntlr_sgd": ({"learning_rate": 0.5}, r"lr \(stored .*, now 0.5\); the stored values"),
    "kfac": ({"learning_rate": 0.5}, r"KFAC: .*lr \(stored 0.1, now 0.5\); the stored values"),
    "sps": ({"scale": 0.25}, r"scale \(stored 0.5, now 0.25\); the values of now"),
    "momentum": ({"momentum": 0.5}, r"momentum \(stored 0.9, now 0.5\); the stored values apply"),
    "adam": ({"beta2": 0.9, "clip_gradient": 1.0}, r"clip_gradient \(stored None, now 1.0\); the values of now"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_state_saved_with_other_settings_is_loaded_with_a_warning_that_names_them(name):
    settings, message = OTHER_SETTINGS[name]
    optimizer = optim.create(name, model := CASE.model(), horizon=HORIZON)
    losses(optimizer, model, 3)
    other = optim.create(name, CASE.model(), horizon=HORIZON, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_state_dict(optimizer.state_dict())
    found = [str(warning.message) for warning in caught if "other settings" in str(warning.message)]
    assert re.search(message, "\n".join(found))


@pytest.mark.parametrize("name", optim.names())
def test_a_state_of_the_same_settings_or_without_any_is_loaded_silently(name):
    optimizer = optim.create(name, model := CASE.model(), horizon=HORIZON)
    losses(optimizer, model, 12)
    state = optimizer.state_dict()
    for saved in (state, {key: value for key, value in state.items() if key != "settings"}):
        other = optim.create(name, CASE.model(), horizon=HORIZON)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.load_state_dict(copy.deepcopy(saved))
