"""This module reads an answer's text: reasoning, content, calls; whole, or piece by piece as it comes."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import uuid4

import msgspec

from engines.gateway.core.samples import Answer
from engines.gateway.model_files.parsers import MARKS, ReasoningStream, may_begin
from engines.gateway.routes.agents.chat_bodies import Reading
from engines.gateway.routes.errors import RequestError
from engines.gateway.shell import Shell

T = TypeVar("T")
_KIMI: Final = "kimi_k2"


class Call(msgspec.Struct, frozen=True):
    """A call of a tool; `arguments` is JSON as the model wrote it, or as its parser did."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Read:
    """What an answer says. `calls` end a turn: the client carries them out."""

    content: str
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


class _Parsed(msgspec.Struct):
    name: str | None = None
    parameters: str = ""


class _Calls(msgspec.Struct):
    normal_text: str | None = ""
    calls: list[_Parsed] = []


class _Reasoning(msgspec.Struct):
    reasoning_text: str | None = ""
    text: str | None = ""


class _Forced(msgspec.Struct):
    name: str
    parameters: Any = {}


class Reader:
    """Reads the answers of one request. `turns`: calls in its history, which the names of some models' calls count."""

    def __init__(self, shell: Shell, reading: Reading, *, turns: int = 0) -> None:
        self._shell, self.reading, self._turns = shell, reading, turns

    async def whole(self, text: str, answer: Answer) -> Read:
        """Read a complete text. Raises RequestError where its calls or reasoning need an engine and none answers."""
        reading = self.reading
        if reading.tools.forced:
            return self._forced(text)
        reasoning = ""
        if reading.tags is not None:
            reasoning, text = ReasoningStream(reading.tags, inside=reading.open).push(text, last=True)
        elif reading.reasoning is not None:
            body = {"text": text, "reasoning_parser": reading.reasoning}
            found = await self._ask("/separate_reasoning", body, answer, _Reasoning)
            reasoning, text = found.reasoning_text or "", found.text or ""
        if not reading.tools.parsed:
            return Read(text, reasoning)
        content, calls = await self.calls(text, answer)
        return Read(content, reasoning, calls)

    async def calls(self, text: str, answer: Answer) -> tuple[str, list[Call]]:
        """Return content and calls of a text that has no reasoning any more."""
        parser = self.reading.tool_parser
        assert parser is not None, "who parses calls has a parser"
        marks = MARKS.get(parser)
        if not text or (marks and not any(mark in text for mark in marks)):
            return text, []
        body = {"text": text, "tools": self.reading.tools.given, "tool_call_parser": parser}
        found = await self._ask("/parse_function_call", body, answer, _Calls)
        calls = [Call(self._name(one.name, index), one.name, one.parameters) for index, one in enumerate(found.calls) if one.name]
        return found.normal_text or "", calls if self.reading.tools.parallel else calls[:1]

    def _forced(self, text: str) -> Read:
        try:
            made = msgspec.json.decode(text.encode(), type=list[_Forced] | _Forced)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Read(text)  # it was cut, say by max_tokens
        several = made if isinstance(made, list) else [made]
        arguments = [msgspec.json.encode(one.parameters).decode() for one in several]
        return Read("", calls=[Call(self._name(one.name, index), one.name, arguments[index]) for index, one in enumerate(several)])

    def _name(self, function: str | None, index: int) -> str:
        """Return a call's id: Kimi K2 was trained to see its own calls counted."""
        return f"functions.{function}:{self._turns + index}" if self.reading.tool_parser == _KIMI else f"call_{uuid4().hex[:24]}"

    async def _ask(self, path: str, body: dict[str, Any], answer: Answer, into: type[T]) -> T:
        last = answer.spans[-1] if answer.spans else None
        try:
            status, raw = await self._shell.question(path, body, first=None if last is None else (last.engine, last.incarnation))
        except OSError as error:
            raise RequestError(503, "no_engine", f"no engine could parse the answer ({path}): {error}") from error
        if status != 200:
            raise RequestError(
                400 if status < 500 else 502,
                "bad_parser",
                f"the engine cannot parse the answer ({path}): {raw[:500].decode(errors='replace')}",
            )
        try:
            return msgspec.json.decode(raw, type=into)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(502, "bad_parser", f"the engine's answer to {path} does not decode: {error}") from error


class ReadStream:
    """Reads one answer as its text comes. Text is given on up to the first mark of a call; what cannot be told apart yet is held."""

    def __init__(self, reader: Reader) -> None:
        self._reader, reading = reader, reader.reading
        self._tags = None if reading.tags is None else ReasoningStream(reading.tags, inside=reading.open)
        self._marks = MARKS.get(reading.tool_parser or "", ()) if reading.tools.parsed else ()
        self._waits = (
            reading.tools.forced or (reading.reasoning is not None and reading.tags is None) or (reading.tools.parsed and not self._marks)
        )
        self._text = ""  # all of it, where it is read at the end; else what is content or call, and has not been given on
        self._given = False
        self._calling = False

    def push(self, text: str) -> Read:
        """Return what this piece adds for certain."""
        if self._waits:
            self._text += text
            return Read("")
        reasoning = ""
        if self._tags is not None:
            reasoning, text = self._tags.push(text)
        return Read(self._content(text), reasoning)

    async def finish(self, text: str, answer: Answer) -> Read:
        """Return the rest, `text` being the last piece. Raises RequestError as `Reader.whole`."""
        if self._waits:
            return await self._reader.whole(self._text + text, answer)
        reasoning = ""
        if self._tags is not None:
            reasoning, text = self._tags.push(text, last=True)
        if not self._reader.reading.tools.parsed:
            return Read(text, reasoning)
        rest = self._text + text
        content, calls = await self._reader.calls(rest, answer)
        return Read(content, reasoning, calls)

    def _content(self, text: str) -> str:
        if not self._marks:
            return text
        self._text += text
        if self._calling:
            return ""
        begins = min((at for mark in self._marks if (at := self._text.find(mark)) >= 0), default=-1)
        self._calling = begins >= 0
        certain = self._text[: begins if self._calling else len(self._text) - may_begin(self._text, self._marks)].rstrip()
        self._text = self._text[len(certain) :]
        return certain
