"""Sums over gloo processes: equal to all_reduce, equal on every worker, one round trip."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

import raycurv
from raycurv import optim
from raycurv.objective.collectives import DIRECT_BYTES, Local, ProcessGroup
from tests.cases import BY_NAME
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


def one_step(rank: int, workers: int, folder: str) -> None:
    """A process of its own: a step, the end of the group, and the names of the threads that are left."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    case = BY_NAME["batch-norm"]
    objective = raycurv.Objective(case.model(), case.loss, collectives=ProcessGroup())
    optimizer = optim.create("curveball", objective.model)
    optimizer.step(objective.batch(case.inputs[rank::2], case.targets[rank::2]))
    del objective, optimizer
    torch.distributed.destroy_process_group()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    Path(folder, f"threads-{rank}").write_text("\n".join(threads))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the threads of Linux")
def test_no_thread_of_gloo_outlives_the_group(tmp_path):
    torch.multiprocessing.spawn(one_step, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        threads = (tmp_path / f"threads-{rank}").read_text()
        assert "python" in threads
        assert "gloo" not in threads


def test_one_process_sums_nothing():
    value = torch.ones(2)
    assert Local().sum(value) is value
    assert Local().start_sum(value).value() is value
