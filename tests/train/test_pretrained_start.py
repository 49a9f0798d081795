"""Weights to start from: every kind of file, what fits, what is drawn anew, what is frozen, what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, Component, RunConfig, load_trained_model, train
from raycurv.train.build import build_model
from raycurv.train.pretrained_start import check_start, copy_weights, load_start
from raycurv.train.weight_files import StartError, read_weights
from tests.train.problems import Kept, config

# What tests.train.problems.config gave before start_from and freeze existed.
DIGEST = "0a195cfa3cbb"


def go(folder: Path, wanted: RunConfig, **options: Any) -> list[str]:
    records = Kept()
    train(wanted, collectives=Local(), store=CheckpointStore(str(folder)), emit=records, **options)
    return [record.message for record in records.of("event")]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_trained_model(CheckpointStore(str(folder))).model.state_dict())


def initial(wanted: RunConfig) -> nn.Module:
    torch.manual_seed(wanted.seed)
    return build_model(wanted, {"input_shape": (4,), "num_classes": 3})


def network(classes: int = 3, norm: bool = False) -> nn.Module:
    torch.manual_seed(7)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 8), middle, nn.Tanh(), nn.Identity(), nn.Linear(8, classes))


def save(model: nn.Module, path: Path, kind: str) -> Path:
    state = model.state_dict()
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    wrapped = {"state_dict": state, "epoch": 3, "steps": torch.tensor(5)}
    torch.save(state if kind == "state_dict" else wrapped, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize("kind", ["state_dict", "nested", "safetensors"])
def test_a_run_starts_from_the_weights_of_a_file(tmp_path: Path, kind: str) -> None:
    model = network(norm=True)
    file = save(model, tmp_path / "weights", kind)
    started = initial(config(norm=True))
    report = load_start(started, str(file))
    assert len(report.loaded) == 9
    assert not report.drawn_anew + report.missing + report.unused
    for name, value in started.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name].to(value.dtype), rtol=0, atol=0)
    messages = go(tmp_path / "run", config(norm=True, max_steps=1, start_from=str(file)))
    assert f"starts from {file}: 9 of 9 tensors" in messages


@pytest.mark.parametrize("optimizer", ["curveball", "auto", "schedule_free_adamw"])
def test_a_run_starts_from_the_weights_that_another_run_evaluates(tmp_path: Path, optimizer: str) -> None:
    go(tmp_path / "a", config(optimizer=optimizer, max_steps=4))
    wanted = config(optimizer="sgd", optimizer_settings={"learning_rate": 0.0}, max_steps=1)
    for copy, start in (("b", tmp_path / "a"), ("c", next((tmp_path / "a").glob("*.pt")))):
        go(tmp_path / copy, dataclasses.replace(wanted, start_from=str(start)))
        for name, value in final(tmp_path / "a").items():
            assert torch.equal(final(tmp_path / copy)[name], value)


def test_a_head_of_another_size_is_drawn_anew_and_reported(tmp_path: Path) -> None:
    file = save(network(classes=7), tmp_path / "weights", "state_dict")
    wanted = config(start_from=str(file))
    model, fresh = initial(wanted), initial(config())
    report = load_start(model, str(file))
    assert report.loaded == ("0.weight", "0.bias")
    assert report.drawn_anew == ("4.weight (7, 8) → (3, 8)", "4.bias (7,) → (3,)")
    assert torch.equal(model[4].weight, fresh[4].weight)
    assert not torch.equal(model[0].weight, fresh[0].weight)
    messages = go(tmp_path / "run", dataclasses.replace(wanted, max_steps=1))
    said = "2 of 4 tensors; of another size and drawn anew: 4.weight (7, 8) → (3, 8), 4.bias (7,) → (3,)"
    assert any(said in message for message in messages)


def test_what_is_missing_and_what_is_not_used_is_reported() -> None:
    weights = {"0.weight": torch.ones(8, 4), "extra": torch.ones(2)}
    report = copy_weights(network(), weights, "there")
    assert (report.loaded, report.missing, report.unused) == (
        ("0.weight",), ("0.bias", "4.weight", "4.bias"), ("extra",),
    )  # fmt: skip
    assert "not there and drawn anew: 0.bias, 4.weight, 4.bias; not used: extra" in str(report)


@pytest.mark.parametrize(("here", "there"), [("", "module."), ("backbone.", ""), ("a.b.", "_orig_mod.")])
def test_a_prefix_of_the_names_may_differ(here: str, there: str) -> None:
    def wrapped(model: nn.Module, prefix: str) -> nn.Module:
        for part in reversed(prefix.split(".")[:-1]):
            model = nn.ModuleDict({part: model})
        return model

    given = network()
    model = nn.ModuleDict({"head": nn.Linear(3, 2)}) if here == "backbone." else nn.Module()
    with torch.random.fork_rng():
        body = wrapped(initial(config()).float(), here)
    model = nn.ModuleDict({**body, "head": nn.Linear(3, 2)}) if here == "backbone." else body
    report = copy_weights(model, dict(wrapped(given, there).state_dict()), "there")
    assert len(report.loaded) == 4
    assert report.renamed == (there, here)
    assert f"{there!r}… read as {here!r}…" in str(report)
    assert torch.equal(model.state_dict()[f"{here}4.weight"], given[4].weight)


def test_layers_of_equal_shape_are_not_taken_for_one_another() -> None:
    shifted = {f"{int(name[0]) + 1}{name[1:]}": value for name, value in network().state_dict().items()}
    with pytest.raises(StartError, match=r"no parameter of there fits .* 1.weight \(8, 4\), .*; the model"):
        copy_weights(network(), shifted, "there")


def test_weights_of_torchvision_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights

    from raycurv.models import resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    given = resnet18(num_classes=1000, input_shape=(3, 224, 224), stem="large")
    cached = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name  # as if downloaded before
    cached.parent.mkdir(parents=True)
    torch.save(given.state_dict(), cached)
    for name in ("resnet18", "ResNet18_Weights.IMAGENET1K_V1"):
        torch.manual_seed(2)
        model = resnet18(num_classes=10)
        report = load_start(model, f"torchvision:{name}")
        stem = "conv1.weight (64, 3, 7, 7) → (64, 3, 3, 3)"
        assert report.drawn_anew == (stem, "fc.weight (1000, 512) → (10, 512)", "fc.bias (1000,) → (10,)")
        assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], given.state_dict()["layer4.1.conv2.weight"])


def test_weights_of_transformers_come_by_name(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    given = BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=12))
    given.save_pretrained(tmp_path)
    weights = read_weights(f"transformers:{tmp_path}")
    assert weights.keys() == given.state_dict().keys()
    model = nn.ModuleDict({"encoder": BertModel(given.config), "head": nn.Linear(8, 2)})
    report = copy_weights(model, weights, "bert")
    assert report.renamed == ("", "encoder.")
    assert report.missing == ("head.weight", "head.bias")


def test_weights_of_timm_come_by_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    torch.manual_seed(3)
    given = timm.create_model("resnet10t", num_classes=5)
    save_for_hf(given, tmp_path, safe_serialization=True)
    weights = read_weights(f"timm:local-dir:{tmp_path}")
    assert torch.equal(weights["conv1.0.weight"], given.state_dict()["conv1.0.weight"])


def unreadable(folder: Path) -> dict[str, tuple[Any, str]]:
    """Starts that are refused: by name, what is written there, and the message."""
    return {
        "absent.pt": (
            None,
            r"there is no file and no checkpoint at .*absent.pt; give the folder of",
        ),
        "empty": (None, r"there is no file and no checkpoint at .*empty"),
        "objects.pt": (Path("x"), "cannot be read without unpickling objects .*torch.save.model.state_dict"),
        "text.pt": (b"no weights", "cannot be read without unpickling objects"),
        "numbers.pt": ({"epoch": 3}, r"holds no tensors by name \(it holds epoch\)"),
        "list.pt": ([1, 2], r"holds no tensors by name \(it holds list\)"),
        "nan.pt": ({"0.weight": torch.full((8, 4), torch.nan)}, "infinite or NaN values in 0.weight"),
        "other.pt": (
            {"there": torch.ones(2)},
            r"no parameter of .*other.pt fits .*there \(2,\); the model has 0",
        ),
        "text.safetensors": (b"no weights", "cannot be loaded: SafetensorError"),
        "torchvision:resnet81": (None, "network of torchvision 'resnet81' is unknown; did you mean 'resnet18'"),
        "torchvision:ResNet18_Weights.V9": (None, "torchvision:ResNet18_Weights.V9 cannot be loaded"),
        "timm:no_such_network": (None, "timm:no_such_network cannot be loaded"),
    }


@pytest.mark.parametrize("name", unreadable(Path()))
def test_a_start_that_cannot_be_used_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    content, message = unreadable(tmp_path)[name]
    (tmp_path / "empty").mkdir()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    start = name if ":" in name else str(tmp_path / name)
    with pytest.raises(StartError, match=message):
        check_start(config(start_from=start))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "attacked"),)

    for name in ("pickle.pt", "torch.pt"):
        file = tmp_path / name
        file.write_bytes(pickle.dumps(Attack(), protocol=2)) if name == "pickle.pt" else torch.save(Attack(), file)
        with pytest.raises(StartError, match="without unpickling"):
            read_weights(str(file))
    assert not (tmp_path / "attacked").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(StartError, match=r"needs the package 'timm': pip install 'raycurv\[pretrained\]'"):
        read_weights("timm:resnet10t")


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("features.*",), r"'features\.\*' matches no parameter; the parts of the model are '0\.\*', '4\.\*'"),
        (("0.*", "4.*"), "freezes all 4 parameters: leave some to train, such as '4.bias'"),
        (("*",), "freezes all 4 parameters"),
    ],
)
def test_patterns_that_fit_nothing_or_everything_are_refused_before_the_run(
    freeze: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_start(config(freeze=freeze))


def test_the_check_passes_what_a_run_takes_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    file = save(network(), tmp_path / "weights", "state_dict")
    before = torch.get_rng_state()
    check_start(config(start_from=str(file), freeze=("0.*",)))
    check_start(config())
    assert torch.equal(torch.get_rng_state(), before)


def test_data_that_only_workers_can_read_are_not_refused_here() -> None:
    data = Component("raycurv.data:parquet_images", {"path": "/only/on/workers"})
    check_start(dataclasses.replace(config(freeze=("nothing",)), data=data))


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    file = save(network(), tmp_path / "weights", "state_dict")
    go(tmp_path / "run", config(start_from=str(file), freeze=("0.*",), l2=0.1, average_weights=0.9))
    trained = final(tmp_path / "run")
    assert torch.equal(trained["0.weight"], network().double()[0].weight)
    assert not torch.equal(trained["4.weight"], network().double()[4].weight)
    averaged = load_trained_model(CheckpointStore(str(tmp_path / "run")), averaged=True).model
    assert torch.equal(averaged[0].weight, network().double()[0].weight)


@pytest.mark.parametrize("optimizer", ["auto", "curveball", "adam"])
def test_a_resumed_run_does_not_load_its_start_again(tmp_path: Path, optimizer: str) -> None:
    file = save(network(classes=5), tmp_path / "weights", "state_dict")
    wanted = config(start_from=str(file), freeze=("0.bias",), optimizer=optimizer, average_weights=0.9)
    go(tmp_path / "a", wanted)
    go(tmp_path / "b", dataclasses.replace(wanted, stop_after=4))
    file.unlink()
    messages = go(tmp_path / "b", wanted, resume="must")
    assert not any("starts from" in message for message in messages)
    for name, value in final(tmp_path / "a").items():
        assert torch.equal(final(tmp_path / "b")[name], value)


def test_settings_that_are_left_out_change_no_digest() -> None:
    assert config().digest == DIGEST
    assert len({config().digest, config(start_from="x.pt").digest, config(freeze=("0.*",)).digest}) == 3


def test_the_configuration_keeps_its_start_and_its_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = config(start_from="weights.pt", freeze="0.*")
    assert wanted.start_from == str(tmp_path / "weights.pt")
    assert wanted.freeze == ("0.*",)
    assert RunConfig.from_json(wanted.to_json()) == wanted
    without = {k: v for k, v in json.loads(config().to_json()).items() if k not in ("start_from", "freeze")}
    assert RunConfig.from_json(json.dumps(without)) == config()
    for name in ("s3://bucket/run", "torchvision:resnet18", "timm:hf-hub:a/b", "transformers:a/b"):
        assert config(start_from=name).start_from == name
    with pytest.raises(ValueError, match=r"RunConfig\.start_from is ''; it must be None, an address or a name"):
        config(start_from="")
    with pytest.raises(ValueError, match=r"RunConfig\.freeze is \(''"):
        config(freeze=("",))


def test_the_bytes_of_a_file_may_come_from_an_object_store(tmp_path: Path) -> None:
    file = save(network(), tmp_path / "weights", "state_dict")
    assert read_weights(f"file://{file}").keys() == torch.load(io.BytesIO(file.read_bytes())).keys()


def test_the_message_of_a_refused_start_stands_for_itself() -> None:
    from raycurv.service.errors import describe

    assert describe(StartError.__name__, "start_from: nothing fits") == "start_from: nothing fits"
