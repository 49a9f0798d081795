"""Peak memory of passes with tangents: the table of docs/results.md, printed with ``-s``."""

from __future__ import annotations

import os
import sys

import pytest

from raycurv.benchmarks import pass_memory

QUICK = ("basic CNN + BN", "LeNet-tanh")
ALL = "RAYCURV_ALL_NETWORKS" in os.environ


@pytest.mark.parametrize("workload", pass_memory.WORKLOADS if ALL else QUICK)
def test_passes_with_tangents_need_the_memory_that_the_documentation_says(workload: str):
    found = pass_memory.measure(workload)
    sys.stdout.write(f"\n{pass_memory.HEAD}\n{found.row()}\n")
    if workload not in ("autoencoder", "transformer"):
        assert 1 < found.forward_tape / found.forward <= 3.3
        assert found.forward_tape <= 1.25 * found.gradient
    assert found.tape <= 1.5 * found.gradient
    assert found.tape < found.pushing_tape <= 2.3 * found.gradient
