"""This module writes one log record as one readable line, for the console and for `logs -f`."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from supervisor.observe.sanitize import one_line

COLOURS: Final = ("36", "35", "33", "32", "34", "96", "95", "93", "92", "94")
_LEVELS: Final = {"debug": "2", "info": "0", "warning": "33", "error": "31", "critical": "1;31"}
_SHOWN_FIRST: Final = ("pipeline", "engine", "incarnation")
_HIDDEN: Final = frozenset(["timestamp", "level", "event", "run", "group", *_SHOWN_FIRST])
_LONGEST_VALUE: Final = 100
"""Characters of one value on a terminal's line; the whole of it is in the JSON log."""
_UNBOUNDED: Final = 1 << 20
"""Records are bounded when they are written."""


def paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def source_of(record: Mapping[str, Any]) -> str:
    """Return what a record is about: `p1/engine/0`, `p1/trainer`, `p1`, or nothing."""
    pipeline, engine, group = record.get("pipeline"), record.get("engine"), record.get("group")
    if pipeline is None:
        return ""
    part = f"/engine/{engine}" if engine is not None else f"/{group}" if group is not None else ""
    return one_line(f"{pipeline}{part}", 64)


def readable(record: Mapping[str, Any], colour: bool, *, cut: bool = False, dated: bool = False) -> str:
    """Return `12:03:04.123 info    p1/engine/0 ready incarnation=2 port=20001`, always one line; `dated` puts the day before the time.

    `cut` shortens long values, for somebody who watches a terminal; a file, a pipe and `logs` get all of them.
    """
    level = one_line(str(record.get("level", "info")), 10)
    time = one_line(str(record.get("timestamp", "")), 40)
    clock = time if len(time) < 23 else f"{time[:10]} {time[11:23]}" if dated else time[11:23]
    parts = [paint(clock, "2", colour), paint(f"{level:7}", _LEVELS.get(level, "0"), colour)]
    if source := source_of(record):
        parts.append(paint(source, colour_of(source), colour))
    parts.append(paint(one_line(str(record.get("event", ""))), "1" if level != "debug" else "0", colour))
    if record.get("incarnation") not in (None, 1):  # a first life is nothing to mention
        parts.append(paint(f"incarnation={one_line(str(record['incarnation']), 20)}", "2", colour))
    for key, value in record.items():
        if key not in _HIDDEN and value is not None:
            parts.append(paint(f"{one_line(str(key), 64)}=", "2", colour) + _value(value, cut))
    return " ".join(parts)


def _value(value: Any, cut: bool) -> str:
    if isinstance(value, str):
        text = one_line(value, _UNBOUNDED)
        return text if text and " " not in text else f'"{text}"'
    if isinstance(value, float):
        return f"{value:.4g}"
    text = one_line(msgspec.json.encode(value).decode(), _UNBOUNDED)
    return text if not cut or len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def colour_of(source: str) -> str:
    """Return always the same colour for the same source."""
    return COLOURS[sum(source.encode()) % len(COLOURS)]
