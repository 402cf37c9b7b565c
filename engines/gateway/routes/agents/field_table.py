"""This program prints what becomes of each field of OpenAI's two generating routes, as docs/gateway.md shows it."""

from collections.abc import Iterable, Iterator
from typing import Any

from engines.gateway.routes.agents.chat_bodies import Chat
from engines.gateway.routes.fields import NEUTRAL, REFUSED
from engines.gateway.routes.openai_bodies import Completion


def table() -> str:
    """Return the table as Markdown."""
    both, of_completion, of_chat = _split(Completion.__struct_fields__, Chat.__struct_fields__)
    return "\n".join(
        [
            "| field | what becomes of it |",
            "|---|---|",
            f"| {_names(both)} | honoured by both routes |",
            f"| {_names(of_completion)} | honoured by `/v1/completions` |",
            f"| {_names(of_chat)} | honoured by `/v1/chat/completions` |",
            *(f"| {_names(names)} | refused: {why} |" for why, names in _grouped((name, why) for name, (why, _) in REFUSED.items())),
            *(f"| {_names(names)} | changes no answer ({why}) |" for why, names in _grouped(NEUTRAL.items())),
        ]
    )


def _split(one: Iterable[str], other: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    first, second = set(one), set(other)
    return sorted(first & second), sorted(first - second), sorted(second - first)


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, why in pairs:
        groups.setdefault(why, []).append(name)
    yield from groups.items()


def _names(names: Iterable[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(table())
