"""Steps of two workers on machines with a slow network between them, as ratios to SGD's.

python -m tests.cluster.slow_network --delay 20
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed

from raycurv import optim
from raycurv.models import basic_cnn
from raycurv.objective import Objective
from raycurv.objective.collectives import ProcessGroup
from tests.cluster.machines import ROOT, kit, why_not

OPTIMIZERS = ("sgd", "auto", "red_sgd", "curveball", "llr_second_order")
WARM_UP = 22  # steps; `auto` measures curvature in each of the first 20
BATCH_SIZE = 128
HEAD = "| batch norm | optimizer | seconds a step | of SGD's | rounds a step |\n|---|---|---|---|---|"


def measure(rank: int, store: str, batch_norm: str, steps: int) -> list[str]:
    """Rows of the table, from one of the two workers; optimizers alternate."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = ProcessGroup()
    images, labels = torch.rand(8, BATCH_SIZE, 3, 32, 32), torch.randint(10, (8, BATCH_SIZE))
    share = torch.arange(BATCH_SIZE).tensor_split(2)[rank]
    seconds: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    rounds: dict[str, list[int]] = {name: [] for name in OPTIMIZERS}
    problems = {}
    for name in OPTIMIZERS:
        torch.manual_seed(0)
        model = basic_cnn(batch_norm=batch_norm == "synchronised")
        problems[name] = Objective(model, "cross_entropy", collectives=group), optim.create(name, model)
    for step in range(WARM_UP + steps):
        for name, (objective, method) in problems.items():
            began, before = time.perf_counter(), group.traffic.rounds
            method.step(objective.batch(images[step % 8][share], labels[step % 8][share]))
            if step >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
                rounds[name].append(group.traffic.rounds - before)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    mean = {name: statistics.mean(times) for name, times in seconds.items()}
    return [
        f"| {batch_norm} | `{name}` | {mean[name]:.2f} | {mean[name] / mean['sgd']:.2f} | "
        f"{statistics.mean(rounds[name]):.1f} |"
        for name in OPTIMIZERS
    ]


def between_machines(delay: float, rate: int, batch_norm: str, steps: int) -> list[str]:
    """Rows of the table, of two network namespaces with slow cables.

    Args:
        delay: milliseconds of one cable, in one direction; a round trip passes four times.
        rate: Mbit/s of each cable.
        batch_norm: ``none`` or ``synchronised``.
        steps: timed steps of each optimizer.
    """
    folder, scripts = tempfile.mkdtemp(prefix="raycurv-slow-"), kit()
    assert scripts is not None
    tag = f"rcs{os.getpid()}"
    environment = os.environ | {
        "MACHINES_DIR": folder, "MACHINES_CODE": str(ROOT), "MACHINES_TAG": tag, "NODES": "n1 n2",
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    try:
        subprocess.run(["bash", str(scripts / "net_up.sh")], env=environment, check=True)
        slow = ["bash", str(scripts / "slow.sh"), str(rate), f"{delay:g}", "n1", "n2"]
        subprocess.run(slow, env=environment, check=True)
        workers = [
            subprocess.Popen(
                ["ip", "netns", "exec", f"{tag}-n{rank + 1}", sys.executable, "-m", "tests.cluster.slow_network",
                 "--worker", str(rank), f"{folder}/store", batch_norm, "--steps", str(steps)],
                env=environment, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        outputs = [worker.communicate(timeout=900)[0] for worker in workers]
        assert all(worker.returncode == 0 for worker in workers)
        return list(json.loads(outputs[0].splitlines()[-1]))
    finally:
        subprocess.run(["bash", str(scripts / "slow.sh"), "0", "0", "n1", "n2"], env=environment, check=False)
        for name in ("n1", "n2", "sw"):
            subprocess.run(["ip", "netns", "delete", f"{tag}-{name}"], check=False)


def main() -> None:
    """Print the table, or measure as one of its workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay", type=float, default=20.0, help="milliseconds of one cable, in one direction (20)")
    parser.add_argument("--rate", type=int, default=1000, help="Mbit/s of each cable (1000)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each optimizer (10)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rank, store, batch_norm = options.worker
        sys.stdout.write(json.dumps(measure(int(rank), store, batch_norm, options.steps)) + "\n")
        return
    if why_not():
        sys.exit(why_not())
    sys.stdout.write(HEAD + "\n")
    for batch_norm in ("none", "synchronised"):
        rows = between_machines(options.delay, options.rate, batch_norm, options.steps)
        sys.stdout.write("\n".join(rows) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
