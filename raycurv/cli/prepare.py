"""``raycurv prepare``: data sets in the form that recipes read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class PrepareDigits:
    """Write scikit-learn's handwritten digits, 1,797 images of 8 × 8 pixels: the data of `raycurv train digits`."""

    EXAMPLE: ClassVar = "raycurv prepare digits"
    LOADS: ClassVar = "scikit-learn"

    output: str | None = None
    """Folder of the shards, s3://bucket/folder or gs://bucket/folder. By default digits in the folder RAYCURV_DATA, or
    in ~/raycurv-data."""

    def run(self) -> None:
        """Write them, unless they are there already."""
        from raycurv.data.digits import prepare_digits
        from raycurv.data.shards import data_folder

        print(f"the digits are in {prepare_digits(self.output or str(data_folder() / 'digits'))}")


@dataclass(frozen=True)
class PrepareTorchvision:
    """Convert a classification set of torchvision.datasets, such as MNIST, CIFAR10 or CIFAR100."""

    USAGE: ClassVar = "NAME [options]"
    POSITIONAL: ClassVar = "name"
    EXAMPLE: ClassVar = "raycurv prepare torchvision CIFAR10 --download"
    LOADS: ClassVar = "torch"

    name: str
    """Class in torchvision.datasets, such as CIFAR10."""

    root: Path | None = None
    """Folder that torchvision calls root. By default downloads in the folder RAYCURV_DATA, or in ~/raycurv-data."""

    output: str | None = None
    """Folder of the shards, s3://bucket/folder or gs://bucket/folder. By default the name in small letters, in the
    folder RAYCURV_DATA or in ~/raycurv-data."""

    download: bool = False
    """Download the set if it is not in --root."""

    rows_per_group: int = 100
    """Images of a row group, the unit of reading."""

    def run(self) -> None:
        """Write the shards and print how many images each split has."""
        from raycurv.data.prepare import torchvision_set
        from raycurv.data.shards import data_folder

        root, output = self.root or data_folder() / "downloads", self.output or str(data_folder() / self.name.lower())
        written = torchvision_set(self.name, root, output, rows_per_group=self.rows_per_group, download=self.download)
        _show(written)


@dataclass(frozen=True)
class PrepareFolder:
    """Convert images in folders named after their classes, under train/, validation/ and test/ or directly."""

    USAGE: ClassVar = "ROOT --output OUTPUT [options]"
    POSITIONAL: ClassVar = "root"
    EXAMPLE: ClassVar = "raycurv prepare folder photographs --output s3://bucket/photographs"
    LOADS: ClassVar = "torch"

    root: Path
    """Tree of images."""

    output: str
    """Folder of the shards, s3://bucket/folder or gs://bucket/folder."""

    rows_per_group: int = 100
    """Images of a row group, the unit of reading."""

    seed: int = 0
    """Seed of the order in which the images are written."""

    def run(self) -> None:
        """Write the shards and print how many images each split has."""
        from raycurv.data.prepare import image_folder

        _show(image_folder(self.root, self.output, seed=self.seed, rows_per_group=self.rows_per_group))


def _show(written: dict[str, int]) -> None:
    for split, rows in written.items():
        print(f"{split}: {rows} images")
