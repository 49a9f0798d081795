"""Lightning, by manual optimisation: torchrun --nproc-per-node 2 docs/examples/lightning_module.py, or python."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from raycurv import Objective, optim
from raycurv.objective.collectives import Local, ProcessGroup


class StepOnBatch(torch.optim.Optimizer):
    """Lightning calls `step(closure, batch=...)`: the closure runs its callbacks, the method asks the batch."""

    def __init__(self, method):
        super().__init__(method.param_groups, method.defaults)
        self.method = method
        self.state_dict, self.load_state_dict = method.state_dict, method.load_state_dict

    def step(self, closure, batch):
        closure()
        return self.method.step(batch)


class Classifier(lightning.LightningModule):
    """Any network with cross-entropy."""

    def __init__(self, network, method="auto"):
        super().__init__()
        self.automatic_optimization = False  # the method computes its own derivatives
        self.network, self.method = network, method

    def configure_optimizers(self):
        trainer = self.trainer
        collectives = ProcessGroup() if trainer.world_size > 1 else Local()
        self.objective = Objective(self.network, "cross_entropy", collectives=collectives)
        trainer.fit_loop.setup_data()  # so that the length of the run is known
        steps = int(trainer.estimated_stepping_batches)
        per_epoch = min(steps, trainer.num_training_batches)
        horizon = optim.Horizon(-(-steps // per_epoch), per_epoch, len(trainer.train_dataloader.dataset))
        return StepOnBatch(optim.create(self.method, self.network, horizon=horizon))

    def training_step(self, batch, index):
        inputs, targets = batch
        report = self.optimizers().step(batch=self.objective.batch(inputs, targets))
        self.log_dict({"train/loss": report.loss, **report.scalars})


if __name__ == "__main__":
    lightning.seed_everything(0)
    inputs = torch.randn(512, 20)
    data = DataLoader(TensorDataset(inputs, inputs[:, :5].argmax(1)), batch_size=32, shuffle=True)
    network = nn.Sequential(nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 5))
    trainer = lightning.Trainer(max_epochs=3, log_every_n_steps=8)
    trainer.fit(Classifier(network), data)
