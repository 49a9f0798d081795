"""Description of the data of a run: name, digest, source, numbers of samples and shape of a sample."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raycurv.train.configuration import RunConfig
from raycurv.train.moved_paths import current_path


@dataclass(frozen=True)
class DataSummary:
    """Description of the data of a run.

    Attributes:
        name: last part of the folder or address of the data, or the name of the function that builds them.
        digest: digest of that function, its settings and the number of training samples; not of the samples.
        source: folder or address of the data, or the import path of the function.
        training_samples: number of training samples.
        evaluation_samples: number of samples of the evaluation set; 0 if there is none.
        input_shape: shape of one sample.
        num_classes: number of classes; None where the targets are not classes.
    """

    name: str
    digest: str
    source: str
    training_samples: int
    evaluation_samples: int
    input_shape: tuple[int, ...]
    num_classes: int | None

    @classmethod
    def of(cls, config: RunConfig, shape: Mapping[str, Any], evaluation_samples: int = 0) -> DataSummary:
        """Describe the data of a configuration.

        Args:
            config: configuration of the run.
            shape: what :func:`raycurv.train.build.data_shape` returns.
            evaluation_samples: number of samples of the evaluation set.
        """
        target = current_path(config.data.target)
        path = str(config.data.settings.get("path") or "").rstrip("/")
        named = {
            key: path.rpartition("/")[2] if key == "path" else value for key, value in config.data.settings.items()
        }
        samples = int(shape.get("training_samples", 0))
        text = json.dumps([target, named, samples], sort_keys=True, default=str)
        return cls(
            name=path.rpartition("/")[2] or target.rpartition(":")[2],
            digest=hashlib.sha256(text.encode()).hexdigest()[:8],
            source=path or target,
            training_samples=samples,
            evaluation_samples=evaluation_samples,
            input_shape=tuple(shape["input_shape"]),
            num_classes=shape["num_classes"],
        )

    def to_json(self) -> str:
        """The description as JSON, read back by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DataSummary:
        """Read the text of :meth:`to_json`.

        Raises:
            ValueError: a field is missing or unknown, or the text is no JSON.
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "input_shape": tuple(values["input_shape"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"it is no description of data: {error}") from error
