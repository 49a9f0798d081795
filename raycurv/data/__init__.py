"""Data sets: Parquet image sets and tensors, visited in one global order by any number of workers."""

from raycurv.data.errors import DataError
from raycurv.data.loader import Loader
from raycurv.data.parquet import ParquetImages, parquet_images
from raycurv.data.shards import locate
from raycurv.data.source import Data, Source, StreamedSource, TensorSource, tensors

__all__ = [
    "Data",
    "DataError",
    "Loader",
    "ParquetImages",
    "Source",
    "StreamedSource",
    "TensorSource",
    "locate",
    "parquet_images",
    "tensors",
]
