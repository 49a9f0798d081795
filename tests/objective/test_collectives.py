"""Sums over gloo processes: equal to all_reduce, equal on every worker, one round trip."""

import pytest
import torch
import torch.distributed

from raycurv.objective.collectives import DIRECT_BYTES, Local, ProcessGroup
from tests.objective import distributed

pytestmark = pytest.mark.slow

SHAPES = ((), (1,), (5,), (3, 4), (70_000,), (DIRECT_BYTES // 4 + 1,))  # the last two are too large for four workers
DTYPES = (torch.float32, torch.float64, torch.int64, torch.uint8)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(0, 50, shape, generator=generator, dtype=dtype)


def sums(rank: int) -> dict[str, torch.Tensor]:
    collectives, found = ProcessGroup(), {}
    for shape in SHAPES:
        for dtype in DTYPES:
            name = f"{shape} {dtype}"
            mine = tensor(shape, dtype, rank)
            reduced = mine.clone()
            torch.distributed.all_reduce(reduced)
            # Direct sums also take a tensor that is not contiguous.
            other = torch.stack([mine, mine], -1)[..., 0] if mine.numel() < 100 else mine.clone()
            returned = collectives.sum(other)
            assert returned is other
            future = collectives.start_sum(mine)
            future.wait()
            assert future.value() is mine
            found[f"{name} all_reduce"], found[f"{name} sum"], found[f"{name} started"] = reduced, returned, mine
    group = torch.distributed.distributed_c10d._get_default_group()
    before, traffic = group._get_sequence_number_for_group(), collectives.traffic.rounds
    collectives.sum(torch.ones(3))
    rounds = group._get_sequence_number_for_group() - before, collectives.traffic.rounds - traffic
    found["rounds"] = torch.tensor(rounds)
    found["without a number"] = collectives.sum(torch.ones(0))
    return found


@pytest.fixture(scope="module", params=[2, 4])
def workers(request):
    return distributed.run(request.param, sums)


def test_a_sum_equals_all_reduce(workers):
    for shape in SHAPES:
        for dtype in DTYPES:
            for how in ("sum", "started"):
                found, expected = (workers[0][f"{shape} {dtype} {kind}"] for kind in (how, "all_reduce"))
                torch.testing.assert_close(found, expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-6)


def test_every_worker_gets_the_same_bits(workers):
    for name, expected in workers[0].items():
        for found in workers[1:]:
            assert torch.equal(found[name], expected), name


def test_a_small_sum_is_one_collective_and_counted(workers):
    assert workers[0]["rounds"].tolist() == [1, 1]


def test_one_process_sums_nothing():
    value = torch.ones(2)
    assert Local().sum(value) is value
    assert Local().start_sum(value).value() is value
