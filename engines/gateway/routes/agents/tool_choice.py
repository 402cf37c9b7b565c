"""This module reads `tools` and `tool_choice`: what is checked, which tools the prompt shows, and the JSON schema that forces a call. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from engines.gateway.routes.errors import RequestError

MAX_TOOLS: Final = 1024
_ALLOWED: Final = ("auto", "required", "none")


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request. `shown`: those that the prompt has; `parsed`: calls are looked for; `forced`: an answer is calls and nothing else."""

    given: tuple[Mapping[str, Any], ...] = ()
    shown: tuple[Mapping[str, Any], ...] = ()
    parsed: bool = False
    forced: bool = False
    parallel: bool = True

    @property
    def schema(self) -> str | None:
        """The JSON schema of an answer that must be calls: a list of objects with `name` and `parameters`, as SGLang's. None: nothing is forced."""
        if not self.forced:
            return None
        definitions: dict[str, Any] = {}
        calls = [_call(tool["function"], definitions) for tool in self.shown]
        schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": calls[0] if len(calls) == 1 else {"anyOf": calls}}
        if not self.parallel:
            schema["maxItems"] = 1
        if definitions:
            schema["$defs"] = definitions
        return msgspec.json.encode(schema).decode()


def read(tools: Sequence[Any] | None, choice: Any, *, parallel: bool) -> Tools:
    """Return what a request's `tools` and `tool_choice` mean. Raises RequestError(400)."""
    given = tuple(_checked(tool, f"tools[{index}]") for index, tool in enumerate(tools or ()))
    if len(given) > MAX_TOOLS:
        raise RequestError(400, "bad_request", f"at most {MAX_TOOLS} tools can be given")
    names = [tool["function"]["name"] for tool in given]
    if isinstance(choice, dict):
        name = choice.get("name") or (choice.get("function") or {}).get("name")
        if choice.get("type", "function") != "function" or not isinstance(name, str):
            raise RequestError(
                400, "bad_request", 'tool_choice must be "auto", "required", "none" or {"type": "function", "function": {"name": …}}'
            )
        if name not in names:
            raise RequestError(400, "bad_request", f"tool_choice names {name!r}, which is none of the tools")
        return Tools(given, tuple(tool for tool in given if tool["function"]["name"] == name), parsed=True, forced=True, parallel=False)
    choice = "auto" if choice is None else choice
    if choice not in _ALLOWED:
        raise RequestError(400, "bad_request", f"tool_choice must be one of {', '.join(_ALLOWED)} or name a tool")
    if choice == "required" and not given:
        raise RequestError(400, "bad_request", 'tool_choice is "required", and there are no tools')
    if not given or choice == "none":
        return Tools(given)
    return Tools(given, given, parsed=True, forced=choice == "required", parallel=parallel)


def _checked(tool: Any, where: str) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
        raise RequestError(400, "bad_request", f'{where} must be {{"type": "function", "function": {{"name": …, "parameters": …}}}}')
    if tool.get("type", "function") != "function":
        raise RequestError(400, "bad_request", f"{where}.type is {tool['type']!r}: only functions can be called")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise RequestError(400, "bad_request", f"{where}.function.parameters must be a JSON schema")
    return {**tool, "type": "function"}


def _call(function: Mapping[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    written = msgspec.json.encode(function.get("parameters") or {"type": "object"}).replace(b"#/definitions/", b"#/$defs/")
    parameters: dict[str, Any] = msgspec.json.decode(written)
    for name in ("$defs", "definitions"):  # references begin at the root of a schema
        definitions.update(parameters.pop(name, None) or {})
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function["name"]]}, "parameters": parameters},
        "required": ["name", "parameters"],
    }
