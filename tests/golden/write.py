"""Write the files of the golden runs: ``python -m tests.golden.write [beginning of a name …]``."""

import sys

import torch

from tests.golden.runs import RUNS, write

if __name__ == "__main__":
    torch.set_num_threads(1)
    beginnings = tuple(sys.argv[1:])
    for run in RUNS:
        if not beginnings or run.startswith(beginnings):
            write(run)
