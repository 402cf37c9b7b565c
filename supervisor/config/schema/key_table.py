"""README's table of keys, printed from the types: `python -m supervisor.config.schema.key_table`.

Names and defaults are those of the tables' fields, the meaning is the docstring below each field.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from supervisor.config.schema import tables
from supervisor.config.schema.toml_text import shown

TABLES: Final[Mapping[str, type[msgspec.Struct]]] = {
    "[host]": tables.HostTable,
    "[scheduler]": tables.SchedulerTable,
    "[health]": tables.HealthTable,
    "[logging]": tables.LoggingTable,
    "[notify]": tables.NotifyTable,
    "[[pipeline]]": tables.PipelineTable,
    "[pipeline.engine]": tables.EngineTable,
    "[pipeline.gateway]": tables.GatewayTable,
    "[pipeline.trainer]": tables.TrainerTable,
}
_INNER: Final = ("engine", "trainer", "gateway")
"""Keys of a pipeline that are tables themselves."""


def key_table(source: str) -> str:
    """Returns the table in Markdown. `source` is the text of `tables`, where the docstrings of fields are. Raises KeyError for a field without one."""
    meanings = _meanings(source)
    rows = ["| table | key | default | meaning |", "|---|---|---|---|"]
    for header, table in TABLES.items():
        fields = [field for field in msgspec.structs.fields(table) if field.name not in _INNER]
        for number, field in enumerate(fields):
            where = f" `{header}`" if number == 0 else ""
            default = _default(field)
            rows.append(f"|{where} | `{field.name}` |{f' {default}' if default else ''} | {meanings[table.__name__, field.name]} |")
    return "\n".join(rows) + "\n"


def _default(field: msgspec.structs.FieldInfo) -> str:
    """Returns a default as TOML writes it; nothing where there is none."""
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "" if value in (None, [], {}) else f"{value:g}" if isinstance(value, float) else shown(value)


def _meanings(source: str) -> dict[tuple[str, str], str]:
    """Returns docstrings of fields by (class, field), in one line, without the full stop at the end."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found.update(((node.name, name), text) for name, text in _documented(node))
    return found


def _documented(table: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(table.body, table.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split()).removesuffix(".").replace("|", "\\|")
            case _:
                pass


if __name__ == "__main__":
    print(key_table(inspect.getsource(tables)), end="")
