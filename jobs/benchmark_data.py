"""How fast batches are made, beside the decoder alone, and what opening two million images takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro

from raycurv.benchmarks import data_speed
from raycurv.data import parquet_images


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    cifar: str = "cifar10"
    """Folder of small JPEG images, or its name in RAYCURV_DATA."""
    photographs: str = "imagenet_sample"
    """Folder of photographs, or its name in RAYCURV_DATA."""
    threads: int = 2
    """Threads that decode."""
    batch_size: int = 128
    """Images of a batch."""
    repeat: int = 3
    """Measurements of each kind; the best counts."""
    rows: int = 2_000_000
    """Rows of the large set (about 1 kB each, written to a temporary folder); 0 leaves it out."""


def main(arguments: Arguments) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    how = {"threads": arguments.threads, "batch_size": arguments.batch_size, "repeat": arguments.repeat}
    small = {"augmentation": "crop_flip", "evaluation": None}
    photographs = {"augmentation": "resize_crop_flip", "image_size": 224, "evaluation": None}
    print(data_speed.HEAD)
    for name, folder, options in (
        ("small", arguments.cifar, small),
        ("photographs", arguments.photographs, photographs),
    ):
        for line in data_speed.measure(name, lambda f=folder, o=options: parquet_images(f, **o).train, **how):
            print(line, flush=True)
    if arguments.rows:
        for line in data_speed.large(arguments.rows):
            print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
