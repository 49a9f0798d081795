"""Help of a command on one screen: the options that matter first, names of others, an example."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from typing import Any

from raycurv.cli.commands import COMMANDS, GROUPS
from raycurv.cli.options import Option, groups

_COLUMN = 26  # of the texts beside the flags
_NAMED = 6  # lines with names of options that are not explained


def overview(prog: str) -> str:
    """What ``raycurv --help`` prints."""
    lines = [
        f"usage: {prog} COMMAND [options]",
        "",
        "Train networks on a Ray cluster with nothing to tune, and compare optimizers in MLflow.",
    ]
    lines += ["", "commands:", *(_entry(command.name, command.summary) for command in COMMANDS)]
    lines += [
        "",
        "first steps:",
        f"  {prog} prepare digits                       # small images, without a download",
        f"  {prog} train digits --compare sgd adam      # three optimizers, on a Ray of its own",
        f"  {prog} compare",
        f"  {prog} ui                                   # the runs in MLflow",
        "",
        f"{prog} COMMAND --help shows the options of a command; {prog} --version the version.",
    ]
    return "\n".join(lines)


def group_help(prog: str, group: str) -> str:
    """The commands of a group, such as ``sweep``."""
    inside = [command for command in COMMANDS if command.group == group]
    names = "|".join(command.name.split()[-1] for command in inside)
    entries = [_entry(command.name.split()[-1], command.summary) for command in inside]
    more = f"{prog} {names.split('|')[0]} --help shows the options of a command."
    return "\n".join([f"usage: {prog} {names} [options]", "", _sentence(GROUPS[group]), "", *entries, "", more])


def command_help(called: str, kind: type, *, complete: bool = False) -> str:
    """The help of a command.

    Args:
        called: command as it was typed.
        kind: its dataclass. ``SHOWN`` names the options of the short help, by default all; ``EXAMPLE`` is an example.
        complete: all options, with all that is written about them.
    """
    found, shown = groups(kind), getattr(kind, "SHOWN", None)
    if complete or shown is None:
        shown = [option.name for group in found for option in group.options]
    lines = [f"usage: {called} {getattr(kind, 'USAGE', '[options]')}", ""]
    lines += _wrapped((inspect.getdoc(kind) or "").split("\n\n")[0])
    for group in found:
        if picked := [option for option in group.options if option.name in shown]:
            lines += ["", f"{group.title}:"]
            for option in picked:
                lines += _described(option, complete=complete)
    if hidden := [option.flag for group in found for option in group.options if option.name not in shown]:
        names = _wrapped(" ".join(hidden), "  ")
        cut = [*names[: _NAMED - 1], "  …"] if len(names) > _NAMED else names
        lines += ["", "more options, explained by --help-all:", *cut]
    if example := getattr(kind, "EXAMPLE", ""):
        lines += ["", "example:", *(f"  {line}" for line in example.splitlines())]
    return "\n".join(lines)


def _described(option: Option, *, complete: bool) -> list[str]:
    left = f"  {option.flag} {option.values}".rstrip()
    text = option.text if complete else option.summary
    if option.required:
        text += " (required)"
    elif _worth_showing(option.default):
        default = _default(option.default)
        text += f" ({default})" if complete or len(default) < 30 else ""
    right = textwrap.wrap(text, _width() - _COLUMN, break_on_hyphens=False)
    if len(left) >= _COLUMN - 1:
        return [left, *(" " * _COLUMN + line for line in right)]
    return [left.ljust(_COLUMN) + right[0], *(" " * _COLUMN + line for line in right[1:])] if right else [left]


def _worth_showing(default: Any) -> bool:
    return default is not None and default is not False and default is not True and default not in ((), "")


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_default, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(name: str, text: str) -> str:
    return f"  {name.ljust(20)}{text}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size((80, 24)).columns)) - 1
