"""A run of the example's module without shuffling, to be started by torchrun: the number of devices, a file."""

import os
import sys

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.adapters.examples import load

ROWS, BATCH = 40, 16  # the last of three batches is smaller


def network():
    torch.manual_seed(0)
    layers = nn.Linear(20, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 5)
    return nn.Sequential(*layers)


def loader(workers=1, rank=0):
    """Batches in stored order; a global batch is dealt to the workers in turn."""
    inputs = torch.randn(ROWS, 20, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs[:, :5].argmax(1))
    sampler = None if workers == 1 else DistributedSampler(data, workers, rank, shuffle=False)
    return DataLoader(data, batch_size=BATCH // workers, sampler=sampler)


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(**{"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet, **settings})


if __name__ == "__main__":
    workers, path = int(sys.argv[1]), sys.argv[2]
    module = load("lightning_module").Classifier(network())
    run = trainer(max_epochs=2, devices=workers, strategy="ddp", use_distributed_sampler=False)
    run.fit(module, loader(workers, int(os.environ["RANK"])))
    if run.is_global_zero:
        torch.save(module.network.state_dict(), path)
