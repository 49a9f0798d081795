"""Runs whose optimizer learns from a validation batch at every step."""

import pytest
import torch

from raycurv import Objective, optim
from raycurv.data import Loader, tensors
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, train
from raycurv.train.training_run import TrainingRun
from raycurv.train.validation import split_validation
from tests.train.problems import blobs, config

LEARNED = {"optimizer": "llr_second_order", "optimizer_settings": {"on_validation": True}, "validation": 0.25}


def weights(folder):
    return torch.cat([w.flatten() for w in CheckpointStore(str(folder)).load()["model"].values()])


def test_a_run_gives_what_a_loop_by_hand_gives(tmp_path):
    wanted = config(**LEARNED)
    result = train(wanted, collectives=Local(), store=CheckpointStore(str(tmp_path)), emit=lambda records: None)

    run = TrainingRun(wanted, Local(), torch.device("cpu"))
    training, held_out = split_validation(blobs().train, 0.25, wanted.seed)
    assert (len(training), len(held_out)) == (30, 10)
    batches = {"batch_size": 8, "seed": wanted.seed, "dtype": torch.float64}
    validation = [b for epoch in range(4) for b in Loader(held_out, **batches).epoch(epoch)]
    objective = Objective(run.model, "cross_entropy", wanted.l2)
    horizon = optim.Horizon(2, 4, 30)
    optimizer = optim.create("llr_second_order", run.model, horizon=horizon, on_validation=True)
    for epoch in range(2):
        for inputs, targets in Loader(training, **batches).epoch(epoch):
            optimizer.step(objective.batch(inputs, targets), validation=objective.batch(*validation.pop(0)))
    torch.testing.assert_close(weights(tmp_path), torch.cat([w.flatten() for w in run.model.state_dict().values()]))
    assert result.steps == 8


def test_the_operations_of_a_step_with_a_validation_batch_are_counted(tmp_path):
    def counted(name, **changes):
        wanted = config(**{**LEARNED, "batch_size": 10, "max_steps": 3, **changes})
        store = CheckpointStore(str(tmp_path / name))
        return train(wanted, collectives=Local(), store=store, emit=lambda records: None).operations

    assert counted("validation") == counted("same batch", optimizer_settings={})
    both = counted("both", optimizer="llr_first_order")
    assert both == 2 * counted("one", optimizer="llr_first_order", optimizer_settings={})


def test_it_goes_on_with_the_same_validation_batches(tmp_path):
    steps = iter(range(100))
    straight, broken = CheckpointStore(str(tmp_path / "a")), CheckpointStore(str(tmp_path / "b"))
    train(config(**LEARNED), collectives=Local(), store=straight, emit=lambda records: None)
    options = {"collectives": Local(), "emit": lambda records: None}
    assert train(config(**LEARNED), store=broken, stop=lambda: next(steps) >= 4, **options).stopped
    train(config(**LEARNED), store=broken, resume="must", **options)
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_shares_that_cannot_be_held_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"RunConfig.validation is 1.0; it must be 0, or a fraction below 1"):
        config(validation=1.0)
    with pytest.raises(ValueError, match="holds out 0 of 3 samples"):
        split_validation(tensors(torch.zeros(3, 2), torch.zeros(3)).train, 0.1, 0)
    with pytest.raises(ValueError, match="needs a validation batch at every step: hold out a fraction"):
        TrainingRun(config(**{**LEARNED, "validation": 0.0}), Local(), torch.device("cpu"))
