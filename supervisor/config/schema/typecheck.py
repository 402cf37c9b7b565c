"""This module compares the plain values of a TOML file with the types of `tables`, and collects every mistake in one walk. PURE.

msgspec stops at the first error of a value; an operator wants them all. So the walk goes over msgspec's description of the types.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect as kinds

from supervisor.config.schema.findings import Finding
from supervisor.config.schema.tables import NAME, PARSER
from supervisor.config.schema.toml_text import join, shown

BAD: Final[Any] = object()
"""Stands for a value that could not be read."""

_MANY: Final = 32
"""Unknown keys of one table that are named; a file with more is not a configuration."""

Complain = Callable[[Finding], None]


def read(node: kinds.Type, value: Any, path: str, complain: Complain) -> Any:
    """Returns the value as the type `node` wants it, or BAD after at least one complaint."""
    match node:
        case kinds.StructType():
            return _struct(node, value, path, complain)
        case kinds.UnionType():
            return _union(node, value, path, complain)
        case kinds.ListType() if isinstance(value, list):
            return _all(list, [read(node.item_type, item, f"{path}[{i}]", complain) for i, item in enumerate(value)])
        case kinds.TupleType() if isinstance(value, list) and len(value) == len(node.item_types):
            items = zip(node.item_types, value, strict=True)
            return _all(tuple, [read(kind, item, f"{path}[{i}]", complain) for i, (kind, item) in enumerate(items)])
        case kinds.DictType() if isinstance(value, dict):
            read_in = {key: read(node.value_type, item, join(path, key), complain) for key, item in value.items()}
            return BAD if any(item is BAD for item in read_in.values()) else read_in
        case _:
            return _scalar(node, value, path, complain)


_FORMS: Final = {
    NAME: 'a name of lower-case letters, digits, - and _ (a letter first, at most 32), for example "math-1"',
    PARSER: 'the name of one of SGLang\'s parsers, for example "qwen25", or "none"',
}
"""Each pattern asks for this, as an operator would say it."""


def _all(make: Callable[[Iterable[Any]], Any], items: list[Any]) -> Any:
    return BAD if any(item is BAD for item in items) else make(items)


def _struct(node: kinds.StructType, value: Any, path: str, complain: Complain) -> Any:
    if not isinstance(value, dict):
        complain(Finding(path, value, f"is {_kind(value)}", f"Write it as a table: {_header(path)}."))
        return BAD
    fields = {field.encode_name: field for field in node.fields}
    meant = _unknown(value, fields, path, complain)
    good: dict[str, Any] = {}
    for name, field in fields.items():
        item = BAD
        if name in value:
            item = read(field.type, value[name], join(path, name), complain)
        elif field.required and name not in meant:
            complain(Finding(join(path, name), "", "is missing", f"Give {expected(field.type)}."))
        # A bad field takes its default, or an empty value, so that the rest of its table can still be checked; the file is refused anyway.
        if item is BAD and field.required:
            item = _placeholder(field.type)
            if item is BAD:
                return BAD
        if item is not BAD:
            good[field.name] = item
    return node.cls(**good)


def _header(path: str) -> str:
    """Returns the header of the table at a path: `[[pipeline]]`, `[pipeline.engine]`."""
    plain = re.sub(r"\[\d+\]", "", path)
    return f"[[{plain}]]" if path.endswith("]") else f"[{plain}]"


def _placeholder(node: kinds.Type) -> Any:
    match node:
        case kinds.ListType():
            return []
        case kinds.StrType() | kinds.UnionType():
            return ""
    return BAD


def _unknown(value: dict[str, Any], fields: dict[str, kinds.Field], path: str, complain: Complain) -> set[str]:
    """Complains of keys that are none; returns the keys that were probably meant."""
    meant: set[str] = set()
    unknown = [key for key in value if key not in fields]
    for key in unknown[:_MANY]:
        close = difflib.get_close_matches(key[:64], [name for name in fields if name not in value], n=1, cutoff=0.6)
        meant.update(close)
        remedy = f"Did you mean `{close[0]}`?" if close else f"Known keys here: {', '.join(fields)}."
        instead = tuple(join(path, name) for name in close)
        complain(Finding(join(path, key), value[key], "is an unknown key", remedy, instead))
    return meant


def _union(node: kinds.UnionType, value: Any, path: str, complain: Complain) -> Any:
    """Reads the value as the member that fits its kind, whose own complaints are better than 'none of these'."""
    for member in node.types:
        table = isinstance(member, kinds.StructType | kinds.DictType) and isinstance(value, dict)
        array = isinstance(member, kinds.ListType | kinds.TupleType) and isinstance(value, list)
        text = isinstance(member, kinds.StrType) and isinstance(value, str)
        if table or array or text:
            return read(member, value, path, complain)
    members = [member for member in node.types if not isinstance(member, kinds.NoneType)]
    if len(members) == 1:
        return read(members[0], value, path, complain)
    for member in members:
        quiet: list[Finding] = []
        item = read(member, value, path, quiet.append)
        if item is not BAD:
            return item
    complain(Finding(path, value, f"is {_kind(value)}", f"Give {expected(node)}."))
    return BAD


def _scalar(node: kinds.Type, value: Any, path: str, complain: Complain) -> Any:
    problem = _wrong(node, value)
    if problem is None:
        return float(value) if isinstance(node, kinds.FloatType) else value
    complain(Finding(path, value, problem, f"Give {expected(node)}."))
    return BAD


def _wrong(node: kinds.Type, value: Any) -> str | None:
    match node:
        case kinds.IntType() if isinstance(value, int) and not isinstance(value, bool):
            return _out_of_range(node, value)
        case kinds.FloatType() if isinstance(value, int | float) and not isinstance(value, bool):
            finite = (isinstance(value, float) and math.isfinite(value)) or (isinstance(value, int) and value.bit_length() < 512)
            return _out_of_range(node, value) if finite else "is not a finite number"
        case kinds.StrType() if isinstance(value, str):
            if "\0" in value:
                return "contains a NUL character"
            return "is not of the form that is wanted" if node.pattern is not None and not re.search(node.pattern, value) else None
        case kinds.BoolType() if isinstance(value, bool):
            return None
        case kinds.LiteralType() if not isinstance(value, bool) and isinstance(value, int | str):
            if value in node.values:
                return None
            close = difflib.get_close_matches(str(value)[:64], [str(option) for option in node.values], n=1)
            return "is not one of the choices" + (f" (did you mean {shown(close[0])}?)" if close else "")
        case kinds.TupleType() if isinstance(value, list):
            return f"has {len(value)} value{'s' if len(value) != 1 else ''}"
    return f"is {_kind(value)}"


def _out_of_range(node: kinds.IntType | kinds.FloatType, value: float) -> str | None:
    low = (node.ge is not None and value < node.ge) or (node.gt is not None and value <= node.gt)
    high = (node.le is not None and value > node.le) or (node.lt is not None and value >= node.lt)
    return "is too small" if low else "is too large" if high else None


def expected(node: kinds.Type) -> str:
    """Says what the type wants, as an operator would."""
    match node:
        case kinds.IntType():
            return "a whole number" + _range(node)
        case kinds.FloatType():
            return "a number" + _range(node)
        case kinds.StrType():
            return "a string" if node.pattern is None else _FORMS.get(node.pattern, "a string of the right form")
        case kinds.BoolType():
            return "true or false"
        case kinds.LiteralType():
            return " or ".join(f'"{option}"' for option in node.values)
        case kinds.ListType():
            return f"a list of {_plural(node.item_type)}"
        case kinds.TupleType():
            return f"a list of {len(node.item_types)} {_plural(node.item_types[0])}"
        case kinds.UnionType():
            return " or ".join(expected(member) for member in node.types if not isinstance(member, kinds.NoneType))
        case kinds.StructType():
            return f"a table with {', '.join(field.encode_name for field in node.fields if field.required)}"
        case _:
            return "a table"


def _plural(node: kinds.Type) -> str:
    match node:
        case kinds.IntType():
            return "whole numbers"
        case kinds.StrType():
            return "strings"
        case kinds.StructType():
            return "tables"
        case _:
            return expected(node)


def _range(node: kinds.IntType | kinds.FloatType) -> str:
    low = f" of at least {node.ge}" if node.ge is not None else f" above {node.gt}" if node.gt is not None else ""
    high = f" up to {node.le:g}" if node.le is not None and node.le < 2**31 else ""
    return low + high


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    for kind, name in ((str, "a string"), (int, "a whole number"), (float, "a number"), (list, "a list"), (dict, "a table")):
        if isinstance(value, kind):
            return name
    return "a date or time"


Choices = Mapping[type[msgspec.Struct], Mapping[str, Iterable[str]]]
"""Some tables have keys whose values must be one of these strings."""


def describe(table: type[msgspec.Struct], choices: Choices | None = None) -> kinds.StructType:
    """Returns the description that `read` walks. `choices` narrows strings to what is known only when the program runs."""
    node = kinds.type_info(table)
    assert isinstance(node, kinds.StructType)
    _narrow(node, choices or {})
    return node


def _narrow(node: kinds.Type, choices: Choices) -> None:
    match node:
        case kinds.StructType():
            for field in node.fields:
                if (options := choices.get(node.cls, {}).get(field.name)) is not None:
                    field.type = kinds.LiteralType(tuple(options))
                _narrow(field.type, choices)
        case kinds.ListType():
            _narrow(node.item_type, choices)
        case kinds.UnionType():
            for member in node.types:
                _narrow(member, choices)
        case _:
            pass
