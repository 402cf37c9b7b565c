"""This module finds the line of a key in a TOML text. PURE.

It is a best effort over lines, since `tomllib` keeps no positions: a wrong guess costs a number, not a meaning.
"""

import re

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_INLINE = re.compile(r"[{,]\s*([A-Za-z0-9_-]+)\s*=")
_QUOTES = re.compile(r'"""|' + r"'''")


def lines(text: str) -> dict[str, int]:
    """Key path (`pipeline[1].engine.gpus`) -> line number from 1, of everything that looks like a key or a table's header."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    quoted = False
    for number, line in enumerate(text.splitlines(), 1):
        inside = quoted
        quoted ^= len(_QUOTES.findall(line)) % 2 == 1
        if inside or len(line) > 2000:
            continue
        if header := _HEADER.match(line):
            table = _table(header[2], header[1] == "[[", counts)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            path = f"{table}.{_plain(key[1])}" if table else _plain(key[1])
            found.setdefault(path, number)
            for inner in _INLINE.finditer(line, key.end()):
                found.setdefault(f"{path}.{inner[1]}", number)
    return found


def _plain(dotted: str) -> str:
    return re.sub(r"""["'\s]""", "", dotted)


def _table(dotted: str, array: bool, counts: dict[str, int]) -> str:
    """Returns the path of a header, with the position of each array of tables that was opened so far."""
    path = ""
    parts = _plain(dotted).split(".")
    for depth, part in enumerate(parts, 1):
        path = f"{path}.{part}" if path else part
        if array and depth == len(parts):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = f"{path}[{counts[path]}]"
    return path


def line_of(key: str, found: dict[str, int]) -> int | None:
    """Returns the line of a key, or of the nearest table around it that has one."""
    while key:
        if key in found:
            return found[key]
        shorter = re.sub(r"(\[\d+\]|\.?[^.\[\]]+)$", "", key)
        key = shorter if len(shorter) < len(key) else key[:-1]
    return None
