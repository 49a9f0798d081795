"""Convert images into Parquet shards that the other jobs read: ``python jobs/prepare_parquet.py folder --help``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from raycurv.data import DataError
from raycurv.data.prepare import image_folder, torchvision_set


@dataclass(frozen=True)
class Folder:
    """Images in folders named after their classes, under train/, validation/ and test/ or directly."""

    root: Path
    """The tree of images."""
    output: str
    """Where the shards go: a folder, s3://bucket/folder or gs://bucket/folder."""
    rows_per_group: int = 100
    """Images of a row group, the unit of reading."""
    seed: int = 0
    """Of the order in which the images are written."""

    def convert(self) -> dict[str, int]:
        """Write the shards and say how many images each split has."""
        return image_folder(self.root, self.output, seed=self.seed, rows_per_group=self.rows_per_group)


@dataclass(frozen=True)
class Torchvision:
    """A classification set of torchvision.datasets that has been downloaded."""

    name: str
    """The class in torchvision.datasets, for example CIFAR10."""
    root: Path
    """The folder that torchvision calls root."""
    output: str
    """Where the shards go: a folder, s3://bucket/folder or gs://bucket/folder."""
    rows_per_group: int = 100
    """Images of a row group, the unit of reading."""

    def convert(self) -> dict[str, int]:
        """Write the shards and say how many images each split has."""
        return torchvision_set(self.name, self.root, self.output, rows_per_group=self.rows_per_group)


if __name__ == "__main__":
    arguments = tyro.cli(Folder | Torchvision, description=__doc__)  # type: ignore[call-overload]
    try:
        for split, rows in arguments.convert().items():
            print(f"{split}: {rows} images")
    except DataError as error:
        raise SystemExit(f"prepare_parquet: {error}") from error
