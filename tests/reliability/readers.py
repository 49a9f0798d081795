"""Every reader of something from outside, as a fuzzing target: a damaged input, and the errors that are declared."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from raycurv import recipes
from raycurv.cli.commands import COMMANDS
from raycurv.cli.options import all_options
from raycurv.cli.parsing import parse
from raycurv.cli.run_options import parse_setting
from raycurv.data import DataError, csv_table, multi30k, parquet_images, storage
from raycurv.data.image_transforms import decode, describe
from raycurv.objective.collectives import Local
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.service.outcome_log import OutcomeLog
from raycurv.train import CheckpointError, CheckpointStore, NonFiniteLoss, RunConfig, load_trained_model, train
from raycurv.train.trust import require_trusted
from raycurv.train.weight_files import StartError, read_weights
from tests.data.cases import image, numbered, write, write_raw
from tests.reliability import mutations
from tests.train.problems import Kept, config


@dataclass(frozen=True)
class Reader:
    """A reader of something from outside.

    Attributes:
        prepare: makes what is damaged, in a folder of its own, and returns the function that damages and reads it.
        declared: errors that are right answers.
        inputs: inputs of the whole campaign.
    """

    prepare: Callable[[Path], Callable[[random.Random], object]]
    declared: tuple[type[Exception], ...]
    inputs: int


READERS: dict[str, Reader] = {}
_Prepare = Callable[[Path], Callable[[random.Random], object]]


def reader(inputs: int, *declared: type[Exception]) -> Callable[[_Prepare], _Prepare]:
    def add(prepare: _Prepare) -> _Prepare:
        READERS[prepare.__name__] = Reader(prepare, declared, inputs)
        return prepare

    return add


def _finished_run(folder: Path) -> CheckpointStore:
    store = CheckpointStore(folder)
    train(config(max_steps=6, checkpoint_every=3), collectives=Local(), store=store, emit=Kept())
    return store


def _read_folder(folder: Path) -> None:
    store = CheckpointStore(folder)
    store.exists()
    store.finished()
    store.config()
    store.newest()
    store.best()
    store.load()


def _damaged_file(folder: Path, name: str, change: Callable[[random.Random, bytes], bytes]) -> Callable[..., object]:
    _finished_run(folder)
    whole = (folder / name).read_bytes()

    def read(draw: random.Random) -> None:
        (folder / name).write_bytes(change(draw, whole))
        _read_folder(folder)

    return read


@reader(10_000, CheckpointError)
def manifest(folder: Path) -> Callable[[random.Random], object]:
    return _damaged_file(folder, "manifest.json", mutations.of_json)


@reader(8_000, CheckpointError)
def stored_configuration(folder: Path) -> Callable[[random.Random], object]:
    return _damaged_file(folder, "config.json", mutations.of_json)


@reader(8_000, CheckpointError)
def result(folder: Path) -> Callable[[random.Random], object]:
    return _damaged_file(folder, "result.json", mutations.of_json)


@reader(5_000, CheckpointError)
def checkpoint(folder: Path) -> Callable[[random.Random], object]:
    """Both checkpoints damaged, the manifest right, or lost."""
    _finished_run(folder)
    whole = {path: path.read_bytes() for path in [*folder.glob("*.pt"), folder / "manifest.json"]}

    def read(draw: random.Random) -> None:
        for path, content in whole.items():
            path.write_bytes(
                mutations.of_bytes(draw, content) if draw.random() < 0.7 and path.suffix == ".pt" else content
            )
        if draw.random() < 0.5:
            (folder / "manifest.json").unlink()
        _read_folder(folder)

    return read


@reader(3_000, CheckpointError, ValueError)
def content_of_a_checkpoint(folder: Path) -> Callable[[random.Random], object]:
    """A checkpoint with right sums, whose content is another."""
    _finished_run(folder)
    state = CheckpointStore(folder).load()
    assert state is not None
    config_text = json.loads(state["config"])

    def read(draw: random.Random) -> None:
        changed = mutations.of_value(draw, state)
        if draw.random() < 0.3:
            changed = state | {"config": json.dumps(mutations.of_value(draw, config_text))}
        if not isinstance(changed, dict):
            changed = {"step": 6}
        changed.setdefault("step", 6)
        file = folder / "step-000000006.pt"
        buffer = io.BytesIO()
        try:
            torch.save(changed, buffer)
        except RecursionError:  # nested too deep for the writer
            return
        file.write_bytes(buffer.getvalue())
        (folder / "manifest.json").unlink(missing_ok=True)
        for other in folder.glob("*.pt"):
            if other != file:
                other.unlink()
        load_trained_model(CheckpointStore(folder), trust=("tests",))

    return read


_OPTIMIZERS = ("sgd", "momentum", "adam", "curveball", "auto", "red_momentum", "salera", "schedule_free_adamw", "muon")


@reader(3_000, CheckpointError, NonFiniteLoss)
def state_of_an_optimizer(folder: Path) -> Callable[[random.Random], object]:
    """A run goes on at a checkpoint whose optimizer state is another."""
    wanted = {name: config(optimizer=name, optimizer_settings={}, max_steps=5, epochs=1) for name in _OPTIMIZERS}
    for name, each in wanted.items():
        train(replace(each, stop_after=3), collectives=Local(), store=CheckpointStore(folder / name), emit=Kept())
    states = {name: CheckpointStore(folder / name).load() for name in wanted}

    def read(draw: random.Random) -> None:
        name = draw.choice(_OPTIMIZERS)
        state = states[name]
        assert state is not None
        shutil.rmtree(folder / name)
        store = CheckpointStore(folder / name)
        store.begin(wanted[name])
        with contextlib.suppress(RecursionError):  # nested too deep for the writer
            store.save(state | {"optimizer": mutations.of_value(draw, state["optimizer"])})
        train(wanted[name], collectives=Local(), store=store, emit=Kept(), resume="must")

    return read


@reader(15_000, ValueError)
def configuration(folder: Path) -> Callable[[random.Random], object]:
    whole = config(max_steps=6, optimizer_settings={"learning_rate": 0.1}, optimizer="sgd").to_json().encode()

    def read(draw: random.Random) -> None:
        found = RunConfig.from_json(mutations.of_json(draw, whole).decode())
        require_trusted(found, "a file", ("tests",))
        found.to_json()

    return read


@reader(10_000)
def ledger(folder: Path) -> Callable[[random.Random], object]:
    """The outcomes of a sweep: a damaged line is left out, whatever it is."""
    point = EvaluationPoint(1.0, 10, 0.5, {"test/loss": 0.5, "test/accuracy": 0.9})
    outcomes = [Outcome(f"trial {i}", "digits", "sgd", "learning_rate=0.1", points=(point,)) for i in range(3)]
    lines = [outcome.to_json().encode() for outcome in outcomes]
    path = folder / "outcomes.jsonl"

    def read(draw: random.Random) -> None:
        changed = [mutations.of_json(draw, line) if draw.random() < 0.5 else line for line in lines]
        content = b"\n".join(changed) + b"\n"
        path.write_bytes(mutations.of_bytes(draw, content) if draw.random() < 0.3 else content)
        log = OutcomeLog(path)
        assert all(isinstance(outcome, Outcome) for outcome in log.done.values())

    return read


@reader(2_000, ValueError)
def command_line(folder: Path) -> Callable[[random.Random], object]:
    kinds = [command.load() for command in COMMANDS if command.name in ("train", "evaluate", "sweep grid", "compare")]
    pools = {
        kind: [word for option in all_options(kind) for word in (option.flag, str(option.values))] for kind in kinds
    }
    values = ["mnist", "sgd", "adam", "2", "0.1", "learning_rate=0.1", "true", "--", "=", "--workers=2-", "-1", "1e9"]

    def read(draw: random.Random) -> None:
        kind = draw.choice(kinds)
        words = ["--recipe", "digits", "--workers", "2", "--epochs", "3", "--setting", "learning_rate=0.1"]
        parse(kind, mutations.of_words(draw, words, [*pools[kind], *values]), "raycurv")

    return read


@reader(4_000, ValueError)
def recipe_name(folder: Path) -> Callable[[random.Random], object]:
    """Names of recipes and values of options, never functions that are no recipes."""
    names = [
        "digits",
        "os:getcwd",
        "os:abort",
        "sys:exit",
        "raycurv.recipes.digits:digits",
        "builtins:exit",
        "json:x.y",
    ]
    options = ["learning_rate=0.1", "data=s3://a/b", "scale=(1, 2)", "x=[1, 2]", "y=1e999"]

    def read(draw: random.Random) -> None:
        if draw.random() < 0.5:
            parse_setting(mutations.of_bytes(draw, draw.choice(options).encode()).decode("utf-8", "replace"))
        name = mutations.of_bytes(draw, draw.choice(names).encode()).decode("latin1")
        recipes.get(draw.choice((*names, name)))

    return read


@reader(3_000, ValueError, storage.StorageError)
def address(folder: Path) -> Callable[[random.Random], object]:
    whole = ["s3://bucket/path?endpoint_override=http://localhost:9&region=eu", "gs://bucket/p", "file:///tmp/x", "a/b"]

    def read(draw: random.Random) -> None:
        text = mutations.of_bytes(draw, draw.choice(whole).encode()).decode("utf-8", "replace")
        if "region" in text or not text.startswith("s3:"):  # else Amazon would be asked for it
            storage.resolve(text)

    return read


@reader(8_000, DataError)
def parquet(folder: Path) -> Callable[[random.Random], object]:
    write(folder / "a", rows=12, per_group=4, per_shard=10)
    write_raw(folder / "b" / "train.parquet", [numbered(i) for i in range(6)], [0, 1, 2, 0, 1, 2])
    whole = [next((folder / name).glob("*.parquet")).read_bytes() for name in "ab"]
    table = pq.read_table(folder / "a")
    for arguments in (
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "gzip", "column_encoding": {"label": "DELTA_BINARY_PACKED"}, "use_dictionary": False},
    ):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=5, **arguments)
        whole.append(buffer.getvalue())
    (folder / "damaged").mkdir()
    shard = folder / "damaged" / "train.parquet"

    def read(draw: random.Random) -> None:
        content = draw.choice(whole)
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        if draw.random() < 0.7:
            content = content[:footer] + mutations.of_bytes(draw, content[footer:])
        else:
            content = mutations.of_bytes(draw, content)
        shard.write_bytes(content)
        limit, classes = draw.choice((2**30, 700)), draw.choice((None, None, 2))
        found = parquet_images(shard, skip_corrupt=draw.random() < 0.5, memory_limit=limit, classes=classes).train
        found.read(np.arange(len(found)), seed=0, epoch=0, training=True)

    return read


def _images() -> list[bytes]:
    colours = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    pictures = {mode: Image.fromarray(colours).convert(mode) for mode in ("RGB", "L", "RGBA", "CMYK", "P", "1", "LAB")}
    pictures["I;16"] = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    pictures["F"] = Image.fromarray(colours[..., 0].astype(np.float32))
    found = [image(0, (24, 20), "TIFF")]
    for kind in (
        "PNG",
        "JPEG",
        "TIFF",
        "DDS",
        "WEBP",
        "BMP",
        "GIF",
        "PPM",
        "JPEG2000",
        "ICO",
        "TGA",
        "PCX",
        "SGI",
        "IM",
        "AVIF",
    ):
        for picture in pictures.values():
            buffer = io.BytesIO()
            try:
                picture.save(buffer, kind)
            except Exception:  # this kind does not hold this mode
                continue
            found.append(buffer.getvalue())
    return found


@reader(20_000, ValueError)
def encoded_image(folder: Path) -> Callable[[random.Random], object]:
    whole = _images()

    def read(draw: random.Random) -> None:
        content = mutations.of_bytes(draw, draw.choice(whole))
        decoded = decode(content, draw.choice((1, 3)))
        assert decoded.dtype == np.uint8
        assert decoded.shape[:2] == describe(content)[:2]

    return read


@reader(2_000, DataError)
def table(folder: Path) -> Callable[[random.Random], object]:
    whole = "a,b,medv\n" + "\n".join(f"{i},{i / 2},{-i}" for i in range(20)) + "\n"

    def read(draw: random.Random) -> None:
        (folder / "table.csv").write_bytes(mutations.of_bytes(draw, whole.encode()))
        csv_table(folder / "table.csv", target="medv", held_out=3)

    return read


@reader(1_000, DataError)
def sentences(folder: Path) -> Callable[[random.Random], object]:
    whole = {
        f"{split}.{side}.gz": gzip.compress(b"a b c\nd e\nf\n" * 3, mtime=0)
        for split in ("train", "val")
        for side in ("de", "en")
    }
    for name, content in whole.items():
        (folder / name).write_bytes(content)

    def read(draw: random.Random) -> None:
        name = draw.choice(sorted(whole))
        (folder / name).write_bytes(mutations.of_bytes(draw, whole[name]))
        try:
            multi30k(folder)
        finally:
            (folder / name).write_bytes(whole[name])

    return read


@reader(3_000, StartError, ValueError)
def weights_to_start_from(folder: Path) -> Callable[[random.Random], object]:
    from safetensors.torch import save

    state = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, buffer)
    whole = {"weights.pt": buffer.getvalue(), "weights.safetensors": save(state)}

    def read(draw: random.Random) -> None:
        name = draw.choice(sorted(whole))
        (folder / name).write_bytes(mutations.of_bytes(draw, whole[name]))
        read_weights(str(folder / name))

    return read


__all__ = ["READERS", "Reader"]
