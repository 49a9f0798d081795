"""Settings of the allocator for processes that train on a CPU."""

import os
import subprocess
import sys

import pytest

from raycurv.train.host_memory import ALLOCATOR_DEFAULTS

# Steps in a thread, as Ray Train calls the training function.
PROGRAM = """
import resource, threading
import torch
from torch import nn
from raycurv import optim
from raycurv.objective import Objective

def steps():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    objective, method = Objective(model, "cross_entropy"), optim.create("curveball", model)
    batch = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
    for step in range(9):
        if step == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        method.step(objective.batch(*batch))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 6)

torch.set_num_threads(1)
thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def page_faults(environment: dict[str, str]) -> float:
    """Page faults of a step."""
    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_DEFAULTS}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="settings of glibc")
def test_a_step_takes_no_new_memory_from_the_system() -> None:
    assert page_faults(ALLOCATOR_DEFAULTS) < 1000 < page_faults({})
