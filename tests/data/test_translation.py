from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv.data import DataError, Loader, multi30k, multi30k_text
from raycurv.data.translation import END, START, UNKNOWN, vocabulary

GERMAN = ["Ein Hund läuft.", "Ein Hund und ein Hund.", "Zwei Katzen"]
ENGLISH = ["A dog runs.", "A dog and a dog.", "Two cats"]


def write(folder: Path, german: list[str] = GERMAN, english: list[str] = ENGLISH) -> str:
    for split in ("train", "val"):
        (folder / f"{split}.de.gz").write_bytes(gzip.compress("\n".join(german).encode()))
        (folder / f"{split}.en").write_text("\n".join(english))
    return str(folder)


def read(folder: str, *rows: int, **settings: int) -> tuple[list[list[str]], list[list[int]], list[list[int]]]:
    train = multi30k(folder, **settings).train
    assert train.classes is not None
    inputs, targets = train.read(np.array(rows), seed=0, epoch=0, training=True)
    return [[train.classes[word] for word in row] for row in targets.tolist()], inputs.tolist(), targets.tolist()


def test_the_network_reads_the_target_up_to_the_word_that_it_is_to_say(tmp_path: Path) -> None:
    words, inputs, targets = read(write(tmp_path), 1, 2)
    assert words == [["A", "dog", "and", "a", "dog", ".", "<end>"], ["Two", "cats", "<end>"] + 4 * ["<pad>"]]
    for (_, target), wanted in zip(inputs, targets, strict=True):
        assert target[0] == START
        assert target[1:] == [0 if word == END else word for word in wanted[:-1]]
    assert [row[0].index(END) for row in inputs] == [6, 2]


def test_a_batch_is_as_long_as_its_longest_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path)
    data = multi30k(folder)
    assert data.train.input_shape == (2, 7)
    assert [len(read(folder, row)[2][0]) for row in range(3)] == [5, 7, 3]
    batches = list(Loader(data.train, batch_size=2, seed=0, training=False, dtype=torch.float64).epoch(0))
    assert [(tuple(inputs.shape), inputs.dtype) for inputs, _ in batches] == [
        ((2, 2, 7), torch.int64), ((1, 2, 3), torch.int64)
    ]  # fmt: skip


def test_words_are_numbered_by_frequency_and_equals_by_the_alphabet() -> None:
    assert vocabulary([["b", "c"], ["c", "a"]], None, 1)[4:] == ("c", "a", "b")
    assert vocabulary([["b", "c"], ["c", "a"]], None, 2)[4:] == ("c",)
    assert vocabulary([["b", "c"], ["c", "a"]], 6, 1)[4:] == ("c", "a")


def test_words_that_are_rare_or_not_in_the_training_set_are_unknown(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert read(folder, 0, min_frequency=2)[0] == [["A", "dog", "<unknown>", ".", "<end>"]]
    (tmp_path / "val.en").write_text("A\nfish\nruns")
    (tmp_path / "val.de.gz").write_bytes(gzip.compress(b"Ein\nFisch\nrennt"))
    data = multi30k(folder)
    assert data.evaluation is not None
    assert data.evaluation.classes == data.train.classes
    assert data.evaluation.read(np.array([1]), seed=0, epoch=0, training=False)[1].tolist() == [[UNKNOWN, END]]


def test_a_language_model_says_each_word_from_those_before_it(tmp_path: Path) -> None:
    data = multi30k_text(write(tmp_path))
    assert data.train.classes == multi30k(write(tmp_path)).train.classes
    assert data.train.input_shape == (7,)
    inputs, targets = data.train.read(np.array([0, 2]), seed=0, epoch=0, training=True)
    assert [[data.train.classes[word] for word in row] for row in targets.tolist()] == [
        ["A", "dog", "runs", ".", "<end>"],
        ["Two", "cats", "<end>", "<pad>", "<pad>"],
    ]
    for said, begun in zip(targets.tolist(), inputs.tolist(), strict=True):
        length = said.index(END)
        assert begun[: length + 1] == [START, *said[:length]]
    with pytest.raises(DataError, match="max_words is 4"):
        multi30k_text(write(tmp_path), max_words=4)


def test_only_the_rows_kept_make_the_vocabulary(tmp_path: Path) -> None:
    data = multi30k(write(tmp_path), max_rows=1, max_length=3)
    assert data.train.classes is not None
    assert data.train.classes[4:] == ("A", "dog", "runs")
    assert len(data.train) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_words": 4}, "max_words is 4"), ({"min_frequency": 0}, "min_frequency"), ({"max_rows": 0}, "max_rows"),
     ({"max_length": 0}, "max_length"), ({"source": "fr"}, "neither train.fr.gz nor train.fr")],
)  # fmt: skip
def test_an_argument_out_of_bounds_is_named(settings: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        multi30k(write(tmp_path), **settings)


def test_files_that_do_not_belong_together_or_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 lines of de and 3 of en"):
        multi30k(write(tmp_path, GERMAN[:2]))
    (tmp_path / "train.de.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"train\.de\.gz is no compressed text"):
        multi30k(str(tmp_path))
