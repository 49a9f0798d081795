from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from raycurv import recipes
from raycurv.cli.main import main
from raycurv.cli.run_options import trusting
from raycurv.objective.collectives import Local
from raycurv.recipes.studies import STUDIES
from raycurv.service import Cluster
from raycurv.train import (
    CheckpointError,
    CheckpointStore,
    Component,
    ResumeError,
    RunConfig,
    UntrustedCodeError,
    load_trained_model,
    train,
)
from raycurv.train.trust import REGISTERED, default_trust, require_trusted, targets
from raycurv.train.weight_files import read_weights
from tests.service.problems import mine
from tests.train.problems import Kept, config

CANARY = """
from pathlib import Path

Path(__file__).with_name("imported").touch()


def network(*args, **settings):
    Path(__file__).with_name("called").touch()
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file when it is imported, and another one when it is called."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("RAYCURV_TRUST", "")
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    return folder


def untouched(canary: Path) -> bool:
    return sorted(path.name for path in canary.iterdir() if path.name != "__pycache__") == ["canary.py"]


def trained(folder: Path, **changes: Any) -> CheckpointStore:
    store = CheckpointStore(folder)
    train(config(max_steps=2, **changes), collectives=Local(), store=store, emit=Kept())
    return store


def tampered(folder: Path, **changes: Any) -> CheckpointStore:
    """The checkpoint of a run, whose stored configuration was changed by somebody else."""
    store = trained(folder)
    state = store.load()
    assert state is not None
    values = json.loads(state["config"]) | changes
    store.save(state | {"config": json.dumps(values)})
    (folder / "config.json").write_text(json.dumps(values))
    return store


NETWORK = {"target": "canary:network", "settings": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": NETWORK},
        {"data": NETWORK},
        {"loss": "canary:network"},
        {"weights": "canary:network"},
        {"metrics": {"own": NETWORK}},
    ],
)
def test_a_checkpoint_that_names_other_code_is_refused_before_any_import(
    tmp_path: Path, canary: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store = tampered(tmp_path / "run", **changes)
    with pytest.raises(UntrustedCodeError, match=r"names '.*', which is no model, .* allow it with --trust"):
        load_trained_model(store, trust=("tests.train",) if "model" not in changes else ())
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", store.uri])
    assert ended.value.code == 2
    assert "--trust" in capsys.readouterr().err
    assert untouched(canary)


def test_a_module_that_the_user_trusts_is_imported(tmp_path: Path, canary: Path) -> None:
    store = tampered(tmp_path / "run", model=NETWORK)
    with pytest.raises(CheckpointError, match="'canary:network' built a NoneType"):
        load_trained_model(store, trust=("canary", "tests"))
    assert not untouched(canary)


def test_a_run_is_not_resumed_with_a_configuration_that_was_changed(tmp_path: Path, canary: Path) -> None:
    store = tampered(tmp_path / "run", model=NETWORK)
    with pytest.raises(ResumeError, match=r"model\.target: 'canary:network' → 'tests.train.problems:network'"):
        train(config(max_steps=4), collectives=Local(), store=store, emit=Kept(), resume="must")
    assert untouched(canary)


@pytest.mark.parametrize(
    "target",
    [
        "os:system",
        "raycurv.train.build:inspect.os.system",
        "raycurv.data.prepare:write_folder",
        "raycurv.models.lenet:nn.Linear",
        "raycurv.models:lenet",
        "testsuite:network",
        "tests_of_mine.problems:network",
    ],
)
def test_only_registered_functions_and_trusted_modules_are_allowed(target: str) -> None:
    with pytest.raises(UntrustedCodeError, match="the file names"):
        require_trusted(dataclasses.replace(config(), model=Component(target)), "the file", ("tests",))


def test_trust_may_name_a_package_a_module_or_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    for trust in (("tests",), ("tests.train.problems",), targets(config())):
        require_trusted(config(), "the file", trust)
    monkeypatch.setenv("RAYCURV_TRUST", "other, tests.train")
    assert default_trust() == ("other", "tests.train")
    require_trusted(config(), "the file")
    monkeypatch.setenv("RAYCURV_TRUST", "other")
    with pytest.raises(UntrustedCodeError):
        require_trusted(config(), "the file")


def configurations(folder: str) -> list[RunConfig]:
    """Every recipe and every run of a study, on data in this folder."""
    found = []
    for one in recipes.registered_recipes():
        takes_data = "data" in inspect.signature(one.recipe).parameters
        found.append(recipes.build(one.name, {"data": folder} if takes_data else {}))
    return found + [run for study in STUDIES.values() for run in study.runs(data=folder)]


def test_every_run_of_the_package_may_be_loaded_without_trust(tmp_path: Path) -> None:
    for one in configurations(str(tmp_path)):
        require_trusted(one, one.name, ())
    for target in sorted(REGISTERED):
        assert callable(Component(target).resolve())


@pytest.mark.parametrize("name", ["os:getcwd", "canary:network", "tests.train.problems:network"])
def test_a_function_that_is_not_known_to_be_a_recipe_is_not_called(name: str, canary: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name!r} is not known to be a recipe, .*\) -> RunConfig"):
        recipes.build(name, {})
    assert not (canary / "called").exists()


def test_a_path_of_a_function_does_not_pass_through_modules() -> None:
    with pytest.raises(ValueError, match="passes through the module 'os'"):
        Component("raycurv.train.trust:os.getcwd").resolve()


def test_a_run_starts_from_a_checkpoint_of_its_own_functions_and_of_no_others(tmp_path: Path, canary: Path) -> None:
    store = trained(tmp_path / "own")
    started = config(max_steps=1, start_from=store.uri)
    assert train(started, collectives=Local(), store=CheckpointStore(tmp_path / "next"), emit=Kept()).steps == 1
    other = tampered(tmp_path / "other", model=NETWORK)
    for start in (other.uri, str(next(Path(other.uri).glob("*.pt")))):
        with pytest.raises(UntrustedCodeError, match=r"start_from: .*names 'canary:network'"):
            read_weights(start, ("tests",))
    assert untouched(canary)


def test_a_command_trusts_the_module_of_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURV_TRUST", "")
    assert trusting(Cluster(trust=("other",)), "digits").trust == ("other",)
    assert trusting(Cluster(), "tests.service.problems:mine").trust == ("other", "tests.service.problems")
    require_trusted(mine(), "the file")
