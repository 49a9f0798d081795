"""Data sets: images, sentence pairs, tables and tensors, visited in one global order by any number of workers."""

from raycurv.data.csv_table import csv_table
from raycurv.data.errors import DataError
from raycurv.data.label_noise import noisy_images
from raycurv.data.loader import Loader
from raycurv.data.map_style import from_dataset
from raycurv.data.parquet import ParquetImages, parquet_images
from raycurv.data.reconstruction import reconstructions
from raycurv.data.shards import locate
from raycurv.data.source import Data, Source, StreamedSource, TensorSource, tensors
from raycurv.data.translation import multi30k, multi30k_text

__all__ = [
    "Data",
    "DataError",
    "Loader",
    "ParquetImages",
    "Source",
    "StreamedSource",
    "TensorSource",
    "csv_table",
    "from_dataset",
    "locate",
    "multi30k",
    "multi30k_text",
    "noisy_images",
    "parquet_images",
    "reconstructions",
    "tensors",
]
