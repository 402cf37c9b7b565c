"""This module reads the source of a chat template without the library that runs it, and says whether it compiles: for `check`, before anything is started."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

_LARGEST: Final = 4 << 20


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`, with which `transformers` marks what an assistant has said: it prints its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def problems(model: Path) -> list[str]:
    """Return a sentence for each of the folder's chat templates that does not compile."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])  # parsed, never rendered
    found = []
    for where, source in sources(model):
        try:
            environment.parse(source)
        except TemplateError as error:
            found.append(f"{where}, line {getattr(error, 'lineno', '?')}: {error}")
        except RecursionError:
            found.append(f"{where}: it is nested too deeply")
    return found


def sources(model: Path) -> Iterator[tuple[str, str]]:
    """Yield where each chat template of the folder stands, and its source. What cannot be read is passed over."""
    try:
        files = [model / "chat_template.jinja", *sorted((model / "additional_chat_templates").glob("*.jinja"))]
        for path in files:
            if path.is_file() and path.stat().st_size <= _LARGEST:
                yield str(path), path.read_text(encoding="utf-8")
        config = model / "tokenizer_config.json"
        if (model / "chat_template.jinja").is_file() or not config.is_file() or config.stat().st_size > _LARGEST * 16:
            return
        made = json.loads(config.read_text(encoding="utf-8"))
        template = made.get("chat_template") if isinstance(made, dict) else None
    except (OSError, ValueError):
        return
    entries = template if isinstance(template, list) else [{"name": "", "template": template}]
    for entry in entries:
        if isinstance(entry, dict) and isinstance(source := entry.get("template"), str):
            name = entry.get("name")
            yield f"{config}, chat_template{f' {name!r}' if name else ''}", source
