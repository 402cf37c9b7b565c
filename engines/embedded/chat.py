"""This module reads OpenAI's bodies (`/v1/chat/completions`, `/v1/completions`) as samples of the native kind, and writes their answers. No I/O."""

import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from engines.embedded.batching import Request
from engines.embedded.core import Answer, Refusal
from engines.embedded.text import NoText, Text
from engines.embedded.wire import GenerateIn, Limits, SamplingIn, Seed, Token, Wish, visible, wishes

MAX_CHOICES = 128


class _OpenAIIn(msgspec.Struct):
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool = False
    min_tokens: int | None = 0
    seed: Seed | None = None
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    rid: str | None = None


class ChatIn(_OpenAIIn):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = []
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None


class CompletionIn(_OpenAIIn):
    """The body of `/v1/completions`."""

    prompt: str | list[str | Token | list[Token]] = ""
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None


@dataclass
class Completion:
    """A completion is one OpenAI call: `n` samples for each of its prompts, and what of their text has been streamed."""

    wishes: list[Wish]
    chat: bool
    model: str
    created: int
    with_usage: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _sent: dict[int, int] = field(default_factory=dict)
    _sent_tokens: dict[int, int] = field(default_factory=dict)

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}

    def body(self, answers: list[Answer], text: Text) -> dict[str, Any]:
        """Return the body of a call that does not stream."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self._choice(index, answer, text) for index, answer in enumerate(answers)]
        metadata = {"weight_version": answers[-1].version}
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(answers), "metadata": metadata}

    def chunk(self, index: int, answer: Answer, text: Text) -> dict[str, Any]:
        """Return what came since the last chunk of choice `index`."""
        wish = self.wishes[index]
        written, sent = visible(wish, answer, text), self._sent.get(index, 0)
        if answer.finish is None and written.endswith("\ufffd"):
            written = written[:sent]  # half a character: the rest comes with a later token
        first = index not in self._sent
        self._sent[index] = max(sent, len(written))
        choice: dict[str, Any] = {"index": index, "finish_reason": _reason(answer), "matched_stop": (answer.finish or {}).get("matched")}
        choice["logprobs"] = self._logprobs(wish, answer, text, self._sent_tokens.get(index, 0))
        self._sent_tokens[index] = len(answer.output)
        if self.chat:
            choice["delta"] = {**({"role": "assistant"} if first else {}), "content": written[sent:]}
        else:
            choice["text"] = written[sent:]
        return {**self._head, "object": "chat.completion.chunk" if self.chat else "text_completion", "choices": [choice]}

    def usage_chunk(self, answers: list[Answer]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        prompt = sum(len(wish.request.prompt) for wish in self.wishes)
        made = sum(len(answer.output) for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _choice(self, index: int, answer: Answer, text: Text) -> dict[str, Any]:
        wish = self.wishes[index]
        written = visible(wish, answer, text)
        body: dict[str, Any] = {"message": {"role": "assistant", "content": written}} if self.chat else {"text": written}
        matched = (answer.finish or {}).get("matched")
        logprobs = self._logprobs(wish, answer, text, 0)
        return {"index": index, **body, "logprobs": logprobs, "finish_reason": _reason(answer), "matched_stop": matched}

    def _logprobs(self, wish: Wish, answer: Answer, text: Text, start: int) -> dict[str, Any] | None:
        if not wish.return_logprob:
            return None
        pieces = [text.decode([token], False) for token in answer.output[start:]]
        values = answer.logprobs[start:]
        if self.chat:
            entries = zip(pieces, values, strict=True)
            content = [{"token": p, "logprob": value, "bytes": list(p.encode()), "top_logprobs": []} for p, value in entries]
            return {"content": content}
        return {"tokens": pieces, "token_logprobs": list(values), "text_offset": [-1] * len(pieces), "top_logprobs": None}


def completion(body: ChatIn | CompletionIn, limits: Limits, text: Text, model: str, created: int) -> Completion:
    """Return the samples that a body asks for. Raises Refusal (400)."""
    copies = body.n or 1
    if not 1 <= copies <= MAX_CHOICES:
        raise Refusal(f"n must be between 1 and {MAX_CHOICES}")
    native = _native(body, text)
    found, _ = wishes(native, limits, text)
    expanded = [_copy(wish, number) for wish in found for number in range(copies)]
    with_usage = bool((body.stream_options or {}).get("include_usage"))
    return Completion(expanded, isinstance(body, ChatIn), body.model or model, created, with_usage)


def _copy(wish: Wish, number: int) -> Wish:
    """Return choice `number` of a prompt: its own id, and the seed plus its number."""
    if number == 0:
        return wish
    request = wish.request
    sampling = replace(request.sampling, seed=(request.sampling.seed + number) % 2**63)
    other = Request(f"{request.rid}_{number}", request.prompt, sampling, streams=request.streams)
    return Wish(other, wish.return_logprob, wish.text_in_logprobs, wish.skip_special, wish.trim)


def _native(body: ChatIn | CompletionIn, text: Text) -> GenerateIn:
    most = body.max_tokens
    if isinstance(body, ChatIn):
        if body.top_logprobs:
            raise Refusal("top_logprobs: the embedded engine returns the log-probability of the chosen token only")
        most = body.max_completion_tokens if body.max_completion_tokens is not None else most
    elif most is None:
        most = 16
    params = SamplingIn(
        max_new_tokens=most,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        min_new_tokens=body.min_tokens,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        sampling_seed=body.seed,
        skip_special_tokens=body.skip_special_tokens,
        no_stop_trim=body.no_stop_trim,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
    )
    native = GenerateIn(sampling_params=params, rid=body.rid, stream=body.stream)
    if isinstance(body, ChatIn):
        if not body.messages:
            raise Refusal("messages: at least one is needed")
        native.return_logprob = bool(body.logprobs)
        try:
            native.text = text.chat([_flat(message) for message in body.messages])
        except NoText as error:
            raise Refusal(str(error)) from error
        return native
    if body.echo or body.suffix:
        raise Refusal("echo and suffix are not offered by the embedded engine")
    native.return_logprob = body.logprobs is not None
    if isinstance(body.prompt, str):
        native.text = body.prompt
    elif all(isinstance(entry, str) for entry in body.prompt):
        native.text = [entry for entry in body.prompt if isinstance(entry, str)]
    else:
        native.input_ids = [entry for entry in body.prompt if not isinstance(entry, str)]
        if len(native.input_ids) != len(body.prompt):
            raise Refusal("prompt mixes text and tokens")
    return native


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is text: the parts of a list are joined, parts that are not text are refused."""
    content = message.get("content")
    if not isinstance(content, list):
        return {**message, "content": content if isinstance(content, str) else ""}
    if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        raise Refusal("messages: only parts of type text are understood")
    return {**message, "content": "".join(part["text"] for part in content)}


def _reason(answer: Answer) -> str | None:
    return None if answer.finish is None else str(answer.finish["type"])
