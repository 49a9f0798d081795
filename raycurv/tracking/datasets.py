"""Data of a run as MLflow's data sets: name, digest, schema, rows, and their context."""

from __future__ import annotations

import json

import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types import Schema, TensorSpec

from raycurv.train.data_summary import DataSummary

CONTEXT = "mlflow.data.context"
TRAINING, TEST = "training", "test"


def dataset_inputs(summary: DataSummary) -> list[DatasetInput]:
    """The training set and, if there is one, the evaluation set, as inputs of a run."""
    rows = {TRAINING: summary.training_samples, TEST: summary.evaluation_samples}
    return [
        DatasetInput(_dataset(summary, context, count), [InputTag(CONTEXT, context)])
        for context, count in rows.items()
        if count
    ]


def _dataset(summary: DataSummary, context: str, rows: int = 0) -> Dataset:
    """One set.

    Args:
        summary: description of the data of a run.
        context: ``training`` or ``test``.
        rows: number of samples.
    """
    targets = TensorSpec(np.dtype(np.float32 if summary.num_classes is None else np.int64), (-1,), "targets")
    inputs = TensorSpec(np.dtype(np.float32), (-1, *summary.input_shape), "inputs")
    schema = {"features": Schema([inputs]).to_json(), "targets": Schema([targets]).to_json()}
    return Dataset(
        name=f"{summary.name}-{context}",
        digest=f"{summary.digest}-{context}",
        source_type="code" if ":" in summary.source and "://" not in summary.source else "local",
        source=json.dumps({"uri": summary.source}),
        schema=json.dumps({"mlflow_tensorspec": schema}),
        profile=json.dumps({"num_rows": rows} | ({"num_classes": c} if (c := summary.num_classes) else {})),
    )
