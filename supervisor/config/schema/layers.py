"""This module lays configurations over each other: a further file, or `--set KEY=VALUE`, changes what it names and leaves the rest. PURE.

Tables are merged key by key. `[[pipeline]]` tables are merged by `name`; one of a new name is added. Any other value replaces the old one.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final

from supervisor.config.schema.findings import Finding
from supervisor.config.schema.toml_text import join

_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_AS_WRITTEN: Final = frozenset(["command"])
"""Keys whose text is for a shell or a program, which has variables of its own."""
_DEEPEST: Final = 64


class Unsettable(ValueError):
    """A setting names nothing that a file could have. The text says why."""


def merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[int, int]:
    """Lay `above` over `below`, in place. Return where each pipeline of `above` is now: its position there -> its position here."""
    moved: dict[int, int] = {}
    for key, value in above.items():
        if key == "pipeline" and isinstance(value, list) and isinstance(below.get(key), list):
            moved = _merge_pipelines(below[key], value)
        else:
            _put(below, key, value)
    return moved


def _put(table: dict[str, Any], key: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, dict) and isinstance(table.get(key), dict) and depth < _DEEPEST:
        for inner, item in value.items():
            _put(table[key], inner, item, depth + 1)
    else:
        table[key] = value


def _merge_pipelines(below: list[Any], above: list[Any]) -> dict[int, int]:
    moved: dict[int, int] = {}
    for at, entry in enumerate(above):
        name = entry.get("name") if isinstance(entry, dict) else None
        found = None if name is None else _position(below, name)
        if found is None:
            moved[at] = len(below)
            below.append(entry)
        else:
            moved[at] = found
            for key, value in entry.items():
                _put(below[found], key, value)
    return moved


def _position(pipelines: list[Any], name: object) -> int | None:
    return next((at for at, one in enumerate(pipelines) if isinstance(one, dict) and one.get("name") == name), None)


def assign(table: dict[str, Any], setting: str) -> str:
    """Carry out `KEY=VALUE`, in place: `pipeline.p1.engine.slots=32`, `host.virtual=8`. Return the key's path. Raises Unsettable.

    A pipeline goes by its name; `pipeline.*` is each of them. The value is TOML; what is none is taken for a string.
    """
    key, equals, text = setting.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise Unsettable("is not KEY=VALUE, for example pipeline.p1.engine.slots=32")
    value = _value(text.strip())
    if parts[0] != "pipeline":
        _set(table, parts, value)
        return ".".join(parts)
    pipelines = table.get("pipeline")
    if not isinstance(pipelines, list) or len(parts) < 3:
        raise Unsettable("names no key of a pipeline, for example pipeline.p1.engine.slots=32")
    chosen = [at for at, one in enumerate(pipelines) if isinstance(one, dict) and parts[1] in ("*", one.get("name"))]
    if not chosen:
        names = ", ".join(str(one.get("name")) for one in pipelines if isinstance(one, dict))
        raise Unsettable(f"names no pipeline of the file: there are {names}")
    for at in chosen:
        _set(pipelines[at], parts[2:], value)
    return f"pipeline[{chosen[0]}]." + ".".join(parts[2:])


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _set(table: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise Unsettable(f"has no table {part}")
        table = inner
    table[parts[-1]] = value


def expanded(value: Any, variables: Mapping[str, str], complain: Callable[[Finding], None], path: str = "", depth: int = 0) -> Any:
    """Return the value with `${NAME}` and `${NAME:-default}` in its strings replaced; `$${` stands for `${`. What `command` has stays as it is."""
    if depth > _DEEPEST:
        return value
    if isinstance(value, dict):
        return {
            key: item if key in _AS_WRITTEN else expanded(item, variables, complain, join(path, key), depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [expanded(item, variables, complain, f"{path}[{at}]", depth + 1) for at, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replaced(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name is None:
            return "${"
        if name not in variables and default is None:
            remedy = f"Set it, give a default (${{{name}:-…}}), or write $${{{name}}} for the text itself."
            complain(Finding(path, value, f"needs the environment variable {name}, which is not set", remedy))
        return variables.get(name, default or "")

    return _VARIABLE.sub(replaced, value)
