"""This module writes answers in OpenAI's shapes: choices, log-probs, token ids, usage, the pieces of a stream."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import msgspec

from engines.gateway.core.samples import Answer, Request, Rows, cut
from engines.gateway.routes.text import Text, TextStream

_REASONS: Final = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request wants beside text. `top`: log-probs, and of how many other tokens; None: none.

    `token_ids`: the answer's and the prompt's ids; `prompt_ids`: the prompt's alone; `named_by_id`: tokens of log-probs are called `token_id:7`.
    `copies` of each prompt; `running_usage`: every event of a stream says what has been used so far.
    """

    top: int | None = None
    token_ids: bool = False
    prompt_ids: bool = False
    named_by_id: bool = False
    copies: int = 1
    running_usage: bool = False


class Shape:
    """The shape of one answer of `/v1/completions`, or (`chat`) of `/v1/chat/completions`."""

    def __init__(self, text: Text, model: str, *, chat: bool, wanted: Wanted) -> None:
        self._text, self._chat, self.wanted = text, chat, wanted
        kind = "chat.completion" if chat else "text_completion"
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": model}
        self._object = kind
        self._used: dict[int, tuple[int, int]] = {}

    def complete(self, choices: Sequence[object], requests: Sequence[Request], answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the answer of a request that is not streamed."""
        made = {**self._head, "object": self._object, "choices": choices, "usage": usage(dict(enumerate(answers)), self.wanted.copies)}
        if spans := answers[-1].spans:
            made["metadata"] = {"weight_version": str(spans[-1].version)}
        if self.wanted.token_ids or self.wanted.prompt_ids:
            made["prompt_token_ids"] = requests[0].prompt.tolist()
        return made

    def choice(self, index: int, request: Request, answer: Answer) -> dict[str, Any]:
        """Return a choice of it, but for the text."""
        logprobs = self.logprobs(answer.ids.tolist(), answer.logprobs.tolist(), answer.rows)
        made: dict[str, Any] = {"index": index, "finish_reason": reason(answer), "matched_stop": answer.finish_reason.get("matched")}
        made["logprobs"] = logprobs
        if self.wanted.token_ids:
            made.update(self._ids(answer.ids.tolist()))
        if self.wanted.token_ids or self.wanted.prompt_ids:
            made["prompt_token_ids"] = request.prompt.tolist()
        made["spans"] = answer.spans
        return {**made, **_engine_fields(answer)}

    def piece(
        self,
        index: int,
        made: Mapping[str, Any],
        *,
        ids: Sequence[int] = (),
        logprobs: Sequence[float] = (),
        rows: Rows | None = None,
        answer: Answer | None = None,
        prompt: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Return one event of a stream: `made` is what is new of the choice; with `prompt` it is the first, with `answer` the last of its choice."""
        choice: dict[str, Any] = {"index": index, "finish_reason": None if answer is None else reason(answer), **made}
        choice["logprobs"] = self.logprobs(ids, logprobs, rows or {}) if ids else None
        if self.wanted.token_ids:
            choice.update(self._ids(list(ids)))
        if prompt is not None and (self.wanted.token_ids or self.wanted.prompt_ids):
            choice["prompt_token_ids"] = list(prompt)
        if answer is not None:
            choice |= {"matched_stop": answer.finish_reason.get("matched"), "spans": answer.spans, **_engine_fields(answer)}
        event = {**self._head, "object": self._streamed, "choices": [choice]}
        if self.wanted.running_usage:
            before = self._used.get(index, (0, 0))
            self._used[index] = (len(prompt) if prompt is not None else before[0], before[1] + len(ids))
            event["usage"] = _usage(*(sum(used[part] for used in self._used.values()) for part in (0, 1)))
        return event

    def last(self, answers: Mapping[int, Answer]) -> dict[str, Any]:
        """Return the event with the usage of all choices."""
        return {**self._head, "object": self._streamed, "choices": [], "usage": usage(answers, self.wanted.copies)}

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _ids(self, ids: list[int]) -> dict[str, Any]:
        """Return an answer's token ids where vLLM has them, and in a chat also where SGLang (0.5.23) has them."""
        return {"token_ids": ids, "response_token_ids": ids} if self._chat else {"token_ids": ids}

    def logprobs(self, ids: Sequence[int], logprobs: Sequence[float | None], rows: Rows) -> dict[str, Any] | None:
        """Return the log-probs of these tokens; None where none are wanted."""
        if self.wanted.top is None:
            return None
        tokens = [self._name(token) for token in ids]
        tops = self._tops(len(ids), rows.get("output_top_logprobs") or ())
        if self._chat:
            content = [
                {
                    "token": token,
                    "logprob": logprob,
                    "bytes": list(token.encode()),
                    "top_logprobs": [{"token": name, "logprob": value, "bytes": list(name.encode())} for value, name in top],
                }
                for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets = [0]
        for token in tokens:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": list(logprobs),
            "top_logprobs": [_best(top) for top in tops] if self.wanted.top else None,
            "text_offset": offsets[:-1],
        }

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self.wanted.named_by_id else self._text.token(token)

    def _tops(self, count: int, given: Sequence[Any]) -> list[list[tuple[float, str]]]:
        """Return the engine's `output_top_logprobs`, where it was asked for them: per token (log-prob, token) from the best."""
        tops: list[list[tuple[float, str]]] = []
        for entry in given:
            row = [item for item in entry if isinstance(item, list | tuple) and len(item) >= 2] if isinstance(entry, list | tuple) else []
            tops.append([(float(item[0]), self._name(int(item[1]))) for item in row])
        return (tops + [[]] * count)[:count]


def _best(top: Sequence[tuple[float, str]]) -> dict[str, float] | None:
    """Return log-probs by token, from the best; where two tokens are the same text, the better one. None: there are none."""
    made: dict[str, float] = {}
    for value, name in top:
        made.setdefault(name, value)
    return made or None


class Completions:
    """Writes the choices of `/v1/completions`. `echo`: the text of each prompt, which is repeated before its answers; None: it is not."""

    def __init__(self, shape: Shape, text: Text, echo: Sequence[str] | None) -> None:
        self._shape, self._text, self._echo = shape, text, echo

    def complete(self, requests: Sequence[Request], answers: Sequence[Answer]) -> dict[str, Any]:
        """Return an answer that is not streamed. Choices are encoded one by one: the encoder holds the interpreter's lock, and others run between."""
        choices = [msgspec.Raw(msgspec.json.encode(self._choice(index, one, answers[index]))) for index, one in enumerate(requests)]
        return self._shape.complete(choices, requests, answers)

    def _choice(self, index: int, request: Request, answer: Answer) -> dict[str, Any]:
        made = self._shape.choice(index, request, answer)
        text = self._text.answer(answer.ids, answer.finish_reason, request.params)
        if self._echo is None:
            return {**made, "text": text}
        if self._shape.wanted.top is not None:
            given = answer.prompt_meta.get("input_token_logprobs") or []
            ids = [int(row[1]) for row in given] + answer.ids.tolist()
            logprobs = [row[0] for row in given] + answer.logprobs.tolist()
            tops = list(answer.prompt_meta.get("input_top_logprobs") or [[]] * len(given))
            rows = {"output_top_logprobs": [*tops, *(answer.rows.get("output_top_logprobs") or ())]}
            made["logprobs"] = self._shape.logprobs(ids, logprobs, rows)
        return {**made, "text": self._echoed(index) + text}

    def stream(self, index: int, request: Request) -> "ChoiceStream":
        """Return a choice that comes piece by piece."""
        return ChoiceStream(self._shape, self._text, request, index, "" if self._echo is None else self._echoed(index))

    def _echoed(self, index: int) -> str:
        assert self._echo is not None
        return self._echo[index // self._shape.wanted.copies]


class ChoiceStream:
    """One choice of a stream of `/v1/completions`, piece by piece; `before` comes before its text."""

    def __init__(self, shape: Shape, text: Text, request: Request, index: int, before: str) -> None:
        self._shape, self._text, self._request, self._index, self._before = shape, text, request, index, before
        self._stream = TextStream(text, request.params, request.stops)
        self._seen = 0

    def grow(self, ids: Sequence[int], logprobs: Sequence[float], rows: Rows) -> dict[str, Any]:
        """Return the event for further tokens."""
        prompt = None if self._seen else self._request.prompt
        self._seen += len(ids)
        return self._shape.piece(
            self._index, {"text": self._first() + self._stream.push(ids)}, ids=ids, logprobs=logprobs, rows=rows, prompt=prompt
        )

    def end(self, answer: Answer) -> dict[str, Any]:
        """Return the last event, with what the earlier ones did not have."""
        text = self._first() + self._stream.finish(self._text.answer(answer.ids, answer.finish_reason, self._request.params))
        ids, logprobs = answer.ids[self._seen :].tolist(), answer.logprobs[self._seen :].tolist()
        prompt = None if self._seen else self._request.prompt
        rows = cut(answer.rows, self._seen, None)
        return self._shape.piece(self._index, {"text": text}, ids=ids, logprobs=logprobs, rows=rows, answer=answer, prompt=prompt)

    def _first(self) -> str:
        before, self._before = self._before, ""
        return before


def reason(answer: Answer) -> str:
    """Return OpenAI's finish_reason."""
    return _REASONS.get(str(answer.finish_reason.get("type")), "stop")


def usage(answers: Mapping[int, Answer], copies: int) -> dict[str, int]:
    """Return OpenAI's count of tokens: every prompt once, however many copies its answer has, and all answers. Answers stand by their index."""
    prompts = {index // copies: answer.prompt_tokens for index, answer in answers.items()}
    return _usage(sum(prompts.values()), sum(len(answer.ids) for answer in answers.values()))


def _usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _engine_fields(answer: Answer) -> dict[str, Any]:
    """Return what the engine made beside tokens because it was asked to: hidden states, and which experts were chosen."""
    return {name: answer.meta[name] for name in ("hidden_states", "routed_experts") if name in answer.meta}
