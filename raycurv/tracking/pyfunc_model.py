"""Code of a logged network. MLflow runs this file, which reads the weights and unpickles nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]

from raycurv.tracking import model_files
from raycurv.train.precision import dtype_of
from raycurv.train.trust import default_trust


class Network:
    """A logged network, from a batch as an array to its outputs as an array.

    A batch is an array of numbers of shape (N, *input_shape). For images this is (N, channels, height, width), scaled
    and normalised as in training.
    """

    def load_context(self, context: Any) -> None:
        """Build the network from the files of the logged model."""
        folder = Path(context.artifacts["network"])
        # MLflow runs this file and imports the code beside it, so both are trusted by whoever loads the model.
        self.trained = model_files.load(folder, (*default_trust(), *model_files.shipped_modules(folder)))
        self.dtype = dtype_of(self.trained.config.precision)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints as a schema
        """Outputs of the network, one row per sample.

        Raises:
            ValueError: the batch has another shape.
        """
        inputs = torch.from_numpy(np.ascontiguousarray(model_input))
        wanted = self.trained.input_shape
        if tuple(inputs.shape[1:]) != wanted:
            raise ValueError(
                f"a batch of shape {tuple(inputs.shape)}; it must be (samples, {', '.join(map(str, wanted))})"
            )
        with torch.no_grad():
            outputs = self.trained.model(inputs.to(self.dtype) if inputs.is_floating_point() else inputs)
        return np.asarray(outputs.float().numpy())


class Served(Network, PythonModel):
    """The network as MLflow's model class. MLflow would read type hints of a ``predict`` here as a schema of lists."""


mlflow.models.set_model(Served())
