"""How fast batches are made, beside the decoder alone, and what opening two million images takes."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from raycurv.data import Loader, ParquetImages, parquet_images
from raycurv.data.images import decode
from raycurv.data.prepare import Sample, write_split

ROWS, SIDE = 2_000_000, 32


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
    rows: int = ROWS
    """Rows of the large set (about 1 kB each, written to a temporary folder); 0 leaves it out."""


def rate(images: int, run: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Images a second of wall time and of processor time, the best of `repeat`."""
    walls, works = [], []
    for _ in range(repeat):
        wall, work = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        works.append(time.process_time() - work)
    return images / min(walls), images / min(works)


def measure(name: str, open_set: Callable[[], ParquetImages], arguments: Arguments) -> None:
    """Print the rows of one set: the decoder alone, batches of bytes, and batches as the network takes them."""
    source, rows = open_set(), np.arange(min(len(open_set()), 10_000))
    held = [source.encoded(row) for row in rows.tolist()]
    parts = [held[i :: arguments.threads] for i in range(arguments.threads)]

    def decoder() -> None:
        with ThreadPoolExecutor(arguments.threads) as pool:
            list(pool.map(lambda part: [decode(e, source.picture.channels) for e in part] and None, parts))

    def bytes_only() -> None:
        fresh = open_set()
        with ThreadPoolExecutor(arguments.threads) as pool:
            batches = [rows[i : i + arguments.batch_size] for i in range(0, len(rows), arguments.batch_size)]
            list(pool.map(lambda batch: fresh.read(batch, seed=0, epoch=0, training=True) and None, batches))

    def loader() -> None:
        settings = {"batch_size": arguments.batch_size, "seed": 0, "prefetch": arguments.threads}
        for _ in Loader(open_set(), **settings).epoch(0):
            pass

    alone = rate(len(rows), decoder, arguments.repeat)
    for what, images, run in (
        ("the decoder alone", len(rows), decoder),
        ("decoded, augmented, batched", len(rows), bytes_only),
        ("the loader, normalised floats", len(source), loader),
    ):
        wall, work = alone if run is decoder else rate(images, run, arguments.repeat)
        print(f"{name:<12} {what:<32} {wall:>10,.0f} {work:>12,.0f} {work / alone[1]:>10.0%}", flush=True)


def large_samples(rows: int) -> Iterator[Sample]:
    """JPEG images that differ in bytes after their end, so that nothing is stored once for all.

    Yields:
        One sample after the other.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "JPEG")
    for row in range(rows):
        yield buffer.getvalue() + row.to_bytes(8, "big"), "", row % 1000


def large(rows: int) -> None:
    """Write a large set, and open and read it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(label) for label in range(1000)]
        write_split(folder, "train", large_samples(rows), names, groups_per_shard=1000)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"\na set of {rows:,} rows in {rows // 100:,} row groups, {size / 2**30:.1f} GiB", flush=True)
        subprocess.run([sys.executable, __file__, "--probe", folder], check=True)


def probe(folder: str) -> None:
    """Print what a worker needs to open and read the large set."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    source = parquet_images(folder, augmentation="crop_flip").train
    opened = time.perf_counter()
    batches = Loader(source, batch_size=128, seed=0).epoch(0, start=len(source) // 256)
    next(batches)
    first = time.perf_counter()
    for _ in range(1000):
        next(batches)
    passed = time.perf_counter() - first
    batches.close()
    memory = peak_memory() / 2**20
    held = "in memory" if source.in_memory else "streamed"
    print(f"opened in {opened - start:.2f} s; the batch in the middle of the epoch {first - opened:.2f} s later")
    print(f"{held}: {128_000 / passed:,.0f} images/s, peak {memory:.2f} GiB")


def peak_memory() -> int:
    """KiB that this process has had in memory at most; what getrusage says includes the parent's at the fork."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])


def main(arguments: Arguments) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'set':<12} {'what':<32} {'images/s':>10} {'per core·s':>12} {'of decoder':>10}")
    small = {"augmentation": "crop_flip", "evaluation": None}
    photographs = {"augmentation": "resize_crop_flip", "image_size": 224, "evaluation": None}
    measure("small", lambda: parquet_images(arguments.cifar, **small).train, arguments)
    measure("photographs", lambda: parquet_images(arguments.photographs, **photographs).train, arguments)
    if arguments.rows:
        large(arguments.rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(sys.argv[2])
    else:
        main(tyro.cli(Arguments, description=__doc__))
