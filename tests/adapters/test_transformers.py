import pytest
import torch
from transformers import set_seed

from raycurv import Objective, optim
from tests.adapters import examples
from tests.adapters.transformers_run import ROWS, classifier, language_model, rows, trainer

HORIZON = optim.Horizon(1, 2, ROWS)


def replayed(batches, model, method="auto", loss="cross_entropy", horizon=HORIZON, **settings):
    """The plain loop over recorded batches."""
    objective = Objective(examples.load("transformers_trainer").Logits(model), loss, **settings)
    optimizer = optim.create(method, model, horizon=horizon)
    for batch in list(batches):
        report = optimizer.step(objective.batch(*batch))
    return model.state_dict(), report


@pytest.mark.parametrize("method", ["auto", "curveball", "adam"])
def test_two_steps_are_those_of_a_plain_loop(tmp_path, batches, method):
    run = trainer(tmp_path, classifier(), rows(), max_steps=2, given={"method": method})
    run.train()
    assert len(batches) == 2
    state, report = replayed(batches, classifier(), method)
    examples.assert_equal(run.model.state_dict(), state)
    assert run.state.log_history[1]["loss"] == pytest.approx(report.loss.item(), abs=1e-6)


def test_the_log_shows_what_the_method_uses(tmp_path):
    run = trainer(tmp_path, classifier(), rows(), max_steps=2)
    run.train()
    shown = run.state.log_history[1]
    assert {"loss", "curvature", "learning_rate"} <= set(shown)
    assert shown["learning_rate"] == run.report.scalars["learning_rate"].item()
    assert "grad_norm" not in shown


def test_a_language_model_has_the_loss_of_transformers(tmp_path, batches):
    example, model, data = examples.load("causal_language_model"), language_model(), rows(causal=True)
    settings = {"weights": example.token_count}
    given = {"method": "curveball", "objective": settings}
    run = trainer(tmp_path, model, data, example.token_cross_entropy, given, max_steps=2)
    run.train()
    state, _ = replayed(batches, language_model(), "curveball", example.token_cross_entropy, **settings)
    examples.assert_equal(run.model.state_dict(), state, rtol=1e-5, atol=1e-6)
    (inputs, labels), model = batches[0], language_model()
    own = model(**inputs, labels=labels).loss
    objective = Objective(examples.load("transformers_trainer").Logits(model), example.token_cross_entropy, **settings)
    loss, gradient = objective.batch(inputs, labels).value_and_gradient()
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)
    for mine, theirs in zip(gradient, torch.autograd.grad(own, objective.parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_micro_batches_take_the_place_of_accumulation(tmp_path, batches):
    run = trainer(tmp_path, classifier(), rows(), max_steps=2, given={"objective": {"micro_batch": 3}})
    run.train()
    state, _ = replayed(batches, classifier())
    examples.assert_equal(run.model.state_dict(), state, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("setting", [{"gradient_accumulation_steps": 2}, {"fp16": True}])
def test_what_would_step_wrongly_is_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=r"micro_batch=.*bf16=True"):
        trainer(tmp_path, classifier(), rows(), **setting)


def test_mixed_precision_is_that_of_autocast(tmp_path, batches):
    run = trainer(tmp_path, classifier(), rows(), max_steps=2, bf16=True)
    run.train()
    model = classifier()
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # as Accelerate does
    state, _ = replayed(batches, model)
    examples.assert_equal(run.model.state_dict(), state)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path, classifier(), rows(), **settings)
    whole.train()
    set_seed(7)
    resumed = trainer(tmp_path, classifier(), rows(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    examples.assert_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_the_trainer_evaluates_the_trained_weights(tmp_path):
    run = trainer(tmp_path, classifier(), rows(), max_steps=2)
    run.train()
    inputs = {name: torch.stack([row[name] for row in rows()]) for name in ("input_ids", "attention_mask")}
    own = run.model(**inputs, labels=torch.arange(ROWS) % 3).loss.item()
    assert run.evaluate(rows())["eval_loss"] == pytest.approx(own, rel=1e-5)


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path, batches):
    path = tmp_path / "two.pt"
    examples.torchrun(2, examples.ROOT / "tests" / "adapters" / "transformers_run.py", path)
    run = trainer(tmp_path, classifier(), rows(), max_steps=4)
    run.train()
    examples.assert_equal(torch.load(path, weights_only=True), run.model.state_dict(), rtol=1e-3, atol=1e-5)
