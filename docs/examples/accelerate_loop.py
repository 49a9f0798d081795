"""A loop with Accelerate: accelerate launch (or torchrun) docs/examples/accelerate_loop.py [folder]."""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from raycurv import Objective, optim
from raycurv.objective.collectives import Local, ProcessGroup

BATCH, EPOCHS = 64, 2  # of all workers together; no sample is repeated to fill the last batch
LOADING = DataLoaderConfiguration(split_batches=True, even_batches=False, use_seedable_sampler=True)


def main(checkpoint=None):
    """Train, print the last loss, and save to the folder `checkpoint` if there is one."""
    accelerator = Accelerator(dataloader_config=LOADING)
    set_seed(0)
    model = nn.Sequential(nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 5))
    model.to(accelerator.device)
    inputs = torch.randn(504, 20)
    data = TensorDataset(inputs, inputs[:, :5].argmax(1))
    loader = accelerator.prepare(DataLoader(data, batch_size=BATCH, shuffle=True))  # neither model nor optimizer

    collectives = ProcessGroup() if accelerator.num_processes > 1 else Local()
    objective = Objective(model, "cross_entropy", collectives=collectives)
    optimizer = optim.Auto(model)
    accelerator.register_for_checkpointing(model, optimizer)
    for _ in range(EPOCHS):
        for batch in loader:
            with accelerator.autocast():
                report = optimizer.step(objective.batch(*batch))

    accelerator.print(f"loss {report.loss:.4f}")
    if checkpoint:
        accelerator.save_state(checkpoint)  # and accelerator.load_state(checkpoint) before the loop
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
