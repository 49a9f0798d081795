"""Sentences out of text files, one a line, as word numbers, in pairs or alone: Multi30k and what is laid out like it.

Words are maximal runs of letters and digits, or single other signs. The vocabularies come from the training set alone:
words by falling frequency, equals in alphabetical order, behind four special ones. So they are the same on every
worker.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from raycurv.data import storage
from raycurv.data.errors import DataError
from raycurv.data.order import Rows
from raycurv.data.shards import locate
from raycurv.data.source import Data, TensorSource
from raycurv.objective.losses import PADDING

SPECIAL = ("<pad>", "<unknown>", "<start>", "<end>")
UNKNOWN, START, END = 1, 2, 3  # 0 is PADDING
_WORD = re.compile(r"\w+|[^\w\s]")
Words = list[str]


class Sentences(TensorSource):
    """Sentence pairs as numbers; a batch is as long as its longest sentence.

    Inputs are (B, 2, T): the source with its end symbol, and the target behind its start symbol. Targets are (B, T):
    the same words with the end symbol, so that the network says each word from those before it. 0 is padding.

    Args:
        source: sentences as word numbers.
        target: their translations.
        classes: the target's vocabulary.
        length: T of the longest sentences, the size in `input_shape`.

    Raises:
        DataError: there are no sentences.
    """

    def __init__(
        self, source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], classes: Sequence[str], length: int
    ) -> None:
        said, begun = _padded([[*s, END] for s in source], length), _padded([[START, *t] for t in target], length)
        super().__init__(torch.stack([said, begun], 1), _padded([[*t, END] for t in target], length), classes)

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The sentences `rows`, without the columns that hold padding alone."""
        inputs, targets = super().read(rows, seed=seed, epoch=epoch, training=training)
        used = (inputs != PADDING).any(1).any(0) | (targets != PADDING).any(0)
        length = max(1, int(used.sum()))  # words come first, so used columns do
        return inputs[..., :length].contiguous(), targets[:, :length].contiguous()


def multi30k(
    path: str | os.PathLike[str],
    *,
    source: str = "de",
    target: str = "en",
    evaluation: str = "val",
    max_words: int | None = None,
    min_frequency: int = 1,
    max_length: int = 64,
    max_rows: int | None = None,
) -> Data:
    """Open ``train.de.gz``, ``train.en.gz``, ``val.de.gz`` and ``val.en.gz`` of a folder (or the same without ``.gz``).

    Args:
        path: a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``, or a name in the folder RAYCURV_DATA.
        source: language that is translated, the end of its files' names.
        target: language that it is translated to.
        evaluation: split to evaluate on: val, or test_2016_flickr.
        max_words: size of each vocabulary, the four special words included; None takes all.
        min_frequency: rarer words of the training set become ``<unknown>``.
        max_length: words of a sentence at most; what goes beyond is cut off.
        max_rows: keep the first so many pairs of each split; the vocabularies come from those of the training set.

    Raises:
        DataError: an argument out of bounds, a file that is missing or no text, or files of different lengths.
    """
    _check_limits(
        max_words=(max_words, 5), min_frequency=(min_frequency, 1), max_length=(max_length, 1), max_rows=(max_rows, 1)
    )
    folder = locate(path)
    pairs = [_pairs(folder, split, (source, target), max_rows, max_length) for split in ("train", evaluation)]
    source_words, target_words = (vocabulary(side, max_words, min_frequency) for side in pairs[0])
    length = 1 + max(len(words) for sides in pairs for side in sides for words in side)
    train, held_out = (
        Sentences(_numbered(said, source_words), _numbered(translated, target_words), target_words, length)
        for said, translated in pairs
    )
    return Data(train, held_out)


class Texts(TensorSource):
    """Texts as numbers, for a network that says each word from those before it; a batch is as long as its longest text.

    Inputs are (B, T): the words behind the start symbol. Targets are (B, T): the words with the end symbol. 0 is
    padding.

    Args:
        texts: texts as word numbers.
        classes: the vocabulary.
        length: T of the longest texts, the size in `input_shape`.
    """

    def __init__(self, texts: Sequence[Sequence[int]], classes: Sequence[str], length: int) -> None:
        begun, ended = ([[*before, *text, *after] for text in texts] for before, after in (([START], []), ([], [END])))
        super().__init__(_padded(begun, length), _padded(ended, length), classes)

    def read(self, rows: Rows, *, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
        """The texts `rows`, without the columns that hold padding alone."""
        inputs, targets = super().read(rows, seed=seed, epoch=epoch, training=training)
        length = max(1, int((targets != PADDING).any(0).sum()))
        return inputs[:, :length].contiguous(), targets[:, :length].contiguous()


def multi30k_text(
    path: str | os.PathLike[str],
    *,
    language: str = "en",
    evaluation: str = "val",
    max_words: int | None = None,
    max_length: int = 64,
    max_rows: int | None = None,
) -> Data:
    """The sentences of one language of :func:`multi30k`, for a language model.

    Args:
        path: a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``, or a name in the folder RAYCURV_DATA.
        language: end of the files' names.
        evaluation: split to evaluate on: val, or test_2016_flickr.
        max_words: size of the vocabulary, the four special words included; None takes all.
        max_length: words of a sentence at most; what goes beyond is cut off.
        max_rows: keep the first so many sentences of each split.

    Raises:
        DataError: an argument out of bounds, or a file that is missing or no text.
    """
    _check_limits(max_words=(max_words, 5), max_length=(max_length, 1), max_rows=(max_rows, 1))
    folder = locate(path)
    texts = [
        [_WORD.findall(line)[:max_length] for line in _lines(folder, split, language)[:max_rows]]
        for split in ("train", evaluation)
    ]
    words = vocabulary(texts[0], max_words, 1)
    length = 1 + max(len(text) for split in texts for text in split)
    return Data(*(Texts(_numbered(split, words), words, length) for split in texts))


def _check_limits(**limits: tuple[int | None, int]) -> None:
    """Refuse a number below its smallest value.

    Raises:
        DataError: there is one.
    """
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise DataError(f"{name} is {value}; it must be at least {least}")


def _pairs(
    folder: str, split: str, languages: tuple[str, str], max_rows: int | None, max_length: int
) -> tuple[list[Words], list[Words]]:
    """The sentences of a split and their translations.

    Raises:
        DataError: they are not as many.
    """
    said, translated = (_lines(folder, split, language) for language in languages)
    if len(said) != len(translated):
        raise DataError(
            f"{folder}: {split} has {len(said)} lines of {languages[0]} and {len(translated)} of {languages[1]}; line "
            "by line one must be the other's translation"
        )
    first, second = ([_WORD.findall(line)[:max_length] for line in lines[:max_rows]] for lines in (said, translated))
    return first, second


def vocabulary(sentences: Sequence[Words], max_words: int | None, min_frequency: int) -> tuple[str, ...]:
    """The special words, then those of `sentences` by falling frequency, equals in alphabetical order."""
    counts = Counter(word for words in sentences for word in words)
    frequent = [word for word, count in counts.items() if count >= min_frequency]
    ordered = sorted(frequent, key=lambda word: (-counts[word], word))
    return (*SPECIAL, *ordered)[:max_words]


def _numbered(sentences: Sequence[Words], words: Sequence[str]) -> list[list[int]]:
    numbers = {word: number for number, word in enumerate(words)}
    return [[numbers.get(word, UNKNOWN) for word in sentence] for sentence in sentences]


def _padded(sentences: Sequence[Sequence[int]], length: int) -> Tensor:
    """(sentences, length), filled up with padding."""
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    words = np.zeros((len(sentences), length), np.int64)
    words[np.arange(length) < lengths[:, None]] = np.fromiter(chain.from_iterable(sentences), np.int64, lengths.sum())
    return torch.from_numpy(words)


def _lines(folder: str, split: str, language: str) -> list[str]:
    """The sentences of one file.

    Raises:
        DataError: neither the file nor its compressed form is there, or it is no text in UTF-8.
    """
    for name in (f"{split}.{language}.gz", f"{split}.{language}"):
        uri = storage.join(folder, name)
        try:
            with storage.explained(uri):
                system, where = storage.resolve(uri)
                with system.open_input_file(where) as file:
                    stored = file.read()
        except FileNotFoundError:
            continue
        try:
            text = (gzip.decompress(stored) if name.endswith(".gz") else stored).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(f"{uri} is no {'compressed ' if name.endswith('.gz') else ''}text: {error}") from error
        return text.splitlines()
    raise DataError(f"{folder} has neither {split}.{language}.gz nor {split}.{language}: one sentence a line is wanted")


__all__ = [
    "END",
    "PADDING",
    "SPECIAL",
    "START",
    "UNKNOWN",
    "Sentences",
    "Texts",
    "multi30k",
    "multi30k_text",
    "vocabulary",
]
