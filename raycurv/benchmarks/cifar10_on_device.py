"""CIFAR-10 out of tensor files, held on the device: seconds until a network like airbench94's reaches a target.

It needs torch alone. On a machine with the Parquet shards and one with a GPU::

    python -m raycurv.benchmarks.cifar10_on_device FOLDER --write-from cifar10
    python -m raycurv.benchmarks.cifar10_on_device FOLDER --device cuda --precision bf16 --channels-last --target 0.94

FOLDER then holds ``train.pt`` and ``test.pt``, each a mapping of ``images``, (N, 3, H, W) or (N, H, W, 3) uint8, and
``labels``, (N,). The files that airbench94's loader writes (Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*,
2024) have this form. Augmentation runs on the device: shifts of up to two pixels into a mirrored border, and flips.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from raycurv import optim
from raycurv.arguments import require
from raycurv.models.airbench import airbench
from raycurv.objective import Objective

if TYPE_CHECKING:
    from raycurv.data import Source

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SHIFT = 2  # pixels
MIXED = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_STATISTICS_BATCHES = 20  # for the running statistics of the weights to evaluate


@dataclass(frozen=True)
class TargetRun:
    """One run.

    Attributes:
        optimizer: name of the registered optimizer.
        epochs: passes over the training set.
        batch_size: samples of a step; the last batch of an epoch is left out where it is smaller.
        target: test accuracy that ends the run; 1 never does.
        width: factor of the network's channels.
        precision: fp32, or bf16 or fp16 by autocast.
        channels_last: whether images and weights lie in memory with their channels last.
        compile: whether the passes of a step are compiled.
        seed: seed of weights, order and augmentation.
    """

    optimizer: str = "auto"
    epochs: int = 10
    batch_size: int = 1024
    target: float = 1.0
    width: float = 1.0
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(f"TargetRun.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("TargetRun.target", self.target, 0 < self.target <= 1, "above 0 and at most 1")
        require("TargetRun.precision", self.precision, self.precision in MIXED, f"one of {', '.join(MIXED)}")


@dataclass(frozen=True)
class ImageTensors:
    """A split on the device: normalised images (N, 3, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, file: Path, device: torch.device, *, channels_last: bool = False) -> ImageTensors:
        """Read a file.

        Raises:
            ValueError: the file holds other tensors.
        """
        loaded = torch.load(file, weights_only=True, map_location="cpu")
        images, labels = loaded["images"], loaded["labels"]
        if images.dtype != torch.uint8 or images.dim() != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{file} holds images {tuple(images.shape)} of {images.dtype} and labels {tuple(labels.shape)}; it "
                "must hold images (N, 3, H, W) or (N, H, W, 3) of torch.uint8 and labels (N,)"
            )
        if images.shape[1] != len(MEAN):
            images = images.permute(0, 3, 1, 2)
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (MEAN, STD))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        normalised = images.to(device).float().div_(255).sub_(mean).div_(std)
        return cls(normalised.contiguous(memory_format=layout), labels.to(device).long())


def write(folder: Path, splits: dict[str, Source]) -> None:
    """Write the splits of a Parquet image set as tensor files.

    Raises:
        ValueError: the images of a split cannot be held decoded.
    """
    from raycurv.data.decoded_images import decoded
    from raycurv.data.source import Data

    folder.mkdir(parents=True, exist_ok=True)
    for name, source in splits.items():
        found = decoded(Data(source))
        if found is None:
            raise ValueError(f"the images of {name!r} do not fit in memory")
        train: Any = found.train
        torch.save(
            {"images": torch.from_numpy(train.pixels), "labels": torch.from_numpy(train.labels)}, folder / f"{name}.pt"
        )


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of (B, C, H, W) shifted by up to :data:`SHIFT` pixels both ways, half of them flipped left to right."""
    samples, channels, height, width = images.shape
    device, layout = images.device, torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    padded = functional.pad(images, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, samples, 1), generator=generator, device=device)
    flip = torch.rand(samples, 1, generator=generator, device=device) < 0.5
    across = torch.arange(width, device=device)
    rows = down + torch.arange(height, device=device)
    columns = right + torch.where(flip, across.flip(0), across)
    sample = torch.arange(samples, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    cut = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return cut.contiguous(memory_format=layout)


def batches(data: ImageTensors, run: TargetRun, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches in random order.

    Yields:
        Images and labels.
    """
    order = torch.randperm(len(data.labels), generator=generator, device=data.labels.device)
    for rows in order.split(run.batch_size):
        if len(rows) == min(run.batch_size, len(order)):
            yield augmented(data.images[rows], generator), data.labels[rows]


def train_to_target(training: ImageTensors, test: ImageTensors, run: TargetRun) -> Iterator[dict[str, float]]:
    """Train until the target or the last epoch.

    Yields:
        After each epoch: its number, the mean loss, the test accuracy, and seconds of training so far.

    Raises:
        RuntimeError: a step was not finite, and not for an overflow of float16.
    """
    torch.manual_seed(run.seed)
    device, classes = training.images.device, int(training.labels.max()) + 1
    model = airbench(classes, tuple(training.images.shape[1:]), run.width).to(device)
    if run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    objective = Objective(model, nn.CrossEntropyLoss(label_smoothing=0.2), compile=run.compile)
    samples = len(training.labels)
    horizon = optim.Horizon(run.epochs, max(1, samples // run.batch_size), samples)
    optimizer = optim.create(run.optimizer, model, horizon=horizon)
    generator = torch.Generator(device).manual_seed(run.seed)
    seconds = 0.0
    for epoch in range(1, run.epochs + 1):
        started, losses, failed = time.perf_counter(), [], []
        model.train()
        for inputs, targets in batches(training, run, generator):
            batch = objective.batch(inputs, targets)
            with _autocast(run, device):
                report = optimizer.step(batch)
            losses.append(report.loss.detach())
            failed.append(~batch.is_sound(report.finite, report.loss))
        mean_loss = float(torch.stack(losses).mean())  # waits for the device
        seconds += time.perf_counter() - started
        if bool(torch.stack(failed).any()):
            raise RuntimeError(f"a step of epoch {epoch} of {run.optimizer!r} was not finite (mean loss {mean_loss:g})")
        reached = accuracy(model, optimizer, training, test, run)
        yield {"epoch": epoch, "loss": mean_loss, "accuracy": reached, "seconds": seconds}
        if reached >= run.target:
            return


@torch.no_grad()
def accuracy(
    model: nn.Module, optimizer: optim.StepOptimizer, training: ImageTensors, test: ImageTensors, run: TargetRun
) -> float:
    """Test accuracy of the weights to evaluate; their running statistics come from the first training batches."""
    with optimizer.evaluation_weights(), _autocast(run, test.images.device):
        buffers = [buffer.clone() for buffer in model.buffers()]
        if optimizer.evaluates_other_weights:
            update_bn(training.images[: _STATISTICS_BATCHES * run.batch_size].split(run.batch_size), model)
        model.eval()
        right = [
            (model(images).argmax(1) == labels).sum()
            for images, labels in zip(test.images.split(2000), test.labels.split(2000), strict=True)
        ]
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return float(torch.stack(right).sum()) / len(test.labels)


def _autocast(run: TargetRun, device: torch.device) -> AbstractContextManager[object]:
    dtype = MIXED[run.precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tensor files, or train and print one line of JSON per epoch."""
    parser = argparse.ArgumentParser(prog="python -m raycurv.benchmarks.cifar10_on_device", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write-from", metavar="PARQUET")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in asdict(TargetRun()).items():
        option = f"--{name.replace('_', '-')}"
        kind: dict[str, Any] = {"action": "store_true"} if value is False else {"type": type(value), "default": value}
        parser.add_argument(option, **kind)
    given = vars(parser.parse_args(arguments))
    folder, source, device = given.pop("folder"), given.pop("write_from"), torch.device(given.pop("device"))
    run = TargetRun(**given)
    if source is not None:
        from raycurv.data import parquet_images

        data = parquet_images(source)
        write(folder, {"train": data.train, **({} if data.evaluation is None else {"test": data.evaluation})})
        return
    how = {"channels_last": run.channels_last}
    training, test = (ImageTensors.load(folder / f"{split}.pt", device, **how) for split in ("train", "test"))
    for line in train_to_target(training, test, run):
        sys.stdout.write(json.dumps({**asdict(run), **line}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
