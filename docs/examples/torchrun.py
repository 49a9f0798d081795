"""A plain loop for any number of workers: torchrun --nproc-per-node 2 docs/examples/torchrun.py."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from raycurv import Objective, optim
from raycurv.objective.collectives import ProcessGroup

SAMPLES, BATCH, EPOCHS = 500, 64, 3  # the last batch of an epoch is smaller, and need not be even


def main(checkpoint=None):
    """Train, print the last loss, and save to `checkpoint` if there is one."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same weights and data on every worker
    model = nn.Sequential(nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 5)).to(device)
    inputs = torch.randn(SAMPLES, 20)
    targets = inputs[:, :5].argmax(1)

    objective = Objective(model, "cross_entropy", l2=1e-4, collectives=ProcessGroup())  # no DDP around the model
    optimizer = optim.Auto(model)
    for epoch in range(EPOCHS):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH):
            share = rows.tensor_split(workers)[rank]
            report = optimizer.step(objective.batch(inputs[share].to(device), targets[share].to(device)))

    if rank == 0:
        print(f"loss {report.loss:.4f}")
        if checkpoint:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
