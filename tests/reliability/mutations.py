"""Seeded changes of bytes, of JSON and of words."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

# Values that a field does not expect.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**70), 1e308, float("nan"), float("inf"), 0.5),
    *("", " ", "a", "é\u0000", "../../x", "os:system", "x" * 300, "1e999", "-", "\ud800"),
    *([], {}, [[]], [None], {"": None}, [1, "a"], {"target": "os:getcwd", "settings": {}}),
)


def of_bytes(draw: random.Random, content: bytes) -> bytes:
    """Change some bytes; now and then cut, repeat, move or insert a part."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        size = len(changed)
        at = draw.randrange(draw.choice((min(64, size), size))) if size else 0
        length = draw.choice((1, 2, 4, 8, 64, 1000))
        kind = draw.randrange(12)
        if size and kind < 8:
            old = changed[at]
            changed[at] = draw.choice((0, 255, 127, draw.randrange(256), old ^ 1 << draw.randrange(8), (old + 1) % 256))
        elif kind == 8:
            del changed[at : at + length]
        elif kind == 9:
            changed[at:at] = draw.randbytes(length)
        elif kind == 10:
            changed[at:at] = changed[at : at + length]
        else:
            del changed[at:]
    return bytes(changed)


def of_value(draw: random.Random, value: Any) -> Any:
    """Change some node of nested mappings and lists: another value, one less, one more, or much deeper."""
    if isinstance(value, (dict, list, tuple)) and value and draw.random() < 0.85:
        keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(keys)
        changed: Any = dict(value) if isinstance(value, dict) else list(value)
        kind = draw.random()
        if kind < 0.15:
            del changed[key]
        elif kind < 0.25 and isinstance(changed, dict):
            changed[draw.choice(("", "extra", "steps", "step", "name"))] = draw.choice(ODD)
        elif kind < 0.25:
            changed.insert(key, draw.choice(ODD))
        else:
            changed[key] = of_value(draw, value[key])
        return type(value)(changed)
    if draw.random() < 0.01:
        deep: Any = 0
        for _ in range(draw.choice((5, 500))):
            deep = [deep]
        return deep
    return draw.choice(ODD)


def of_json(draw: random.Random, content: bytes) -> bytes:
    """Change the text, or what it says."""
    if draw.random() < 0.3:
        return of_bytes(draw, content)
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = of_value(draw, value)
    return json.dumps(value).encode()


def of_words(draw: random.Random, words: Sequence[str], pool: Sequence[str]) -> list[str]:
    """Change, drop, repeat or add words of a command line."""
    changed = list(words)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        word = draw.choice((*pool, *map(str, ODD)))
        if kind == 0 and changed:
            changed[at % len(changed)] = word
        elif kind == 1 and changed:
            del changed[at % len(changed)]
        elif kind == 2 and changed:
            old = changed[at % len(changed)].encode("utf-8", "surrogatepass")
            changed[at % len(changed)] = of_bytes(draw, old).decode("utf-8", "replace")
        elif kind == 3:
            changed[at:at] = [word, draw.choice((*pool, *map(str, ODD)))]
        else:
            changed.insert(at, word)
    return changed
