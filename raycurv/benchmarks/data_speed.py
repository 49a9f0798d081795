"""How fast batches are made, beside the decoder alone, and what opening two million images takes.

As a script, ``python -m raycurv.benchmarks.data_speed FOLDER``, it measures opening and reading one folder.
"""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raycurv.data import Loader, ParquetImages, parquet_images
from raycurv.data.image_transforms import decode
from raycurv.data.prepare import Sample, write_split

SIDE = 32
HEAD = f"{'set':<12} {'what':<32} {'images/s':>10} {'per core·s':>12} {'of decoder':>10}"


Run = Callable[[], object]


def rates(images: Sequence[int], make_runs: Sequence[Callable[[], Run]], repeat: int) -> list[tuple[float, float]]:
    """Images a second of wall time and of processor time for each of the runs, the best of `repeat`.

    The runs take turns, so that a machine that slows down slows all of them. Making a run is not timed.
    """
    walls, works = [math.inf] * len(make_runs), [math.inf] * len(make_runs)
    for _ in range(repeat):
        for i, make_run in enumerate(make_runs):
            run = make_run()
            wall, work = time.perf_counter(), time.process_time()
            run()
            walls[i] = min(walls[i], time.perf_counter() - wall)
            works[i] = min(works[i], time.process_time() - work)
    return [(n / wall, n / work) for n, wall, work in zip(images, walls, works, strict=True)]


def measure(
    name: str, open_set: Callable[[], ParquetImages], *, threads: int, batch_size: int, repeat: int
) -> Iterator[str]:
    """The decoder alone, batches of bytes, and batches as the network takes them.

    Args:
        name: name of the data set in the table.
        open_set: function that opens the data set.
        threads: number of threads that decode.
        batch_size: number of images in a batch.
        repeat: number of measurements of each kind; the best counts.

    Yields:
        Lines of the table under :data:`HEAD`.
    """
    source, rows = open_set(), np.arange(min(len(open_set()), 10_000))
    held = [source.encoded(row) for row in rows.tolist()]
    parts = [held[i::threads] for i in range(threads)]

    def decode_all(encoded: Sequence[NDArray[np.uint8]]) -> None:
        for image in encoded:
            decode(image, source.picture.channels)

    def each(work: Callable[[Any], None], items: Sequence[Any]) -> Run:
        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, items))

        return run

    def batched() -> Run:
        fresh, batches = open_set(), [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        return each(lambda batch: fresh.read(batch, seed=0, epoch=0, training=True) and None, batches)

    def loaded() -> Run:
        loader = Loader(open_set(), batch_size=batch_size, seed=0, prefetch=threads)
        return lambda: [None for _ in loader.epoch(0)]

    kinds = ("the decoder alone", "decoded, augmented, batched", "the loader, normalised floats")
    found = rates([len(rows), len(rows), len(source)], [lambda: each(decode_all, parts), batched, loaded], repeat)
    for what, (wall, work) in zip(kinds, found, strict=True):
        yield f"{name:<12} {what:<32} {wall:>10,.0f} {work:>12,.0f} {work / found[0][1]:>10.0%}"


def write_photographs(folder: str, rows: int, side: int = 1024) -> None:
    """Write photographs of `side` pixels: shades, edges and a little noise, in JPEG.

    Args:
        folder: folder of the set.
        rows: number of photographs.
        side: height and width in pixels.
    """

    def samples() -> Iterator[Sample]:
        draw = np.random.default_rng(0)
        y, x = np.mgrid[:side, :side]
        for row in range(rows):
            waves = draw.uniform(40, 200, (3, 2))
            pixels = np.stack([128 + 90 * np.sin(y / a) * np.cos(x / b) for a, b in waves], 2)
            pixels = pixels + 30 * ((y // 96 + x // 64) % 2)[..., None] + draw.normal(0, 6, pixels.shape)
            buffer = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            yield buffer.getvalue(), "", row % 2

    write_split(folder, "train", samples(), ["0", "1"], groups_per_shard=1000)


def _large_samples(rows: int) -> Iterator[Sample]:
    """JPEG images that differ in bytes after their end, so that nothing is stored once for all.

    Yields:
        One sample after the other.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "JPEG")
    for row in range(rows):
        yield buffer.getvalue() + row.to_bytes(8, "big"), "", row % 1000


def large(rows: int) -> Iterator[str]:
    """Write a large set, and open and read it in a process of its own.

    Yields:
        Lines of the result.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = [str(label) for label in range(1000)]
        write_split(folder, "train", _large_samples(rows), names, groups_per_shard=1000)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        yield f"\na set of {rows:,} rows in {rows // 100:,} row groups, {size / 2**30:.1f} GiB"
        command = [sys.executable, "-m", "raycurv.benchmarks.data_speed", folder]
        yield subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def probe(folder: str) -> str:
    """What a worker needs to open and read the large set."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    source = parquet_images(folder, augmentation="crop_flip").train
    opened = time.perf_counter()
    batches = iter(Loader(source, batch_size=128, seed=0).epoch(0, start=len(source) // 256))
    next(batches)
    first = time.perf_counter()
    images = sum(len(targets) for _, targets in itertools.islice(batches, 1000))
    passed = time.perf_counter() - first
    memory = peak_memory() / 2**20
    held = "in memory" if source.in_memory else "streamed"
    return (
        f"opened in {opened - start:.2f} s; the batch in the middle of the epoch {first - opened:.2f} s later\n"
        f"{held}: {images / passed:,.0f} images/s, peak {memory:.2f} GiB"
    )


def peak_memory() -> int:
    """KiB that this process has had in memory at most; what getrusage says includes the parent's at the fork."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])


if __name__ == "__main__":
    sys.stdout.write(probe(sys.argv[1]) + "\n")
