import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from raycurv import Objective, optim
from tests.adapters import examples
from tests.adapters.lightning_run import ROWS, loader, network, trainer

pytestmark = [
    # Lightning 2.6 asks torch's pytrees in a way that torch 2.14 deprecates.
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning:lightning"),
    # Two workers that load data are too many for forty rows.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]


@pytest.fixture(scope="module")
def example():
    return examples.load("lightning_module")


def plain(method, horizon, batches):
    model = network()
    objective, optimizer = Objective(model, "cross_entropy"), optim.create(method, model, horizon=horizon)
    for batch in batches:
        report = optimizer.step(objective.batch(*batch))
    return model, report


@pytest.mark.parametrize("method", ["auto", "curveball", "adam"])
def test_two_steps_are_those_of_a_plain_loop(example, method):
    module, run = example.Classifier(network(), method), trainer(max_steps=2)
    run.fit(module, loader())
    model, report = plain(method, optim.Horizon(1, 2, ROWS), list(loader())[:2])
    examples.assert_equal(module.network.state_dict(), model.state_dict())
    assert run.callback_metrics["train/loss"] == report.loss


def test_lightning_counts_the_steps_and_runs_its_callbacks(example):
    class Seen(lightning.Callback):
        steps = 0

        def on_before_optimizer_step(self, *_):
            self.steps += 1

    seen = Seen()
    run = trainer(max_epochs=2, callbacks=[seen])
    run.fit(example.Classifier(network()), loader())
    assert (run.global_step, seen.steps) == (6, 6)
    assert set(run.callback_metrics) >= {"train/loss", "learning_rate", "curvature"}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # two runs share it on purpose
def test_a_resumed_run_equals_an_uninterrupted_one(example, tmp_path):
    def run(**resume):
        module, kept = example.Classifier(network()), ModelCheckpoint(dirpath=tmp_path, save_top_k=-1)
        trainer(max_epochs=2, callbacks=[kept], enable_checkpointing=True).fit(module, loader(), **resume)
        return module

    whole = run()
    (middle,) = tmp_path.glob("*step=3.ckpt")
    resumed = run(ckpt_path=middle)
    examples.assert_equal(resumed.network.state_dict(), whole.network.state_dict())


def test_mixed_precision_is_that_of_autocast(example):
    module = example.Classifier(network())
    trainer(max_steps=2, precision="bf16-mixed").fit(module, loader())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model, _ = plain("auto", optim.Horizon(1, 2, ROWS), list(loader())[:2])
    examples.assert_equal(module.network.state_dict(), model.state_dict())


@pytest.mark.parametrize("setting", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_lightning_refuses_what_it_cannot_do_in_manual_optimisation(example, setting):
    run = trainer(max_steps=2, **setting)
    with pytest.raises(lightning.fabric.utilities.exceptions.MisconfigurationException, match="manual"):
        run.fit(example.Classifier(network()), loader())


@pytest.mark.slow
def test_two_ranks_equal_one_process(example, tmp_path):
    path = tmp_path / "two.pt"
    examples.torchrun(2, examples.ROOT / "tests" / "adapters" / "lightning_run.py", 2, path)
    model, _ = plain("auto", optim.Horizon(2, 3, ROWS), [*loader(), *loader()])
    examples.assert_equal(torch.load(path, weights_only=True), model.state_dict(), rtol=1e-4, atol=2e-5)
