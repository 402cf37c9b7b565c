"""This module turns the messages of a chat as clients send them (OpenAI's shape) into messages as chat templates read them. No I/O.

Nothing of a message is dropped: a template may read any key (`tool_calls`, `tool_call_id`, `reasoning_content`, `name`, a role of its own).
What must be changed is changed as SGLang (0.5.23) does: arguments of earlier calls are parsed from their string, a content that is null
becomes "", and where the template knows no parts, parts of text are joined by a blank.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_PROBE: Final = "trainshed probe"


class BadMessage(Exception):
    """A message cannot be put into a prompt; the text says which and why."""


def prepared(messages: Sequence[Mapping[str, Any]], *, parts: bool) -> list[dict[str, Any]]:
    """Return the messages for a template; `parts`: it reads content as a list of parts. Raises BadMessage."""
    return [_prepared(message, f"messages[{index}]", parts) for index, message in enumerate(messages)]


def _prepared(message: Mapping[str, Any], where: str, parts: bool) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not 0 < len(role) <= 64:
        raise BadMessage(f"{where}.role must be a string of 1 to 64 characters")
    made = dict(message)
    made["content"] = _content(message.get("content"), f"{where}.content", parts and role != "tool")
    if isinstance(calls := message.get("tool_calls"), list) and role == "assistant":
        made["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
        if not calls:
            del made["tool_calls"]
    elif calls not in (None, []):
        raise BadMessage(f"{where}.tool_calls must be a list, in a message of the assistant")
    return made


def _content(content: object, where: str, parts: bool) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadMessage(f"{where} must be a string, a list of parts, or null")
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS or not isinstance(text := part.get("text"), str):
            raise BadMessage(f"{where}[{index}] is of type {kind!r}: only text can be sent to this model")
        texts.append(text)
    return [{"type": "text", "text": text} for text in texts] if parts else " ".join(texts)


def _call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadMessage(f'{where} must be {{"id": …, "type": "function", "function": {{"name": …, "arguments": …}}}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"{where}.function.arguments is no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise BadMessage(f"{where}.function.arguments must be a JSON object")
    return {**call, "type": call.get("type") or "function", "function": {**function, "arguments": arguments}}


def probe(*, parts: bool) -> list[dict[str, Any]]:
    """Return a conversation that shows whether a template reads content as a list of parts."""
    return [{"role": "user", "content": [{"type": "text", "text": _PROBE}] if parts else _PROBE}]


def shows_parts(rendered: str) -> bool:
    """Whether a template that was given `probe(parts=True)` has read the text in the part, and not printed the list."""
    return _PROBE in rendered and "'text'" not in rendered and '"text"' not in rendered
