"""This module reads the files of a configuration, lays them over each other, and knows where each key of the result was written."""

import os
import re
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.config.schema import layers
from supervisor.config.schema.findings import Finding
from supervisor.config.schema.line_numbers import line_of, lines
from supervisor.errors import ConfigError, Mistake

LIMIT: Final = 256 * 1024
"""Bytes of a configuration file."""
RESOLVED: Final = "config.resolved.json"
"""The record of a configuration in an attempt; it can be loaded in place of a file."""
_SETTING: Final = "--set"


@dataclass(slots=True)
class Places:
    """Where the keys were written. Lines are counted through all files, so that one number says file and line."""

    file: str
    _lines: dict[str, int] = field(default_factory=dict)
    _starts: list[tuple[int, str]] = field(default_factory=list)

    def add(self, name: str, text: str, moved: dict[int, int]) -> None:
        """Take in a further file, whose pipelines have these positions in the whole."""
        start = self._next()
        self._starts.append((start, name))
        for key, line in lines(text).items():
            self._lines[_moved(key, moved)] = start + line
        self._lines[""] = start + text.count("\n") + 2

    def add_setting(self, setting: str, key: str) -> None:
        self._starts.append((start := self._next(), f"{_SETTING} {setting.partition('=')[0]}"))
        self._lines[key] = start
        self._lines[""] = start + 1

    def _next(self) -> int:
        return self._lines.pop("", 0)

    def of(self, key: str) -> tuple[str, int | None]:
        """Return file and line of a key; of the nearest table around it that has one."""
        line = line_of(key, {known: number for known, number in self._lines.items() if known})
        if line is None:
            return self.file, None
        start, name = max(one for one in self._starts if one[0] <= line)
        return name, None if name.startswith(_SETTING) else line - start


def _moved(key: str, moved: dict[int, int]) -> str:
    found = re.match(r"pipeline\[(\d+)\]", key)
    return f"pipeline[{moved[int(found[1])]}]{key[found.end() :]}" if found and int(found[1]) in moved else key


@dataclass(frozen=True, slots=True)
class Sources:
    """What was read. `base` is the folder from which paths are taken, `name` that of the runs, both by the last file; `source` is for the record."""

    table: dict[str, Any]
    places: Places
    source: bytes
    path: Path
    base: Path
    name: str
    findings: tuple[Finding, ...] = ()


def read_all(paths: Sequence[Path], settings: Sequence[str] = ()) -> Sources:
    """Read TOML files, the later over the earlier, then the settings; or the record of an attempt alone. Raises ConfigError."""
    last = paths[-1]
    places = Places(str(last))
    if last.name == RESOLVED:
        source = _bytes(last)
        base = _folder(last)
        text, table = _parse_json(source, str(last))
        places.add(str(last), text, {})
        found: list[Finding] = []
    else:
        table, source, found = {}, b"", []
        for path in paths:
            read = _bytes(path)
            text, above = _parse(read, str(path))
            places.add(str(path), text, layers.merge(table, above))
            source += (f"# {path}\n".encode() if len(paths) > 1 else b"") + read
        base = _folder(last)
    for setting in settings:
        try:
            places.add_setting(setting, layers.assign(table, setting))
        except layers.Unsettable as error:
            raise _broken(f"{_SETTING} {setting}", str(error), "Keys are those of the file.") from error
        source += f"# {_SETTING} {setting}\n".encode()
    if last.name != RESOLVED:
        table = layers.expanded(table, os.environ, found.append)
    name = base.parent.name if last.name == RESOLVED else _stem(last)
    return Sources(table, places, source, last, base, name, tuple(found))


def _folder(file: Path) -> Path:
    try:
        return Path(os.path.abspath(file)).parent
    except OSError as error:  # the working directory was removed under us
        raise _broken(file, f"the working directory is gone: {error.strerror}", "Change to another directory.") from error


def _stem(file: Path) -> str:
    """Returns the name of the runs of this file, safe as a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip(".-")[:64] or "run"


def _bytes(file: Path) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _broken(file, f"cannot be read: {reason}", "Give the path of a TOML file.") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _broken(file, "is not a file", "Give the path of a TOML file.")
        source = b""
        while len(source) <= LIMIT and (more := os.read(descriptor, LIMIT + 1 - len(source))):
            source += more
    except OSError as error:
        raise _broken(file, f"cannot be read: {error.strerror}", "Give the path of a TOML file.") from error
    finally:
        os.close(descriptor)
    if len(source) > LIMIT:
        raise _broken(file, f"has more than {LIMIT // 1024} KiB", "This is no configuration of ours.")
    return source


def _parse(source: bytes, file: str) -> tuple[str, dict[str, Any]]:
    try:
        text = source.decode("utf-8-sig")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = source[: error.start].count(b"\n") + 1
        raise _broken(file, f"is not UTF-8 (byte {error.start})", "Save it as UTF-8.", line) from error
    except RecursionError as error:
        raise _broken(file, "is nested too deeply", "This is no configuration of ours.") from error
    except (
        ValueError
    ) as error:  # TOMLDecodeError, which has no field for the line before Python 3.14; a number of 5,000 digits gives the plain one
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        raise _broken(file, f"is not TOML: {error}", "Correct the syntax (https://toml.io).", int(at[1]) if at else None) from error


def _parse_json(source: bytes, file: str) -> tuple[str, dict[str, Any]]:
    """Reads our own record; what is null there was not given."""
    try:
        table = msgspec.json.decode(source, type=dict[str, Any])
        return "", {key: _given(value) for key, value in table.items() if value is not None}
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"is not the record of a configuration: {error}", "Resume with the configuration file itself.") from error


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _broken(file: str | Path, problem: str, remedy: str, line: int | None = None) -> ConfigError:
    return ConfigError([Mistake(str(file), "", "", problem, remedy, line)])
