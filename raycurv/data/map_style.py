"""Map-style data sets of torch, torchvision and Hugging Face `datasets`, visited in the one global order.

Such a data set has ``len(dataset)`` and ``dataset[row]``. Random transforms get random numbers of (seed, epoch, row).
So neither order, number of workers nor interruption changes a sample. This holds for numbers that torch draws: a data
set that draws others is refused when it is opened.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from raycurv.data.errors import DataError
from raycurv.data.image_transforms import sample_keys
from raycurv.data.order import Rows
from raycurv.data.random_draws import KeptGenerators, SeededDraws, SeedingWatch
from raycurv.data.source import Data, Source, TensorSource, converted

Column = str | int
Columns = Column | Sequence[Column]
_PROBED = 4  # rows that are read twice when a data set is opened
_REMEDY = (
    "Draw with torch's functions, or seed another library's generator from torch.randint in the transform; or read "
    "every sample once and for all with preload=True"
)


@dataclass(frozen=True)
class SampleReader:
    """Rows of a map-style data set as tensors.

    Attributes:
        dataset: has ``len(dataset)`` and ``dataset[row]``.
        inputs: column of the inputs, or several columns of one shape, which are stacked: (columns, …).
        targets: column of the targets.
        classes: names of the classes, of which the targets are numbers; None where they are not.

    Raises:
        DataError: `dataset` is not map-style or has no rows.
    """

    dataset: Any
    inputs: Columns
    targets: Column
    classes: tuple[str, ...] | None

    def __post_init__(self) -> None:
        require_map_style(self.dataset)

    def stacked(self, samples: Sequence[tuple[Tensor, Tensor]], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of several samples, (B, …) each.

        Raises:
            DataError: their shapes or dtypes differ.
        """
        inputs, targets = zip(*samples, strict=True)
        return _stacked(inputs, rows, "inputs of the rows"), _stacked(targets, rows, "targets of the rows")

    def sample(self, row: int) -> tuple[Tensor, Tensor]:
        """Inputs and target of one row.

        Raises:
            DataError: it cannot be read, has no such column, holds no tensor, image or number, or its label is not one
                of the classes.
        """
        where = f"row {row} of {type(self.dataset).__name__}"
        try:
            item = self.dataset[row]
        except Exception as error:
            raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        if isinstance(self.inputs, (str, int)):
            inputs = _tensor(item, self.inputs, where)
        else:
            inputs = _stacked([_tensor(item, name, where) for name in self.inputs], self.inputs, f"columns of {where}:")
        target = _tensor(item, self.targets, where)
        if self.classes is not None and not (target.numel() == 1 and 0 <= target.item() < len(self.classes)):
            allowed = f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            raise DataError(f"{where} has the label {target.tolist()}; {allowed}")
        return inputs, target


class MapStyleSource:
    """A map-style data set as a source of samples; ``dataset[row]`` is called from several threads at once.

    Args:
        reader: reader of the data set.

    Raises:
        DataError: a sample cannot become tensors, or draws random numbers that are not torch's.
    """

    in_memory = True  # visited by one permutation
    skipped = 0

    def __init__(self, reader: SampleReader) -> None:
        self.reader, self.classes = reader, reader.classes
        self.row_groups: tuple[int, ...] = (len(reader.dataset),)
        self._no_samples = self._probed()
        self.input_shape: tuple[int, ...] = tuple(self._no_samples[0].shape[1:])

    def __len__(self) -> int:
        return self.row_groups[0]

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The samples `rows`; the transforms of the data set also work where not `training`.

        Raises:
            DataError: a row cannot be read, or the shapes of two rows differ.
        """
        if len(rows) == 0:
            return self._no_samples
        generator, samples = torch.Generator(), []
        with SeededDraws(generator):
            for row, key in zip(rows.tolist(), sample_keys(seed, epoch, rows).tolist(), strict=True):
                generator.manual_seed(key)
                samples.append(self.reader.sample(row))
        return self.reader.stacked(samples, rows.tolist())

    def convert(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs as the network takes them: bytes are scaled to [0, 1]."""
        return converted(inputs, dtype)

    def _probed(self) -> tuple[Tensor, Tensor]:
        """Read some rows twice; returns inputs and targets of no sample, in their shapes and dtypes.

        Raises:
            DataError: the two differ, or the global generators have moved.
        """
        kind = type(self.reader.dataset).__name__
        rows = np.unique(np.linspace(0, len(self) - 1, _PROBED).astype(np.int64))
        with KeptGenerators() as kept, SeedingWatch() as watch:
            first, second = (self.read(rows, seed=0, epoch=0, training=True) for _ in range(2))
            moved = kept.moved()
        if watch.seen:
            raise DataError(f"{kind} seeds torch when it reads a row, which disturbs dropout. {_REMEDY}")
        if moved:
            raise DataError(f"{kind} draws from the global generator of {moved}, which samples share. {_REMEDY}")
        if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            raise DataError(f"two reads of one row of {kind} differ: it draws from a generator of its own. {_REMEDY}")
        return first[0][:0], first[1][:0]


def from_dataset(
    dataset: Any,
    *,
    evaluation: Any = None,
    inputs: Columns = 0,
    targets: Column = 1,
    classes: Sequence[str] | None = None,
    preload: bool = False,
) -> Data:
    """A map-style data set of torch, torchvision or Hugging Face `datasets` as the data of a run.

    Tensors, arrays, images of Pillow and numbers become tensors. Images are (channels, height, width) bytes.

    Args:
        dataset: training set, with ``len(dataset)`` and ``dataset[row]``.
        evaluation: evaluation set of the same kind, usually with transforms that are not random.
        inputs: column of the inputs: a position in a tuple, or a key of a dict. Several columns are stacked.
        targets: column of the targets.
        classes: names of the classes; None takes ``dataset.classes`` or the `ClassLabel` of the column, if there.
        preload: read every sample once, now, and hold them as tensors. Random transforms then draw once.

    Raises:
        DataError: the data set is not map-style (an `IterableDataset`, a `DatasetDict`, a `DataLoader`, …) or has no
            rows, a sample cannot become tensors, a label is not one of `classes`, or random transforms draw from
            something else than torch without `preload`.
    """

    def source(found: Any, names: Sequence[str] | None) -> Source:
        names = classes_of(found, targets) if names is None else names
        reader = SampleReader(found, inputs, targets, None if names is None else tuple(names))
        return preloaded(reader) if preload else MapStyleSource(reader)

    train = source(dataset, classes)
    return Data(train, None if evaluation is None else source(evaluation, train.classes))


def preloaded(reader: SampleReader) -> TensorSource:
    """All samples as tensors, read in this thread; random transforms draw from generators seeded with 0."""
    rows = range(len(reader.dataset))
    with KeptGenerators():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        samples = [reader.sample(row) for row in rows]
    return TensorSource(*reader.stacked(samples, rows), reader.classes)


def require_map_style(dataset: Any) -> None:
    """Refuse what has no numbered rows.

    Raises:
        DataError: it has none; the message says what to give.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise DataError("a DataLoader has an order of its own; give its data set: from_dataset(loader.dataset)")
    if isinstance(dataset, Mapping):
        raise DataError(f"{kind} holds several splits ({', '.join(map(str, dataset))}); give one: data['train']")
    numbered = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not numbered or isinstance(dataset, (str, IterableDataset)):
        raise DataError(
            f"{kind} is not map-style: it needs len(dataset) and dataset[row]. The order of the samples, going on in "
            "the middle of an epoch and sharing among workers all need numbered rows, which an IterableDataset has "
            "not. Open it map-style (streaming=False), or write it to Parquet files (raycurv.data.parquet_images)"
        )
    if len(dataset) == 0:
        raise DataError(f"{kind} has no rows; at least one is needed")


def classes_of(dataset: Any, targets: Column) -> Sequence[str] | None:
    """Names of the classes: ``classes`` of torchvision, or the `ClassLabel` of Hugging Face; None without either."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return getattr(features.get(targets), "names", None)
    found = getattr(dataset, "classes", None)
    return [str(name) for name in found] if isinstance(found, (list, tuple)) else None


def _tensor(item: Any, column: Column, where: str) -> Tensor:
    """One column of an item.

    Raises:
        DataError: it has no such column, or this holds no tensor, image or number.
    """
    try:
        value = item[column]
    except (KeyError, IndexError, TypeError) as error:
        names = ", ".join(map(repr, item)) if isinstance(item, Mapping) else f"an item of type {type(item).__name__}"
        raise DataError(
            f"{where} has no column {column!r}: it has {names}. Name them by inputs= and targets="
        ) from error
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image.Image):
        pixels = np.array(value if value.mode in ("L", "RGB") else value.convert("RGB"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"column {column!r} of {where} holds {type(value).__name__}, which is no tensor, image or number: make "
            "it one in the transform of the data set"
        ) from error


def _stacked(tensors: Sequence[Tensor], names: Sequence[Any], what: str) -> Tensor:
    """Tensors of one shape and dtype, (N, …).

    Raises:
        DataError: they differ.
    """
    first = tensors[0]
    for tensor, name in zip(tensors, names, strict=True):
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"{what} {names[0]!r} and {name!r} differ: {_kind(first)} and {_kind(tensor)}. Resize, pad or cast "
                "them in the transform of the data set"
            )
    return torch.stack(list(tensors))


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
