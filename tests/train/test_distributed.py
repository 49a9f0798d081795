from __future__ import annotations

import pytest
import torch

from raycurv.objective.collectives import Local
from raycurv.train import WorkersDisagree
from raycurv.train.distributed import checksum, gather, require_equal, require_equal_parameters
from tests.train import threads

CPU = torch.device("cpu")


def test_gather_stacks_in_the_order_of_ranks() -> None:
    def worker(collectives: threads.Threads) -> torch.Tensor:
        return gather(torch.tensor([collectives.rank, 255], dtype=torch.uint8), collectives, CPU)

    for stacked in threads.run(3, worker):
        assert stacked.tolist() == [[0, 255], [1, 255], [2, 255]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_checksum_sees_the_last_bit_and_the_order(dtype: torch.dtype) -> None:
    a, b = torch.linspace(-1, 1, 9).to(dtype), torch.ones((), dtype=dtype)
    changed = a.clone()
    changed.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()])[4] ^= 1
    sums = {checksum(tensors).item() for tensors in ([a, b], [changed, b], [b, a])}
    assert len(sums) == 3
    assert checksum([a.clone(), b.clone()]).item() in sums


def test_equal_parameters_pass() -> None:
    weights = [torch.linspace(0, 1, 5), torch.ones(2, 2)]
    require_equal_parameters(weights, Local(), CPU)
    threads.run(2, lambda collectives: require_equal_parameters(weights, collectives, CPU))


def test_a_worker_that_went_astray_is_named_by_all() -> None:
    def worker(collectives: threads.Threads) -> str:
        weight = torch.ones(5)
        if collectives.rank == 2:
            weight[3] += 1e-7
        with pytest.raises(WorkersDisagree) as caught:
            require_equal_parameters([weight], collectives, CPU)
        return str(caught.value)

    for message in threads.run(3, worker):
        assert message.startswith("the parameters of worker 2 differ from those of worker 0.")


def test_different_numbers_are_shown() -> None:
    def worker(collectives: threads.Threads) -> None:
        with pytest.raises(WorkersDisagree, match=r"the step must be equal on every worker; by rank it is \[-1, 0\]"):
            require_equal(collectives.rank - 1, "the step", collectives, CPU)

    threads.run(2, worker)
