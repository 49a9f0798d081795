import pytest
import torch
from torch import nn

from raycurv import Objective, optim
from tests.adapters import examples


def plain(samples, batch, epochs):
    """The example's run in one process, without a process group."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 5))
    inputs = torch.randn(samples, 20)
    targets = inputs[:, :5].argmax(1)
    objective = Objective(model, "cross_entropy", l2=1e-4)
    optimizer = optim.Auto(model)
    for epoch in range(epochs):
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(batch):
            report = optimizer.step(objective.batch(inputs[rows], targets[rows]))
    return model, optimizer, report.loss.item()


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path):
    example = examples.load("torchrun")
    printed = examples.torchrun(2, examples.EXAMPLES / "torchrun.py", tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    model, optimizer, loss = plain(example.SAMPLES, example.BATCH, example.EPOCHS)
    assert printed == f"loss {loss:.4f}\n"
    examples.assert_equal(saved["model"], model.state_dict(), rtol=1e-4, atol=2e-5)
    examples.assert_equal(
        {key: value for key, value in saved["optimizer"]["state"]["global"].items() if torch.is_tensor(value)},
        {key: value for key, value in optimizer.shared.items() if torch.is_tensor(value)},
        rtol=1e-3,
        atol=1e-5,
    )
