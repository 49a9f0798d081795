import pytest
import torch
from torch import nn

from raycurv import Objective, optim
from tests.adapters import examples


@pytest.mark.slow
def test_one_process_equals_a_plain_loop_and_two_ranks(tmp_path, batches, capsys):
    example = examples.load("accelerate_loop")
    example.main(tmp_path / "one")
    printed = capsys.readouterr().out
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 5))
    objective = Objective(model, "cross_entropy")
    optimizer = optim.Auto(model)
    for batch in list(batches):
        report = optimizer.step(objective.batch(*batch))
    one, two = (tmp_path / name / "custom_checkpoint_0.pkl" for name in ("one", "two"))
    examples.assert_equal(torch.load(one, weights_only=True), model.state_dict())
    assert printed == f"loss {report.loss:.4f}\n"

    assert examples.torchrun(2, examples.EXAMPLES / "accelerate_loop.py", two.parent) == printed
    examples.assert_equal(torch.load(two, weights_only=True), model.state_dict(), rtol=1e-4, atol=2e-5)
