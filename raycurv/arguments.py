"""Checks of arguments and the text of settings, one form for all rooms."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import re
import string
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_EXACT_WHOLE = 1e15  # floats below it hold every whole number
_NAME = frozenset(string.ascii_letters + string.digits + "-_.")
_PASSWORD = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s/:@'\"]*:)[^\s/'\"]+@")  # scheme://user:password@
_SECRET_OPTION = re.compile(r"(?i)([?&;](?:[\w-]*(?:password|passwd|secret|token|access_?key)[\w-]*)=)[^&;#\s'\"]+")
_SETTING = re.compile(r"(\w+)=(.*?)(?= \w+=|$)")


def require(argument: str, value: object, holds: bool, allowed: str) -> None:
    """Refuse an argument out of bounds.

    Args:
        argument: owner and name of the argument, such as ``"RunConfig.epochs"`` or ``"curveball: damping"``.
        value: value that was given.
        holds: whether it is allowed.
        allowed: description of what is allowed, as the end of "it must be …".

    Raises:
        ValueError: `holds` is false.
    """
    if not holds:
        raise ValueError(f"{argument} is {value!r}; it must be {allowed}")


def require_positive(argument: str, value: float) -> None:
    """Refuse what is not a positive finite number.

    Raises:
        ValueError: it is not.
    """
    require(argument, value, 0 < value < math.inf, "a positive finite number")


def require_whole(argument: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ValueError: it is not.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(argument, value, whole, f"a whole number of at least {least}")


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    **dict.fromkeys(("Kind", "Status"), str),  # one of several words
    "Mapping[str, float]": Mapping,
    "Mapping[str, str]": Mapping,
}


def require_field_types(found: T) -> T:
    """Check a dataclass that was read from a file.

    Args:
        found: instance, whose fields may have any values.

    Returns:
        The instance, if its fields of plain types have the types of their annotations.

    Raises:
        ValueError: one has another type.
    """
    for field in dataclasses.fields(found):  # type: ignore[arg-type]
        value, kind = getattr(found, field.name), str(field.type)
        right = isinstance(value, _FIELD_TYPES.get(kind, object))
        if kind == "Mapping[str, float]" and right:
            right = all(isinstance(number, (int, float)) for number in value.values())
        if not right:
            raise ValueError(f"{field.name} is {value!r}, which is no {kind}")
    return found


def require_run_name(argument: str, name: str) -> None:
    """Refuse what cannot name a run and its folder.

    Raises:
        ValueError: it is empty, too long, or has other characters.
    """
    holds = 0 < len(name) <= 128 and set(name) <= _NAME and name[0] not in ".-"
    require(argument, name, holds, "1 to 128 letters, digits, '-', '_' or '.', not starting with '.' or '-'")


def mask_passwords(text: str) -> str:
    """The text with ``***`` in place of passwords and keys in addresses, for messages, tags and files."""
    return _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def unknown(kind: str, name: object, known: Collection[str]) -> str:
    """The message for an unknown name: the nearest ones, then all.

    Args:
        kind: such as ``"optimizer"``.
        name: name that was given.
        known: all names.
    """
    text = str(name)
    near = difflib.get_close_matches(text, known, 3) or [n for n in known if text and text in n][:3]
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{kind} {name!r} is unknown; {hint}all names: {', '.join(known) or 'none'}"


def format_setting(value: Any) -> str:
    """A setting as text: 1.0 and 1 read alike, and so does their text in MLflow."""
    if isinstance(value, str):
        return _format_text(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(format_setting, value))}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < _EXACT_WHOLE):
        return str(int(value))
    short = f"{value:g}"
    return short if math.isclose(float(short), value, rel_tol=1e-9) else f"{value:.12g}"


def format_settings(settings: Mapping[str, Any]) -> str:
    """Settings as ``name=value`` separated by spaces, in their order."""
    return " ".join(f"{name}={format_setting(value)}" for name, value in settings.items())


def reformat_settings(text: str) -> str:
    """Settings that an earlier version wrote as text, in the form of :func:`format_settings`; other text unchanged."""
    pairs = _SETTING.findall(text)
    return format_settings(dict(pairs)) if " ".join("=".join(pair) for pair in pairs) == text else text


def _format_text(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return format_setting(value) if isinstance(value, (int, float, tuple, list)) else text
