"""From words to the dataclass of a command, by tyro; an error is one paragraph that names the nearest option."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from raycurv.cli.options import Option, all_options

T = TypeVar("T")
_AFTERWARDS = re.compile("Argument helptext|For full helptext|Perhaps you meant")


def parse(kind: type[T], words: Sequence[str], called: str = "") -> T:
    """Read a command from its words; the names of all fields are flags without prefixes.

    Args:
        kind: dataclass, whose fields may be dataclasses themselves. ``POSITIONAL`` names the field of a first word
            without a flag.
        words: after the name of the command.
        called: command as it was typed, for messages.

    Raises:
        ValueError: an option is unknown, missing, or has a value that is not allowed.
    """
    import tyro

    options, given = all_options(kind), list(words)
    positional = getattr(kind, "POSITIONAL", None)
    if given and positional and not given[0].startswith("-"):
        given = [f"--{positional}", *given]
    _require_known(options, given, called)
    _require_complete(options, given, called)
    given = _with_values_of_lone_flags(options, given)
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed), _wide():
            return tyro.cli(kind, args=given, config=config, prog=called)
    except SystemExit as error:
        raise ValueError(_explained(printed.getvalue(), options, given)) from error


def _require_known(options: Sequence[Option], words: Sequence[str], called: str) -> None:
    flags = [option.flag for option in options]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            near = (
                difflib.get_close_matches(flag, flags, 3, 0.6) or [f for f in flags if flag[2:] and flag[2:] in f][:3]
            )
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"there is no option {flag}; {hint}{called} --help-all shows all".replace("  ", " "))


def _require_complete(options: Sequence[Option], words: Sequence[str], called: str) -> None:
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    lacking = [f"{option.flag} {option.values}" for option in options if option.required and option.flag not in given]
    if lacking:
        raise ValueError(f"{' and '.join(lacking)} must be given; {called} --help explains".replace("  ", " "))


def _with_values_of_lone_flags(options: Sequence[Option], words: Sequence[str]) -> list[str]:
    """The words, where flags that may stand alone have the value that they have then."""
    alone = {option.flag: option.alone for option in options if option.alone}
    found = []
    for word, after in itertools.zip_longest(words, words[1:], fillvalue="--"):
        found += [word, alone[word]] if word in alone and after.startswith("--") else [word]
    return found


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Messages of tyro without line breaks."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _explained(box: str, options: Sequence[Option], words: Sequence[str]) -> str:
    """What tyro says in its box, in one line, with the meaning of the option that it is about."""
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│|╭╮╰╯+ ") for line in box.splitlines()]
    lines = [line for line in plain if line.strip("─-")]
    message = " ".join(lines[1 : next((i for i, line in enumerate(lines) if _AFTERWARDS.match(line)), len(lines))])
    if found := re.match(r"Unrecognized (?:options|arguments): (.*)", message):
        return f"{found[1]!r} is not expected there"
    option = next((o for o in options if re.search(rf"(?<!\S)'?{o.flag}\b(?!-)", message)), None)
    if option is None:
        return re.sub(r"^Error parsing \S+: ", "", message)
    given = [word for word in words[words.index(option.flag) + 1 :] if option.flag in words]
    value = " ".join(itertools.takewhile(lambda word: not word.startswith("--"), given))
    return f"{option.flag} {value or 'without a value'} is not allowed; it takes {option.values}: {option.summary}"
