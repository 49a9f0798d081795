"""Networks as MLflow models: a code file and a weights file, so that loading a model unpickles nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sysconfig
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path

import mlflow
import numpy as np

# MLflow recommends type hints and input examples, which the signature makes unnecessary.
warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")

import mlflow.pyfunc  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import LoggedModelStatus  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import ModelSignature  # noqa: E402
from mlflow.types import Schema, TensorSpec  # noqa: E402

from raycurv.tracking import model_files  # noqa: E402
from raycurv.tracking.run_page import model_name  # noqa: E402
from raycurv.tracking.settings import resolve_uri  # noqa: E402
from raycurv.train.checkpoint import CheckpointStore  # noqa: E402
from raycurv.train.configuration import RunConfig  # noqa: E402
from raycurv.train.export import TrainedModel, load_trained_model  # noqa: E402

NAME = "model"  # of every model in earlier versions, and in addresses such as runs:/ID/model
PYFUNC_CODE = Path(__file__).with_name("pyfunc_model.py")


def log(run: str, checkpoints: str, trust: Collection[str] | None = None) -> None:
    """Log the network of the newest checkpoint as the model of a run, or of the best one if the run chooses it.

    Args:
        run: id of the run.
        checkpoints: folder or address of its checkpoints.
        trust: modules whose functions the checkpoint may name; None takes those of ``RAYCURV_TRUST``.

    Raises:
        CheckpointError: there is no checkpoint that can be read from here.
        UntrustedCodeError: the checkpoint names a function of another module.
    """
    trained = _trained(CheckpointStore(checkpoints), trust)
    if _is_logged(run, trained.step):
        return  # by a driver that died before it knew, or by an earlier start of a finished run
    if trained.classes is not None:
        MlflowClient().log_dict(run, {"classes": trained.classes}, "classes.json")  # such as the draw of ImageNet-100
    config = trained.config
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run, log_system_metrics=False):
        # MLflow links the metrics of the run at this step to the model, so that models can be ranked by them.
        mlflow.pyfunc.log_model(
            name=model_name(config.name),
            step=trained.step,
            python_model=str(PYFUNC_CODE),
            artifacts={"network": str(model_files.save(Path(folder) / "network", trained))},
            signature=_signature(trained),
            input_example=_input_example(trained),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy")],
            code_paths=_code(config),
            metadata={"raycurv": importlib.metadata.version("raycurv"), "optimizer": config.optimizer},
        )


def register(client: MlflowClient, run: str, name: str) -> None:
    """Register the newest model of a run as a new version of the registered model `name`, once.

    Raises:
        FileNotFoundError: the run has no model.
    """
    model = _newest_model(client, run)
    if model is None:
        raise FileNotFoundError(f"run {run} has no logged model to register as {name!r}")
    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    source = f"models:/{model}"
    if not any(version.source == source for version in client.search_model_versions(f"name = '{name}'")):
        client.create_model_version(name, source, run, model_id=model)


def _newest_model(client: MlflowClient, run: str) -> str | None:
    """Id of the last complete model of a run; None if there is none."""
    outputs = client.get_run(run).outputs
    models = sorted(outputs.model_outputs if outputs else [], key=lambda output: output.step)
    ids = [str(output.model_id) for output in models]
    ready = [model for model in ids if client.get_logged_model(model).status == LoggedModelStatus.READY]
    return ready[-1] if ready else None


def _is_logged(run: str, step: int) -> bool:
    """Whether a run has a complete model of a step."""
    client = MlflowClient()
    outputs = client.get_run(run).outputs
    models = [output.model_id for output in (outputs.model_outputs if outputs else []) if output.step == step]
    return any(client.get_logged_model(model).status == LoggedModelStatus.READY for model in models)


def _trained(store: CheckpointStore, trust: Collection[str] | None) -> TrainedModel:
    if store.best() is None:
        return load_trained_model(store, trust=trust)
    config = store.config()
    averaged = config is not None and (config.best_metric or "").startswith("averaged/")
    return load_trained_model(store, averaged=averaged, best=True, trust=trust)


def fetch(uri: str, server: str | None, runs: str, trust: Collection[str] | None = None) -> TrainedModel:
    """Load the network of a logged model.

    Args:
        uri: address of the model, such as ``runs:/…/model``.
        server: tracking URI; None is the SQLite file in the folder `runs`.
        runs: folder of all runs.
        trust: modules whose functions the model may name; None takes those of ``RAYCURV_TRUST``.

    Raises:
        UntrustedCodeError: the model names a function of another module.
        FileNotFoundError: there is no such model, or another package logged it.
    """
    mlflow.set_tracking_uri(resolve_uri(server, runs))
    with tempfile.TemporaryDirectory() as folder:
        try:
            local = Path(mlflow.artifacts.download_artifacts(_resolved(uri), dst_path=folder))
        except (MlflowException, OSError) as error:
            raise FileNotFoundError(f"there is no model at {uri} in {mlflow.get_tracking_uri()}: {error}") from error
        found = next(iter(sorted(local.rglob(model_files.WEIGHTS))), None)
        if found is None:
            raise FileNotFoundError(f"{uri} holds no {model_files.WEIGHTS}: it is no model that this package logged")
        return model_files.load(found.parent, trust)


def _resolved(uri: str) -> str:
    """The address of a run's model by its id, where ``runs:/ID/model`` names the only model of a run."""
    run, _, name = uri.removeprefix("runs:/").partition("/")
    if not uri.startswith("runs:/") or name != NAME:
        return uri
    model = _newest_model(MlflowClient(), run)
    return uri if model is None else f"models:/{model}"


def _input_example(trained: TrainedModel) -> np.ndarray:
    return np.zeros((1, *trained.input_shape), _input_type(trained))


def _input_type(trained: TrainedModel) -> np.dtype:
    return np.dtype(np.float64 if trained.config.precision == "fp64" else np.float32)


def _signature(trained: TrainedModel) -> ModelSignature:
    outputs = TensorSpec(np.dtype(np.float32), (-1, -1))
    return ModelSignature(Schema([TensorSpec(_input_type(trained), (-1, *trained.input_shape))]), Schema([outputs]))


def _code(config: RunConfig) -> list[str] | None:
    """Package or module of a user's own network; None if it is installed, since every other process finds it."""
    name = config.model.target.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(name)
    if name == "raycurv" or spec is None or spec.origin is None:
        return None
    path = Path(spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin)
    installed = Path(sysconfig.get_paths()["purelib"])
    return None if installed in path.parents else [str(path)]
