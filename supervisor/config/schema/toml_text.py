"""This module writes values and keys as an operator would: in TOML, cut to what fits a line. PURE."""

import json
import math
import re
from collections.abc import Iterable
from typing import Final

_STRING: Final = 60
_ITEMS: Final = 8
_DEEP: Final = 3


def shown(value: object, depth: int = _DEEP) -> str:
    """Returns the value as TOML would have it, roughly and cut."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value) if value.bit_length() <= 200 else "a very large number"
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            return json.dumps(value if len(value) <= _STRING else value[: _STRING - 3] + "...", ensure_ascii=False)
        case list() | tuple():
            return f"[{_some((shown(item, depth - 1) for item in value[:_ITEMS]), len(value), depth)}]"
        case dict():
            pairs = (f"{bare(key)} = {shown(item, depth - 1)}" for key, item in [*value.items()][:_ITEMS])
            return f"{{ {_some(pairs, len(value), depth)} }}" if value else "{}"
        case _:
            return str(value)[:_STRING]  # a date or time


def _some(parts: Iterable[str], count: int, depth: int) -> str:
    if depth <= 0 and count:
        return "…"
    return ", ".join([*parts, *(["…"] if count > _ITEMS else [])])


def bare(key: str) -> str:
    """Returns a key as TOML would have it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else shown(key)


def join(path: str, key: str) -> str:
    return f"{path}.{bare(key)}" if path else bare(key)
