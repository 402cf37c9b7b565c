"""This module makes text of children, models and peers fit for a log line or a terminal: no control characters, no escape sequences, bounded."""

import re
from typing import Any, Final

ESCAPES: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_]|[ -/]+[0-~])?|\x9b[0-?]*[ -/]*[@-~]?"
)
"""ANSI escape sequences (CSI, OSC and the other strings, two-byte ones), also cut off in the middle."""
CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
"""C0 and C1 controls but tab and newline, direction marks, invisible and unpaired characters."""
LONGEST: Final = 2000
_ITEMS: Final = 64
_DEPTH: Final = 4


def plain(text: str, limit: int = LONGEST) -> str:
    """Return the text without escape sequences and control characters (tab and newline stay), cut to `limit` characters."""
    text = CONTROLS.sub("", ESCAPES.sub("", text[: 4 * limit]))  # what is far beyond the cut need not be cleaned
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more)"


def one_line(text: str, limit: int = LONGEST) -> str:
    """Return the text as `plain` does, with a backslash and an n for a newline and a space for a tab, so that it is one line whatever it was."""
    return plain(text, limit).replace("\n", "\\n").replace("\t", " ")


def plain_value(value: Any, limit: int = LONGEST, depth: int = _DEPTH) -> Any:
    """Return any value as plain JSON values: strings cleaned and cut, long lists cut, objects as their text. Never raises."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else "a very large number"
    if isinstance(value, str):
        return plain(value, limit)
    if isinstance(value, dict) and depth:
        items = list(value.items())[:_ITEMS]
        return {plain(str(key), 128): plain_value(item, limit, depth - 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        several = list(value)
        cut = [plain_value(item, limit, depth - 1) for item in several[:_ITEMS]]
        return cut if len(several) <= _ITEMS else [*cut, f"… ({len(several) - _ITEMS} more)"]
    try:
        return plain(str(value), limit)
    except Exception as error:  # an object's own __str__ may do anything
        return f"<{type(value).__name__}: {type(error).__name__}>"
