"""The cluster's description, against Ray's own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def described() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def commands(described: dict[str, Any]) -> str:
    parts = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return "\n".join(command for part in parts for command in described[part])


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_it(described: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(described)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == 32


@pytest.mark.filterwarnings("ignore")
def test_ray_refuses_a_field_that_it_does_not_know(described: dict[str, Any]) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    described["max_wrokers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(described))


def test_every_start_of_ray_asks_for_the_token(described: dict[str, Any]) -> None:
    assert "export RAY_AUTH_MODE=token" in commands(described)
    starts = [line for line in commands(described).splitlines() if "ray start" in line]
    assert len(starts) == 2
    assert all("source ~/.raycurv.env" in line for line in starts)
    assert described["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_and_mlflow_are_reached_through_ssh_alone(described: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in commands(described)
    assert "mlflow server --host 127.0.0.1" in commands(described)
    assert "0.0.0.0" not in commands(described)


def test_mlflow_wants_a_password_and_answers_to_its_own_name_alone(described: dict[str, Any]) -> None:
    assert "--app-name basic-auth --allowed-hosts 127.0.0.1:5000,localhost:5000" in commands(described)
    assert "mlflow[auth]" in commands(described)
    assert described["file_mounts"]["~/.raycurv.mlflow"] == "~/.raycurv.mlflow"


@pytest.mark.filterwarnings("ignore")
def test_the_variant_for_google_cloud_is_one_that_ray_knows(described: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    (variant,) = [block for block in text.split("```yaml\n") if block.startswith("provider:")]
    described |= yaml.safe_load(variant.partition("```")[0])
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(described))
    assert described["provider"]["type"] == "gcp"


def test_the_package_is_installed_on_every_node(described: dict[str, Any]) -> None:
    assert described["file_mounts"]["~/raycurv"] == "."
    assert "raycurv[cluster]" in "\n".join(described["setup_commands"])
