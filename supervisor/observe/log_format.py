"""This module writes one log record as one readable line, for the console and for `logs -f`."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.cells import cell_len, set_cell_size

from supervisor.observe.sanitize import one_line

COLOURS: Final = ("36", "35", "33", "32", "34", "96", "95", "93", "92", "94")
_LEVELS: Final = {"debug": "2", "info": "0", "warning": "33", "error": "31", "critical": "1;31"}
_SHOWN_FIRST: Final = ("pipeline", "engine", "incarnation")
_HIDDEN: Final = frozenset(["timestamp", "level", "event", "run", "group", *_SHOWN_FIRST])
_ESCAPE: Final = re.compile("\x1b\\[[0-9;]*m")
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


def readable(record: Mapping[str, Any], colour: bool, *, width: int | None = None, dated: bool = False) -> str:
    """Return `12:03:04.123 info    p1/engine/0 ready incarnation=2 port=20001` in local time, always one line; `dated` puts the day before it.

    `width` is that of the terminal on which somebody watches: what does not fit is left out, unless it is a warning or worse. A file, a pipe
    and `logs` get all of it.
    """
    level = one_line(str(record.get("level", "info")), 10)
    parts = [paint(local(record.get("timestamp", ""), dated), "2", colour), paint(f"{level:7}", _LEVELS.get(level, "0"), colour)]
    if source := source_of(record):
        parts.append(paint(source, colour_of(source), colour))
    room = width if level in ("debug", "info") else None
    event = one_line(str(record.get("event", "")))
    if room is not None:
        event = cut(event, room - _columns(" ".join(parts)) - 1)
    head = [*parts, paint(event, "1" if level != "debug" else "0", colour)]
    parts = []
    if record.get("incarnation") not in (None, 1):  # a first life is nothing to mention
        parts.append(paint(f"incarnation={one_line(str(record['incarnation']), 20)}", "2", colour))
    for key, value in record.items():
        if key not in _HIDDEN and value is not None:
            parts.append(paint(f"{one_line(str(key), 64)}=", "2", colour) + _value(value))
    return _fitted(head, parts, room)


def local(stamp: object, dated: bool) -> str:
    """Return the time of a record (`2026-11-27T12:03:04.123Z`) as a clock on the wall shows it; as it is where it is no time."""
    text = one_line(str(stamp), 40)
    try:
        time = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        return text
    return time.strftime("%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S") + f".{time.microsecond // 1000:03}"


def _fitted(head: list[str], parts: list[str], width: int | None) -> str:
    """Join what must be there and, as far as they fit, the further parts; "…" says that some did not."""
    line = " ".join((*head, *parts))
    if width is None or _columns(line) <= width:
        return line
    while parts and _columns(" ".join((*head, *parts, "…"))) > width:
        parts = parts[:-1]
    line = " ".join((*head, *parts, "…"))
    return line if _columns(line) <= width else " ".join(head)


def cut(text: str, width: int) -> str:
    """Return what fits into so many columns; "…" says that something did not."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 1)).rstrip()}…"


def _columns(text: str) -> int:
    return cell_len(_ESCAPE.sub("", text))


def _value(value: Any) -> str:
    if isinstance(value, str):
        text = one_line(value, _UNBOUNDED)
        return text if text and " " not in text else f'"{text}"'
    if isinstance(value, float):
        return f"{value:.4g}"
    return one_line(msgspec.json.encode(value).decode(), _UNBOUNDED)


def colour_of(source: str) -> str:
    """Return always the same colour for the same source."""
    return COLOURS[sum(source.encode()) % len(COLOURS)]
