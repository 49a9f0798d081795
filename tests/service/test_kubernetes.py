"""The manifest for Kubernetes: fields of KubeRay's RayJob, and commands that this project has."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "kubernetes"
# Fields of ray.io/v1 RayJob, of KubeRay 1.6.
SPEC = {"entrypoint", "backoffLimit", "submitterConfig", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture
def job() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "rayjob.yaml").read_text()))


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_manifest_has_the_fields_of_a_rayjob(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) == SPEC | {"rayClusterSpec"}
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == CLUSTER | {"headGroupSpec", "workerGroupSpecs"}
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    assert [set(group) for group in cluster["workerGroupSpecs"]] == [GROUP]
    assert all(isinstance(x, str) for x in cluster["headGroupSpec"]["rayStartParams"].values())
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_job_has_a_minute_for_its_last_checkpoint(job: dict[str, Any]) -> None:
    for container in containers(job):
        assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "60"} in container["env"]


def test_the_manifest_fits_kuberays_schema_where_it_is_at_hand(job: dict[str, Any]) -> None:
    import jsonschema

    near = Path(os.environ.get("RAYCURV_DATA", ROOT.parent / "shared" / "data")).parent
    schema = near / "kuberay" / "ray.io_rayjobs.yaml"
    if not schema.exists():
        pytest.skip(f"needs KubeRay's definition of a RayJob, in {schema}")
    versions = yaml.safe_load(schema.read_text())["spec"]["versions"]
    (version,) = (version for version in versions if version["name"] == "v1")
    jsonschema.validate(job, closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """A schema that allows no other fields than it lists, as the API server with strict validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    if parts.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return parts | ({"additionalProperties": False} if parts.get("properties") and "type" in parts else {})


def test_the_workers_of_the_command_are_those_of_the_cluster(job: dict[str, Any]) -> None:
    from raycurv.cli.parsing import parse
    from raycurv.cli.train import Train

    words = shlex.split(job["spec"]["entrypoint"])
    cluster = parse(Train, words[2:], "raycurv train").cluster
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (cluster.min_workers, cluster.max_workers) == (group["minReplicas"], group["maxReplicas"])
    assert (cluster.use_gpu, cluster.resume) == (True, "auto")  # a retry of Kubernetes continues the run


def test_the_command_and_the_image_exist(job: dict[str, Any]) -> None:
    from raycurv.recipes import registry

    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["raycurv", "train"]
    assert words[2] in registry.names()
    assert {container["image"] for container in containers(job)} == {"registry.example.org/raycurv:0.2.0"}
    assert f"rayproject/ray:{job['spec']['rayClusterSpec']['rayVersion']}-" in (FOLDER / "Dockerfile").read_text()


def test_every_container_knows_the_storage_and_mlflow(job: dict[str, Any]) -> None:
    for container in containers(job):
        names = {variable["name"] for variable in container["env"]}
        assert {"MLFLOW_TRACKING_URI", "RAYCURV_STORAGE"} <= names
        assert container["envFrom"] == [{"secretRef": {"name": "raycurv"}}]


def test_a_worker_that_is_to_end_announces_it_in_time(job: dict[str, Any]) -> None:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "DRAIN_NODE_REASON_PREEMPTION" in command
    assert pod["terminationGracePeriodSeconds"] > 90


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_the_runtime_environment() -> None:
    from ray.runtime_env import RuntimeEnv

    given = yaml.safe_load((FOLDER / "runtime_env.yaml").read_text())
    assert RuntimeEnv(**given)["uv"]["packages"] == given["uv"]["packages"]
