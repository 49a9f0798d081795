from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from raycurv.train import CheckpointError, CheckpointStore, Record, Result
from raycurv.train.training_run import lacking
from tests.train import problems


def state(step: int, size: int = 10) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((size,), float(step), dtype=torch.float64)}, "note": "text"}


def filled(folder: Path, *steps: int, keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(str(folder), keep)
    for step in steps:
        store.save(state(step))
    return store


def test_newest_checkpoint_comes_back_and_old_ones_are_removed(tmp_path: Path) -> None:
    store = filled(tmp_path / "run", 5, 10, 15)
    loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 15
    assert torch.equal(loaded["model"]["weight"], state(15)["model"]["weight"])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "manifest.json",
        "step-000000010.pt",
        "step-000000015.pt",
    ]
    assert store.newest() == str(tmp_path / "run" / "step-000000015.pt")


def test_empty_folder_has_no_checkpoint_and_is_not_made(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run"))
    assert store.load() is None
    assert store.newest() is None
    assert not store.exists()
    assert not (tmp_path / "run").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damaged_newest_falls_back_aloud_and_is_replaced_first(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = filled(tmp_path, 5, 10)
    damage(tmp_path / "step-000000010.pt")
    with pytest.warns(RuntimeWarning, match=r"step-000000010.pt is .*Falling back to .*step-000000005.pt \(step 5\)"):
        loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 5
    store.save(state(8))
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-000000005.pt", "step-000000008.pt"]


def test_nothing_readable_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    store = filled(tmp_path, 5, 10)
    for file in tmp_path.glob("*.pt"):
        cut(file)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read.*--run-name"):
        store.load()


def empty(file: Path) -> None:
    file.write_text("")


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def without_entries(file: Path) -> None:
    file.write_text('{"version": 1, "checkpoints": []}')


def step_as_text(file: Path) -> None:
    file.write_text(file.read_text().replace('"step": 10', '"step": "10"'))


def file_elsewhere(file: Path) -> None:
    file.write_text(file.read_text().replace('"step-000000010.pt"', '"../step-000000010.pt"'))


def nested(file: Path) -> None:
    file.write_text("[" * 100_000)


LOST = (Path.unlink, cut, empty, dangling, without_entries, step_as_text, file_elsewhere, nested)


@pytest.mark.parametrize("lose", LOST)
def test_checkpoints_are_found_and_kept_without_their_manifest(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    filled(tmp_path, 5, 10)
    lose(tmp_path / "manifest.json")
    store = CheckpointStore(tmp_path)
    assert store.exists()
    with pytest.warns(RuntimeWarning, match=r"manifest.json is .*whole checkpoints are there of the steps 5, 10"):
        loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 10
    store.save(state(15))
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-000000010.pt", "step-000000015.pt"]
    assert [entry.step for entry in CheckpointStore(tmp_path)._entries()] == [10, 15]


def test_checkpoints_are_whole_where_their_sums_in_the_manifest_are_damaged(tmp_path: Path) -> None:
    filled(tmp_path, 5, 10)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0'))
    store = CheckpointStore(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"is damaged .*Falling back to .*step-000000010.pt \(step 10\)"):
        loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 10
    store.save(state(15))
    assert [entry.step for entry in CheckpointStore(tmp_path)._entries()] == [10, 15]
    again = CheckpointStore(tmp_path).load()
    assert again is not None
    assert again["step"] == 15


def test_a_damaged_checkpoint_without_a_manifest_is_neither_loaded_nor_removed(tmp_path: Path) -> None:
    filled(tmp_path, 5, 10)
    (tmp_path / "manifest.json").unlink()
    file = tmp_path / "step-000000010.pt"
    weights = struct.pack("d", 10.0)
    assert weights in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(weights, struct.pack("d", 11.0), 1))
    store = CheckpointStore(tmp_path)
    with pytest.warns(RuntimeWarning, match="whole checkpoints are there of the steps 5$"):
        loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 5
    store.save(state(7))
    store.save(state(8))
    assert {int(p.stem[5:]) for p in tmp_path.glob("*.pt")} == {7, 8, 10}


def test_nothing_whole_without_a_manifest_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    (tmp_path / "manifest.json").unlink()
    cut(tmp_path / "step-000000005.pt")
    with pytest.raises(CheckpointError, match=r"manifest.json is missing, and none of .* is a whole checkpoint"):
        CheckpointStore(tmp_path).load()
    assert (tmp_path / "step-000000005.pt").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": 1}, {"step": "5"}])
def test_a_checkpoint_that_is_something_else_falls_back(tmp_path: Path, content: Any) -> None:
    store = filled(tmp_path, 5)
    file = tmp_path / "step-000000010.pt"
    torch.save(content, file)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    entry = {"step": 10, "file": file.name, "size": file.stat().st_size}
    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["checkpoints"].append(entry)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(RuntimeWarning, match=r"it is no mapping with a step. Falling back to .*step 5"):
        loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 5


def test_a_checkpoint_that_lacks_a_part_falls_back(tmp_path: Path) -> None:
    store = filled(tmp_path, 5, 10)
    with pytest.warns(RuntimeWarning, match=r"step-000000010.pt lacks optimizer. Falling back to .*step 5"):
        loaded = store.load(lambda found: "optimizer" if found["step"] == 10 else "")
    assert loaded is not None
    assert loaded["step"] == 5
    assert lacking({"version": 2, **dict.fromkeys(("step", "progress", "epoch_sums", "model", "random", "workers"))})


RESULT_TEXTS = [
    "", "{", "null", "[]", "3", '{"name": "x"}', "\udcff", "[" * 100_000,
    '{"name": "x", "steps": "3", "epochs": 1.0, "values": {}, "evaluations": [], "seconds": 1, "images_per_second": 1}',
    '{"name": "x", "steps": 3, "epochs": 1.0, "values": [], "evaluations": [], "seconds": 1, "images_per_second": 1}',
    '{"name": "x", "steps": 3, "epochs": 1.0, "values": {"a": "b"}, "evaluations": [1], "seconds": 1}',
]  # fmt: skip


@pytest.mark.parametrize("text", RESULT_TEXTS)
def test_a_damaged_result_means_that_the_run_is_not_known_to_be_finished(tmp_path: Path, text: str) -> None:
    store = filled(tmp_path, 5)
    (tmp_path / "result.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.warns(RuntimeWarning, match=r"result.json is damaged .*goes on at its checkpoint"):
        assert store.finished() is None


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"name": 3}', '{"name": "x", "model": 3, "data": {}}', "[" * 100_000,
             '{"name": "x", "model": {"target": 3}, "data": {"target": "a:b"}}']
)  # fmt: skip
def test_a_damaged_configuration_is_a_declared_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json holds no configuration of this version.*Put it back"):
        CheckpointStore(tmp_path).config()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(os.environ["EVIL"]) / "was here"),)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path))
    store = CheckpointStore(str(tmp_path / "run"))
    store.save({"step": 1, "evil": Evil()})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        store.load()
    assert not (tmp_path / "was here").exists()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    for name in ("step-000000007.pt.partial", "step-000000006.pt"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    store.save(state(8))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["manifest.json", "notes.txt", "step-000000005.pt", "step-000000008.pt"]


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_file_that_cannot_be_written_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    with small_files(1 << 20), pytest.raises(CheckpointError, match=r"cannot write .*step-000000006.pt.*too large"):
        store.save(state(6, size=1 << 18))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "step-000000005.pt"]
    loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_becomes_read_only_before_the_manifest_is_a_declared_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save({"step": 3})
    whole = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if Path(target).name != "manifest.json":
            return whole(path, target)
        monkeypatch.setattr(Path, "unlink", refuse)
        return refuse(path)

    def refuse(path: Path, **options: bool) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(CheckpointError, match=r"cannot write .*manifest.json: .*Read-only.*correct the permissions"):
        store.save({"step": 6})
    monkeypatch.undo()
    assert CheckpointStore(tmp_path).load() == {"step": 3}


def test_full_disk_leaves_the_earlier_checkpoints(small_disk: Path) -> None:
    store = filled(small_disk, 5)
    with pytest.raises(CheckpointError, match=r"cannot write .*step-000000006.pt: .*No space left.*free disk space"):
        store.save(state(6, size=1 << 18))
    assert sorted(p.name for p in small_disk.iterdir()) == ["manifest.json", "step-000000005.pt"]
    store.save(state(7))
    loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 7


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file"):
        filled(tmp_path / "file" / "run", 5)


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_nothing_is_refused(tmp_path: Path, keep: int) -> None:
    with pytest.raises(ValueError, match=r"Store.keep is .*at least 1"):
        CheckpointStore(str(tmp_path), keep)


def test_configuration_and_result_lie_beside(tmp_path: Path) -> None:
    store, config = CheckpointStore(f"file://{tmp_path}/run"), problems.config(dropout=0.5)
    store.begin(config)
    assert store.exists()
    assert store.config() == config
    assert store.finished() is None
    record = Record("evaluation", 3, 1.0, 12.5, {"test/loss": 0.25})
    result = Result("test", 3, 1.0, record.values, (record,), 2.0, 100.0)
    store.finish(result)
    assert store.finished() == result
    store.begin(config)
    assert store.finished() is None


def test_object_store(s3_server: Callable[[], str], tmp_path: Path) -> None:
    uri = f"{s3_server()}/runs/first"
    store = filled_uri(uri, 5, 10, 15)
    assert store.newest() == f"{uri}/step-000000015.pt"
    loaded = CheckpointStore(uri).load()
    assert loaded is not None
    assert loaded["step"] == 15
    config = problems.config()
    assert not CheckpointStore(f"{uri}-2").exists()
    store.begin(config)
    assert CheckpointStore(uri).config() == config
    entries = json.loads(store._read("manifest.json") or b"")["checkpoints"]
    assert [entry["step"] for entry in entries] == [10, 15]
    store._folder.remove("step-000000015.pt")
    with pytest.warns(RuntimeWarning, match=r"is missing. Falling back to .*step-000000010.pt"):
        assert store.load() is not None
    assert store._folder.names() == ["config.json", "manifest.json", "step-000000010.pt"]


def filled_uri(uri: str, *steps: int) -> CheckpointStore:
    store = CheckpointStore(uri)
    for step in steps:
        store.save(state(step))
    return store


def test_missing_bucket_is_named(s3_server: Callable[[], str]) -> None:
    s3_server()
    with pytest.raises(CheckpointError, match=r"cannot write s3://no-such-bucket/run/step-000000001.pt"):
        CheckpointStore("s3://no-such-bucket/run").save(state(1))


def test_the_best_checkpoint_stays_until_there_is_a_better_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    assert store.best() is None
    for step in (1, 2, 3, 4, 5):
        store.save(state(step), best=step in (2, 4))
        kept = {1: {1}, 2: {2}, 3: {2, 3}, 4: {4}, 5: {4, 5}}[step]
        assert {int(file.stem[5:]) for file in tmp_path.glob("*.pt")} == kept
    assert store.best() == str(tmp_path / "step-000000004.pt")
    assert store.load_best()["step"] == 4
    loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 5


def test_a_best_checkpoint_of_steps_that_are_done_again_is_forgotten(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(state(step), best=step == 3)
    store.save(state(2))
    assert store.best() is None
    with pytest.raises(CheckpointError, match="names no best checkpoint: train with best_metric"):
        store.load_best()


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "result.json", "step-000000010.pt"])
def test_a_named_pipe_in_place_of_a_file_is_an_error_and_is_not_waited_for(tmp_path: Path, name: str) -> None:
    store = filled(tmp_path, 10)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}.*no regular file"):
        (store.config(), store.finished(), store.load())


def test_a_symbolic_link_in_place_of_a_partial_file_is_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not ours")
    (tmp_path / "run").mkdir()
    for name in ("step-000000005.pt", "manifest.json"):
        (tmp_path / "run" / f"{name}.partial").symlink_to(outside)
    loaded = filled(tmp_path / "run", 5).load()
    assert loaded is not None
    assert outside.read_text() == "not ours"
