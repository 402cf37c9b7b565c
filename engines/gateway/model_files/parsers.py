"""This module says which of SGLang's parsers read what a model writes, and where in a text a tool call or reasoning begins.

The names are SGLang's (0.5.23: `function_call/parser_names.py`, `parser/reasoning_parser_names.py`). Tool calls are always parsed by an engine
(`/parse_function_call`); reasoning between two plain tags is cut out here, as SGLang cuts it, and any other kind by an engine (`/separate_reasoning`).
"""

from dataclasses import dataclass
from typing import Final

NONE: Final = "none"
"""In the configuration: parse nothing."""


@dataclass(frozen=True, slots=True)
class Tags:
    """Reasoning stands between these. `forced`: it begins with the answer, tag or not. `call`: a tool call ends it, too."""

    begin: str
    end: str
    forced: bool = False
    call: str = ""


_THINK: Final = Tags("<think>", "</think>")
_QWEN: Final = Tags("<think>", "</think>", call="<tool_call>")
_QWEN_FORCED: Final = Tags("<think>", "</think>", forced=True, call="<tool_call>")
_FORCED: Final = Tags("<think>", "</think>", forced=True)
PLAIN: Final = {
    "deepseek-r1": _FORCED,
    "deepseek-v3": _THINK,
    "step3": _FORCED,
    "step3p5": _FORCED,
    "gigachat35": _FORCED,
    "qwen3": _QWEN,
    "qwen3-thinking": _QWEN_FORCED,
    "interns1": _QWEN,
    "nanbeige": _QWEN,
    "dots": _QWEN,
    "kimi": Tags("◁think▷", "◁/think▷"),
}
"""The reasoning parsers whose format is two tags and nothing else."""

MARKS: Final = {
    "qwen": ("<tool_call>",),
    "qwen25": ("<tool_call>",),
    "hermes": ("<tool_call>",),
    "qwen3_coder": ("<tool_call>", "<function="),
    "glm": ("<tool_call>",),
    "glm45": ("<tool_call>",),
    "glm47": ("<tool_call>",),
    "mimo": ("<tool_call>",),
    "llama3": ("<|python_tag|>", "{"),
    "mistral": ("[TOOL_CALLS]",),
    "kimi_k2": ("<|tool_calls_section_begin|>",),
    "deepseekv3": ("<｜tool▁calls▁begin｜>",),
    "deepseekv31": ("<｜tool▁calls▁begin｜>",),
    "lfm2": ("<|tool_call_start|>",),
    "pythonic": ("[",),
    "minimax-m2": ("<minimax:tool_call>",),
    "step3": ("<｜tool_calls_begin｜>",),
}
"""With one of these a call may begin; what comes before is text and can be streamed. A parser that is not here: nothing can, until the answer ends."""

_TOOL_SIGNS: Final = (
    ("<function=", "qwen3_coder"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<arg_key>", "glm45"),
    ("<minimax:tool_call>", "minimax-m2"),
    ("<|tool_call_start|>", "lfm2"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|channel|>", "gpt-oss"),
    ("<|python_tag|>", "llama3"),
    ("<tool_call>", "qwen25"),
)
_REASONING_SIGNS: Final = (
    ("<|channel|>", "gpt-oss"),
    ("◁think▷", "kimi"),
    ("[THINK]", "mistral"),
)


def guess_tool_parser(template: str | None) -> str | None:
    """Return the tool parser for a model with this chat template; None where the template writes calls in no format that is known."""
    if template is None:
        return None
    if "<｜tool▁calls▁begin｜>" in template:
        return "deepseekv3" if "```json" in template else "deepseekv31"
    return next((name for sign, name in _TOOL_SIGNS if sign in template), None)


def guess_reasoning_parser(template: str | None) -> str | None:
    """Return the reasoning parser for a model with this chat template; None where it does not think, as far as the template says."""
    if template is None:
        return None
    for sign, name in _REASONING_SIGNS:
        if sign in template:
            return name
    if "</think>" not in template:
        return None
    return "qwen3"  # two tags; whether the prompt has opened the first is seen in the prompt (`is_open`)


def is_open(before: str, tags: Tags, *, anywhere: bool = False) -> bool:
    """Whether what comes before the answer ends with the tag that opens reasoning; `anywhere`: has one that is not closed."""
    if anywhere:
        begin = before.rfind(tags.begin)
        return begin >= 0 and before.find(tags.end, begin) < 0
    return before.rstrip().endswith(tags.begin)


class ReasoningStream:
    """Cuts a text that comes in pieces into reasoning and the rest. Whole texts are cut the same: one piece, then `finish`."""

    def __init__(self, tags: Tags, *, inside: bool) -> None:
        self._tags, self._inside, self._begun, self._over = tags, inside, inside, False
        self._held = ""

    def push(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """Return the reasoning and the other text that this piece adds for certain; with `last`, all that is left."""
        self._held += text
        reasoning = ""
        if self._over:
            return reasoning, self._take(len(self._held))
        if not self._begun:
            at = self._held.find(self._tags.begin)
            if at < 0:
                if not last and self._tags.begin.startswith(self._held):
                    return "", ""
                # SGLang takes a tag anywhere in a whole text for one, and only at the beginning of a stream; the beginning is where models write it
                self._over = True
                return "", self._take(len(self._held))
            if self._held[:at].strip():
                self._over = True
                return "", self._take(len(self._held))
            self._held = self._held[at:]
            self._begun = self._inside = True
        while self._held.startswith(self._tags.begin):
            self._held = self._held[len(self._tags.begin) :]
        if not last and self._held and self._tags.begin.startswith(self._held):
            return "", ""
        return self._reason(last)

    def _reason(self, last: bool) -> tuple[str, str]:
        end = self._held.find(self._tags.end)
        if end >= 0:
            reasoning = self._take(end)
            self._take(len(self._tags.end))
            self._over = True
            return reasoning, self._take(len(self._held))
        call = self._held.find(self._tags.call) if self._tags.call else -1
        if call >= 0 and last:  # only then is it certain that no end tag comes
            reasoning = self._take(call)
            self._over = True
            return reasoning, self._take(len(self._held))
        if last:
            return self._take(len(self._held)), ""
        if call >= 0:
            return self._take(call), ""
        return self._take(len(self._held) - may_begin(self._held, (self._tags.end, self._tags.call))), ""

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def may_begin(text: str, marks: tuple[str, ...]) -> int:
    """Return how many characters at the end of `text` may be the beginning of a mark."""
    longest = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest
