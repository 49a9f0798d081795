"""Torch's loss modules: value and gradient of the same batch, second derivatives against float64 differences."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycurv import Objective
from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.objective.losses import Loss
from tests.objective import distributed

SAMPLES, CLASSES = 7, 5
GENERATOR = torch.Generator().manual_seed(0)


def real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def labels(*shape: int, ignored: int | None = None) -> Tensor:
    found = torch.randint(CLASSES, shape, generator=GENERATOR)
    if ignored is not None:
        found[1] = ignored  # one sample has no counted position
        found.view(-1)[-1] = ignored
    return found


FLAT, MAPS = (SAMPLES, CLASSES), (SAMPLES, CLASSES, 2, 3)
PROBABILITIES, MAP_PROBABILITIES = real(*FLAT).softmax(1), real(*MAPS).softmax(1)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25])
SIGNS = real(*FLAT).sign()
BITS = (SIGNS + 1) / 2

ELEMENTWISE = {
    "mse": (nn.MSELoss(), FLAT, real(*FLAT)),
    "mse-maps": (nn.MSELoss(), MAPS, real(*MAPS)),
    "mse-scalar": (nn.MSELoss(), (SAMPLES,), real(SAMPLES)),
    "l1": (nn.L1Loss(), FLAT, real(*FLAT)),
    "smooth-l1": (nn.SmoothL1Loss(beta=0.7), FLAT, real(*FLAT)),
    "smooth-l1-sharp": (nn.SmoothL1Loss(beta=0.0), FLAT, real(*FLAT)),
    "huber": (nn.HuberLoss(delta=0.6), FLAT, real(*FLAT)),
    "bce": (nn.BCEWithLogitsLoss(), FLAT, PROBABILITIES),
    "bce-weights": (nn.BCEWithLogitsLoss(weight=CLASS_WEIGHTS, pos_weight=1 + CLASS_WEIGHTS), FLAT, BITS),
    "poisson": (nn.PoissonNLLLoss(), FLAT, PROBABILITIES),
    "soft-margin": (nn.SoftMarginLoss(), FLAT, SIGNS),
    "hinge-embedding": (nn.HingeEmbeddingLoss(), FLAT, SIGNS),
    "kl-batchmean": (nn.KLDivLoss(reduction="batchmean"), FLAT, PROBABILITIES),
    "kl-log-target": (nn.KLDivLoss(reduction="batchmean", log_target=True), FLAT, PROBABILITIES.log()),
    "multi-label": (nn.MultiLabelSoftMarginLoss(weight=CLASS_WEIGHTS), FLAT, BITS),
}
CLASSIFICATION = {
    "cross-entropy": (nn.CrossEntropyLoss(), FLAT, labels(SAMPLES)),
    "cross-entropy-ignored": (nn.CrossEntropyLoss(), FLAT, labels(SAMPLES, ignored=-100)),
    "cross-entropy-maps": (nn.CrossEntropyLoss(ignore_index=2), MAPS, labels(SAMPLES, 2, 3, ignored=2)),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), FLAT, labels(SAMPLES)),
    "smoothed-ignored": (nn.CrossEntropyLoss(label_smoothing=0.1), MAPS, labels(SAMPLES, 2, 3, ignored=-100)),
    "weighted": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), FLAT, labels(SAMPLES)),
    "everything": (
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=0, label_smoothing=0.2),
        MAPS,
        labels(SAMPLES, 2, 3, ignored=0),
    ),
    "probabilities": (nn.CrossEntropyLoss(label_smoothing=0.1), FLAT, PROBABILITIES),
    "weighted-probabilities": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), MAPS, MAP_PROBABILITIES),
    "nll": (nn.NLLLoss(weight=CLASS_WEIGHTS), FLAT, labels(SAMPLES, ignored=-100)),
    "nll-maps": (nn.NLLLoss(), MAPS, labels(SAMPLES, 2, 3, ignored=-100)),
}
LOSSES = ELEMENTWISE | CLASSIFICATION


class Scores(nn.Module):
    """Outputs of any shape from inputs of the same shape: one scale and one shift for each output of a sample."""

    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, max(1, torch.Size(shape[1:]).numel())).view(shape[1:]))
        self.shift = nn.Parameter(torch.full(shape[1:], 0.1))

    def forward(self, x):
        return torch.tanh(x * self.scale) * 2 + self.shift


def problem(name: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    loss, shape, targets = LOSSES[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Scores(shape).double(), loss, inputs, targets


def by_torch(loss: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
    return loss.to(torch.float64)(outputs, targets)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_module(name):
    model, loss, inputs, targets = problem(name)
    objective = Objective(model, loss)
    expected = by_torch(loss, model(inputs), targets)
    value, gradient = objective.batch(inputs, targets).value_and_gradient()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-14)
    for found, wanted in zip(gradient, torch.autograd.grad(expected, objective.parameters), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_hessian_products_are_differences_of_the_gradient(name):
    _, loss, outputs, targets = problem(name)
    per_sample, step = Loss(loss), 1e-6
    u = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ahead, behind = (per_sample.at(outputs + s * step * u, targets).gradient for s in (1, -1))
    product = per_sample.at(outputs, targets).hessian(u)
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_samples_are_differences_of_their_values(name):
    _, loss, outputs, targets = problem(name)
    per_sample, step = Loss(loss), 1e-6
    u = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ahead, behind = (per_sample.values(outputs + s * step * u, targets) for s in (1, -1))
    slopes = (per_sample.at(outputs, targets).gradient * u).reshape(SAMPLES, -1).sum(1)
    torch.testing.assert_close(slopes, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["everything", "huber", "weighted-probabilities", "nll"])
def test_micro_batches_have_the_same_value_and_curvature(name):
    model, loss, inputs, targets = problem(name)
    whole, divided = (Objective(model, loss, micro_batch=size).batch(inputs, targets) for size in (None, 3))
    d = [torch.ones_like(p) for p in model.parameters()]
    torch.testing.assert_close(divided.value(), whole.value())
    torch.testing.assert_close(divided.gradient().flat, whole.gradient().flat)
    torch.testing.assert_close(divided.curvature_along(d), whole.curvature_along(d))


def over_workers(rank: int, workers: int) -> dict[str, Tensor]:
    model, loss, inputs, targets = problem("everything")
    share = torch.arange(SAMPLES).tensor_split(workers)[rank]
    collectives = ProcessGroup() if workers > 1 else Local()
    value, gradient = (
        Objective(model, loss, collectives=collectives).batch(inputs[share], targets[share]).value_and_gradient()
    )
    return {"value": value, "gradient": gradient.flat}


@pytest.mark.slow
def test_two_workers_divide_by_the_class_weights_of_both():
    expected = over_workers(0, 1)
    for found in distributed.run(2, over_workers, 2):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def test_class_weights_multiply_the_weights_of_samples():
    model, loss, inputs, targets = problem("weighted")
    weights = torch.arange(SAMPLES).double()
    value = Objective(model, loss, weights=lambda t: weights).batch(inputs, targets).value()
    losses = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS.double(), reduction="none")(model(inputs), targets)
    expected = (weights * losses).sum() / (weights * CLASS_WEIGHTS.double()[targets]).sum()
    torch.testing.assert_close(value, expected.detach())


def test_the_module_given_is_not_changed():
    loss = nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS.clone())
    model, _, inputs, targets = problem("bce")
    Objective(model, loss).batch(inputs, targets).gradient()
    assert loss.reduction == "mean"
    assert loss.pos_weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (F.cross_entropy, nn.CrossEntropyLoss()),
        (functools.partial(F.cross_entropy, label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (functools.partial(F.cross_entropy, reduction="none"), nn.CrossEntropyLoss()),
    ],
)
def test_functions_of_torch_stand_for_their_modules(function, module):
    model, _, inputs, targets = problem("cross-entropy")
    found, expected = (Objective(model, loss).batch(inputs, targets) for loss in (function, module))
    torch.testing.assert_close(found.value(), expected.value())
    torch.testing.assert_close(found.gradient().flat, expected.gradient().flat)


def test_half_precision_outputs_are_widened():
    model, loss = nn.Linear(4, CLASSES).bfloat16(), nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    batch = Objective(model, loss).batch(torch.randn(3, 4).bfloat16(), torch.tensor([0, 1, 2]))
    assert batch.gradient().flat.isfinite().all()


class Own(nn.Module):
    def forward(self, outputs, targets):
        return (outputs - targets).square().sum(1)


def test_modules_and_subclasses_of_ones_own_are_functions():
    model, _, inputs, targets = problem("mse")
    value = Objective(model, Own()).batch(inputs, targets).value()
    torch.testing.assert_close(value, (model(inputs) - targets).square().sum(1).mean().detach())


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            nn.MSELoss(reduction="sum"),
            ValueError,
            r"reduction='sum', but an objective is a mean .* use reduction='mean'",
        ),
        (nn.CTCLoss(), ValueError, r"CTCLoss has no form per sample here; pass a function of \(outputs, targets\)"),
        (nn.CrossEntropyLoss, TypeError, r"loss is the class CrossEntropyLoss; pass an instance"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(SAMPLES, 1)), ValueError, "first dimension would be the batch"),
        (
            nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0]), label_smoothing=0.1),
            ValueError,
            "class weight that is not positive",
        ),
    ],
)
def test_losses_that_are_no_mean_over_samples_are_refused(loss, error, message):
    with pytest.raises(error, match=message):
        Objective(nn.Linear(2, 2), loss)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (nn.MSELoss(), torch.zeros(3), r"MSELoss takes targets in the shape of the outputs, not \(3,\) for \(3, 2\)"),
        (nn.CrossEntropyLoss(), torch.zeros(3, 2, dtype=torch.long), r"class indices \(B, …\) or class probabilities"),
        (nn.CrossEntropyLoss(), torch.zeros(3), "class indices"),
        (nn.NLLLoss(), torch.zeros(3, 2), r"NLLLoss takes outputs \(B, C, …\) and class indices \(B, …\), not"),
    ],
)
def test_targets_of_the_wrong_shape_are_named(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        Objective(nn.Linear(2, 2), loss).batch(torch.zeros(3, 2), targets).value()
