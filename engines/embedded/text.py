"""This module turns text into tokens and back, chats into prompts, and reads tool calls and reasoning out of a text.

It imports neither torch nor transformers unless it must. Calls and reasoning are read in the formats of a few of SGLang's (0.5.23) parsers.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

_JSON_CALLS: Final = {
    "qwen": ("<tool_call>\n", "\n</tool_call>"),
    "qwen25": ("<tool_call>\n", "\n</tool_call>"),
    "hermes": ("<tool_call>", "</tool_call>"),
}
"""Parsers of calls that are a JSON object with `name` and `arguments` between two marks, by SGLang's names."""
_THINK: Final = {"deepseek-r1": True, "qwen3": False, "qwen3-thinking": True}
"""Parsers of reasoning between `<think>` and `</think>`; True: a text begins with reasoning, tag or not."""


class NoText(Exception):
    """The model folder has no tokenizer, or no chat template; only token ids can be served."""


class _Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int], skip_special: bool) -> str: ...
    def id_of(self, token: str) -> int | None: ...


class Text:
    """The text of a model folder: its tokenizer and chat template. Decodes everything to "" when there is none. Safe to use in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config: dict[str, Any] = _json(folder / "tokenizer_config.json")
        self._tokenizer: _Tokenizer | None = _load(folder)
        self._template: Any = None

    @property
    def eos(self) -> frozenset[int]:
        """Return the tokenizer's end-of-sequence token, if it has one."""
        token = self._content("eos_token")
        found = self._tokenizer.id_of(token) if token and self._tokenizer is not None else None
        return frozenset() if found is None else frozenset([found])

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text. Raises NoText."""
        if self._tokenizer is None:
            raise NoText(f"{self._folder} has no tokenizer: send input_ids instead of text")
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode(tokens, skip_special)

    def chat(self, messages: list[dict[str, Any]]) -> str:
        """Return the prompt that the folder's chat template makes of these messages. Raises NoText."""
        if self._template is None:
            self._template = _compile(_template(self._folder, self._config))
        from jinja2 import TemplateError

        tokens = {key: self._content(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=True, **tokens))
        except (TemplateError, TypeError, ValueError) as error:
            raise NoText(f"the chat template refuses these messages: {error}") from error

    def _content(self, key: str) -> str:
        value = self._config.get(key)
        return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


class _Fast:
    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._inner = Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text).ids)

    def decode(self, tokens: Sequence[int], skip_special: bool) -> str:
        return str(self._inner.decode(list(tokens), skip_special_tokens=skip_special))

    def id_of(self, token: str) -> int | None:
        found = self._inner.token_to_id(token)
        return None if found is None else int(found)


class _Slow:
    """A tokenizer that exists only as a class of transformers costs seconds of imports."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._inner: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text))

    def decode(self, tokens: Sequence[int], skip_special: bool) -> str:
        return str(self._inner.decode(list(tokens), skip_special_tokens=skip_special))

    def id_of(self, token: str) -> int | None:
        found = self._inner.convert_tokens_to_ids(token)
        return found if isinstance(found, int) else None


def _load(folder: Path) -> _Tokenizer | None:
    if (folder / "tokenizer.json").exists():
        return _Fast(folder / "tokenizer.json")
    if any((folder / name).exists() for name in ("vocab.json", "vocab.txt", "tokenizer.model")):
        return _Slow(folder)
    return None


def _template(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise NoText(f"{folder} has no chat template: use /generate or /v1/completions")
    return template


def _compile(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise NoText(f"the chat template does not compile: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = json.loads(path.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


class UnknownParser(ValueError):
    """The embedded engine has no parser of this name; the text says which it has."""


class ParseIn(msgspec.Struct):
    """The body of `/parse_function_call`."""

    text: str
    tools: list[dict[str, Any]] = []
    tool_call_parser: str | None = None


class ReasoningIn(msgspec.Struct):
    """The body of `/separate_reasoning`."""

    text: str
    reasoning_parser: str


def function_calls(body: ParseIn) -> dict[str, Any]:
    """Return the text before the calls, and the calls. As SGLang, pass over what calls no tool and what is no JSON (hermes: then it is all text).

    Raises UnknownParser.
    """
    marks = _JSON_CALLS.get(body.tool_call_parser or "")
    if marks is None:
        raise UnknownParser(f"Unsupported tool_call_parser: {body.tool_call_parser} (the embedded engine has {', '.join(_JSON_CALLS)})")
    begin, end = marks
    names = [(tool.get("function") or {}).get("name") for tool in body.tools]
    if not names or begin not in body.text:
        return {"normal_text": body.text, "calls": []}
    calls = []
    for written in re.findall(f"{re.escape(begin)}(.*?){re.escape(end)}", body.text, re.DOTALL):
        try:
            made = json.loads(written)
        except (ValueError, RecursionError):
            if body.tool_call_parser == "hermes":
                return {"normal_text": body.text, "calls": []}
            continue
        for call in made if isinstance(made, list) else [made]:
            if isinstance(call, dict) and (name := call.get("name")) in names:
                arguments = call.get("parameters") or call.get("arguments", {})
                calls.append({"tool_index": names.index(name), "name": name, "parameters": json.dumps(arguments, ensure_ascii=False)})
    return {"normal_text": body.text.partition(begin)[0].strip(), "calls": calls}


def reasoning(body: ReasoningIn) -> dict[str, str]:
    """Return the reasoning and the rest. Raises UnknownParser."""
    if body.reasoning_parser not in _THINK:
        raise UnknownParser(f"Unsupported model type: {body.reasoning_parser} (the embedded engine has {', '.join(_THINK)})")
    text = body.text
    if not _THINK[body.reasoning_parser] and "<think>" not in text:
        return {"reasoning_text": "", "text": text}
    while text.startswith("<think>"):
        text = text.removeprefix("<think>")
    thought, _, rest = text.partition("</think>")
    return {"reasoning_text": thought, "text": rest}
