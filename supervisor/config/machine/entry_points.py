"""This module finds what `module:function` names without importing it: sources are read, and nothing of them is executed.

Only what is sure is complained of: a module that builds its names as it runs (`__getattr__`, `from x import *`) may have any.
"""

import ast
import difflib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder, SourceFileLoader
from typing import Any, Final, NamedTuple

_LIMIT: Final = 4 << 20
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Missing(NamedTuple):
    """A function cannot be run, and why. `remedy` is empty where the caller knows better."""

    problem: str
    remedy: str = ""


def find(spec: str, places: Sequence[str]) -> Function | Missing | None:
    """Returns the function that `module:function` names, why there is none, or None where that cannot be said. `places` are searched in order."""
    module, _, name = spec.partition(":")
    found: Any = None
    parts = module.split(".")
    for depth, part in enumerate(parts, 1):
        found = PathFinder.find_spec(part, list(places)) if places else None  # by its last name: a dotted one would look at sys.modules
        if found is None:
            close = difflib.get_close_matches(part, [item.name for item in pkgutil.iter_modules(list(places))], n=1)
            meant = ".".join([*parts[: depth - 1], *close, *parts[depth:]])
            return Missing(f"there is no module {'.'.join(parts[:depth])}", f'Did you mean "{meant}:{name}"?' if close else "")
        places = list(found.submodule_search_locations or ())
    return _in_file(found.origin, module, name) if isinstance(found.loader, SourceFileLoader) else None


def _in_file(path: str, module: str, name: str) -> Function | Missing | None:
    try:
        with open(path, "rb") as file:
            source = file.read(_LIMIT)
        tree = ast.parse(source, path)
    except SyntaxError as error:
        return Missing(f"{path}, line {error.lineno or 1}: {error.msg}", "Correct it: Python cannot read this file.")
    except (OSError, ValueError, RecursionError, MemoryError):
        return None
    names: dict[str, ast.stmt] = {}
    for statement in _statements(tree.body):
        for bound in _bound(statement):
            names[bound] = statement
    if name in names:
        there = names[name]
        return there if isinstance(there, Function) and not there.decorator_list else None
    if "*" in names or "__getattr__" in names:
        return None
    close = difflib.get_close_matches(name, [known for known, node in names.items() if isinstance(node, Function | ast.ClassDef)], n=1)
    return Missing(f"{path} has no function {name}", f'Did you mean "{module}:{close[0]}"?' if close else "")


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements that bind names of the module, inside `if`, `try`, `with` and loops too."""
    for statement in body:
        yield statement
        if not isinstance(statement, Function | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, field, []))
            for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
                yield from _statements(part.body)


def _bound(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
        case _:
            nodes = (
                node for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr | ast.withitem) for node in ast.walk(child)
            )
            yield from (node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def needs(function: Function) -> list[str]:
    """Parameters that a call must give."""
    arguments = function.args
    ordered = [*arguments.posonlyargs, *arguments.args]
    given = ordered[: len(ordered) - len(arguments.defaults)]
    by_name = [each for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    return [each.arg for each in (*given, *by_name)]


def misfits(function: Function, options: Mapping[str, object]) -> Iterator[tuple[str, Missing]]:
    """Yields the options that a call `function(directory, **options)` does not take, and those that it lacks."""
    arguments = function.args
    ordered = [*arguments.posonlyargs, *arguments.args]
    known = [each.arg for each in (*ordered[1:], *arguments.kwonlyargs)]
    for key in options:
        if key not in known and arguments.kwarg is None:
            close = difflib.get_close_matches(key[:64], known, n=1)
            remedy = f"Did you mean `{close[0]}`?" if close else f"It takes: {', '.join(known) or 'none'}."
            yield key, Missing(f"is no option of {function.name}", remedy)
    for name in needs(function):
        if name not in options and name != (ordered[0].arg if ordered else ""):
            yield name, Missing(f"is missing, and {function.name} must have it", "Give it a value.")
