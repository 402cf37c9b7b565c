"""This module writes answers in OpenAI's shapes: choices, log-probs, usage, the pieces of a stream."""

import time
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec

from engines.gateway.core.samples import Answer, Request, Rows, cut
from engines.gateway.routes.text import Text, TextStream

_REASONS: Final = {"stop": "stop", "length": "length", "abort": "abort"}


class Shape:
    """The shape of one answer of `/v1/completions`, or (`chat`) of `/v1/chat/completions`.

    `top`: log-probs are wanted, and of how many other tokens; None: none are.
    """

    def __init__(self, text: Text, model: str, *, chat: bool, top: int | None) -> None:
        self._text, self._chat, self._top = text, chat, top
        kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}", "created": int(time.time()), "model": model}
        self._object = kind

    def complete(self, requests: Sequence[Request], answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the answer of a request that is not streamed."""
        pairs = enumerate(zip(requests, answers, strict=True))
        choices = [msgspec.Raw(msgspec.json.encode(self._choice(index, pair))) for index, pair in pairs]  # one by one: others run between
        return {**self._head, "object": self._object, "choices": choices, "usage": usage(answers)}

    def piece(
        self, index: int, text: str, *, ids: Sequence[int], logprobs: Sequence[float], rows: Rows, answer: Answer | None
    ) -> dict[str, Any]:
        """Return one event of a stream; with `answer`, the last of its choice."""
        choice: dict[str, Any] = {"index": index, "finish_reason": None if answer is None else reason(answer)}
        if self._chat:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = None if not ids else self._logprobs(ids, logprobs, rows)
        if answer is not None:
            choice["spans"] = answer.spans
        return {**self._head, "object": self._streamed, "choices": [choice]}

    def first(self, index: int) -> dict[str, Any] | None:
        """Return the event with which a chat's stream begins: the role. None where there is none."""
        if not self._chat:
            return None
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}
        return {**self._head, "object": self._streamed, "choices": [choice]}

    def last(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the event with the usage of all choices."""
        return {**self._head, "object": self._streamed, "choices": [], "usage": usage(answers)}

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _choice(self, index: int, pair: tuple[Request, Answer]) -> dict[str, Any]:
        request, answer = pair
        text = self._text.answer(answer.ids, answer.finish_reason, request.params)
        logprobs = self._logprobs(answer.ids.tolist(), answer.logprobs.tolist(), answer.rows)
        choice: dict[str, Any] = {"index": index, "finish_reason": reason(answer), "logprobs": logprobs}
        choice.update({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text})
        choice["spans"] = answer.spans
        return choice

    def _logprobs(self, ids: Sequence[int], logprobs: Sequence[float], rows: Rows) -> dict[str, Any] | None:
        if self._top is None:
            return None
        tokens = [self._text.token(token) for token in ids]
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
            "top_logprobs": [{name: value for value, name in top} for top in tops] if self._top else None,
            "text_offset": offsets[:-1],
        }

    def _tops(self, count: int, given: Sequence[Any]) -> list[list[tuple[float, str]]]:
        """Return the engine's `output_top_logprobs`, where it was asked for them: per token (log-prob, token) from the best."""
        tops: list[list[tuple[float, str]]] = []
        for entry in given:
            row = [item for item in entry if isinstance(item, list) and len(item) >= 2] if isinstance(entry, list) else []
            tops.append([(float(item[0]), self._text.token(int(item[1]))) for item in row])
        return (tops + [[]] * count)[:count]


class ChoiceStream:
    """One choice of a stream, piece by piece."""

    def __init__(self, shape: Shape, text: Text, request: Request, index: int) -> None:
        self._shape, self._text, self._request, self._index = shape, text, request, index
        self._stream = TextStream(text, request.params, request.stops)
        self._seen = 0

    def grow(self, ids: Sequence[int], logprobs: Sequence[float], rows: Rows) -> dict[str, Any]:
        """Return the event for further tokens."""
        self._seen += len(ids)
        return self._shape.piece(self._index, self._stream.push(ids), ids=ids, logprobs=logprobs, rows=rows, answer=None)

    def end(self, answer: Answer) -> dict[str, Any]:
        """Return the last event, with what the earlier ones did not have."""
        text = self._stream.finish(self._text.answer(answer.ids, answer.finish_reason, self._request.params))
        ids, logprobs = answer.ids[self._seen :].tolist(), answer.logprobs[self._seen :].tolist()
        return self._shape.piece(self._index, text, ids=ids, logprobs=logprobs, rows=cut(answer.rows, self._seen, None), answer=answer)


def reason(answer: Answer) -> str:
    """Return OpenAI's finish_reason."""
    return _REASONS.get(str(answer.finish_reason.get("type")), "stop")


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Return OpenAI's count of tokens over all choices."""
    prompt, made = sum(answer.prompt_tokens for answer in answers), sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
