"""Trains, and is killed without warning in a step: ``python -m tests.train.killed FOLDER STEP CONFIG``."""

from __future__ import annotations

import os
import signal
import sys

from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, RunConfig, train


def main(folder: str, step: str, config: str) -> None:
    asked = iter(range(1, 10**9))

    def stop() -> bool:
        if next(asked) == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train(
        RunConfig.from_json(config), collectives=Local(), store=CheckpointStore(folder), emit=lambda _: None, stop=stop
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
