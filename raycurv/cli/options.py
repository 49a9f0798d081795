"""The options of a command, read from its dataclass: flags, what they take, defaults and the texts of the help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


@dataclass(frozen=True)
class Option:
    """One flag.

    Attributes:
        name: name of the field.
        flag: such as ``--batch-size``.
        values: placeholder of what it takes, empty for a switch.
        text: description of the option.
        default: value when it is left out; None where nothing is set.
        required: whether it must be given.
        alone: value where the flag stands alone; empty if it cannot.
    """

    name: str
    flag: str
    values: str
    text: str
    default: Any
    required: bool
    alone: str = ""

    @property
    def summary(self) -> str:
        """The text up to its first full stop or semicolon."""
        return re.split(r"; |(?<=[^.])\. (?=[A-Z0-9`])", self.text)[0].rstrip(".")


@dataclass(frozen=True)
class Group:
    """Options that belong together.

    Attributes:
        title: one line.
        options: options in the order of their fields.
    """

    title: str
    options: tuple[Option, ...]


def groups(command: type) -> tuple[Group, ...]:
    """The command's own options, then those of the dataclasses in its fields."""
    own, nested = [], []
    hints = get_type_hints(command)
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            nested.append(hints[field.name])
        else:
            own.append(field.name)
    texts = field_texts(command)
    first = Group("options", tuple(_option(command, name, hints[name], texts) for name in own))
    return (first, *(Group(_title(kind), groups(kind)[0].options) for kind in nested))


def all_options(command: type) -> tuple[Option, ...]:
    """The options of all groups."""
    return tuple(option for group in groups(command) for option in group.options)


def field_texts(kind: type) -> dict[str, str]:
    """The texts about the fields of a dataclass: below each field, or under ``Attributes:`` of its docstring."""
    documented = getattr(kind, "DOCUMENTED_BY", kind)
    return {**_attributes_section(inspect.getdoc(documented) or ""), **dict(_below_fields(kind))}


def _below_fields(kind: type) -> Iterator[tuple[str, str]]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    for statement, after in itertools.pairwise(body):
        text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(text, str):
            yield statement.target.id, _plain(text)


def _attributes_section(doc: str) -> dict[str, str]:
    section = textwrap.dedent(doc.partition("\nAttributes:\n")[2])
    entries = (entry.partition(":") for entry in re.split(r"\n(?=\S)", section))
    return {name: _plain(text) for name, mark, text in entries if mark}


def _plain(text: str) -> str:
    """A text of a docstring without its markup, on one line, with a capital at its start."""
    text = " ".join(_ROLE.sub(r"\1", text).replace("``", "").replace('"', "").split())
    word = text.partition(" ")[0].rstrip(",;:.")
    return text[:1].upper() + text[1:] if word.isalpha() else text  # fp32 or cross_entropy stay


def _title(kind: type) -> str:
    return (inspect.getdoc(kind) or kind.__name__).splitlines()[0].rstrip(".")


def _option(command: type, name: str, hint: Any, texts: dict[str, str]) -> Option:
    (field,) = (field for field in dataclasses.fields(command) if field.name == name)
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None if required else field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    values = field.metadata.get("values") or _values(name, hint)
    negated = hint is bool and default is True
    flag = "--" + ("no_" * negated + name).replace("_", "-")
    alone = field.metadata.get("alone", "")
    return Option(name, flag, values, texts.get(name, ""), default, required, alone)


def _values(name: str, hint: Any) -> str:
    """A placeholder: N for whole numbers, X for others, the last word of the name for texts."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        inner = _values(name.removesuffix("s"), get_args(hint)[0])
        return f"{inner} …"
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    return {bool: "", int: "N", float: "X"}.get(hint, name.rpartition("_")[2].upper())
