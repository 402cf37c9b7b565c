"""This module serves SGLang's own `POST /generate`, and `POST /rollouts/{rollout}/samples` for our clients."""

from collections.abc import Iterable
from typing import Any, Final
from uuid import uuid4

import msgspec
from aiohttp import web

from engines.gateway.core.events import Deliver, Grew
from engines.gateway.core.samples import Answer, Failure, Request, Rows
from engines.gateway.routes import request_bodies
from engines.gateway.routes.asking import Asking, hinted, identity, number, sample_names
from engines.gateway.routes.body_reader import BodyReader, off_the_loop
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.responses import DONE, LINE_ALIVE, SSE_ALIVE, json_response, open_stream, sse, sse_failed
from engines.gateway.routes.text import Text, TextStream
from engines.gateway.shell import Shell

_NOT_THE_SAMPLES: Final = frozenset({"rollout_closed", "rollout_unknown", "no_engine", "full"})
"""Failures that say nothing of the samples themselves: asking again later may help, so the request as a whole gets them."""
_LOGPROBS: Final = ("input_token_", "input_top_", "output_token_", "output_top_")
"""Fields of meta_info that begin so are for requests that want log-probs; every request gets them upstream."""


class GenerateRoutes:
    """The two routes, over one shell."""

    def __init__(self, shell: Shell, text: Text, bodies: BodyReader) -> None:
        self._shell, self._text, self._bodies = shell, text, bodies

    async def samples(self, request: web.Request) -> web.StreamResponse:
        """Answer with one line of JSON a sample, as it finishes; a blank line is a keep-alive."""
        rollout = number(request.match_info["rollout"], "the rollout")
        asked = await self._bodies.decoded(request, lambda body: request_bodies.our_samples(body, self._text))
        tokens = [str(sample) for sample, _ in asked]
        async with Asking(self._shell, hinted(request, [one for _, one in asked]), rollout, tokens) as asking:
            first = await asking.begin(_NOT_THE_SAMPLES)
            open_samples = {sample: None for sample, _ in asked}

            def line(item: tuple[int, Grew | Deliver]) -> bytes:
                made = self._line(asked, item)
                del open_samples[asked[item[0]][0]]
                return made

            def failed(error: RequestError) -> bytes:
                return b"".join(_failed_line(sample, error.code, error.message) for sample in open_samples)

            response = await open_stream(request, "application/x-ndjson", failed)
            for item in first:
                await response.write(line(item))
            async for arrival in asking.arrivals():
                await response.write(LINE_ALIVE if arrival is None else line(arrival))
            await response.write_eof()
        return response

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer with one object or a list of them; streamed, each event holds all tokens of its sample so far, as SGLang's do by default."""
        rollout, token = identity(request)
        known, requests, batch = await self._bodies.decoded(request, lambda body: request_bodies.generate(body, self._text))
        requests = hinted(request, requests)
        rids = self._rids(known.rid, len(requests))
        tokens = sample_names(token, len(requests))
        if known.stream:
            return await self._streamed(request, known, requests, rids, Asking(self._shell, requests, rollout, tokens, streams=True))
        async with Asking(self._shell, requests, rollout, tokens) as asking:
            answers = await asking.all()
        made = await off_the_loop(encoded_size(answers), self._encoded, known, requests, answers, rids)
        return json_response(made if batch else made[0])

    async def _streamed(
        self, request: web.Request, known: request_bodies.Generate, requests: list[Request], rids: list[str], asking: Asking
    ) -> web.StreamResponse:
        growing = [_PartialAnswer(one, TextStream(self._text, one.params, one.stops)) for one in requests]

        def event(item: tuple[int, Grew | Deliver]) -> bytes:
            index, effect = item
            extra = {"index": index} if len(requests) > 1 else {}
            if isinstance(effect, Grew):
                return sse({**growing[index].grow(effect, known, rids[index]), **extra})
            if isinstance(effect.outcome, Failure):
                return sse({**RequestError.of(effect.outcome).body(), **extra})
            return sse({**self._answer(known, requests[index], effect.outcome, rids[index]), **extra})

        async with asking:
            first = await asking.begin()
            response = await open_stream(request, "text/event-stream", sse_failed)
            for item in first:
                await response.write(event(item))
            async for arrival in asking.arrivals():
                await response.write(SSE_ALIVE if arrival is None else event(arrival))
            await response.write(DONE)
            await response.write_eof()
        return response

    def _line(self, asked: list[tuple[int, Request]], item: tuple[int, Grew | Deliver]) -> bytes:
        index, effect = item
        sample, request = asked[index]
        assert isinstance(effect, Deliver), "samples are not asked as streams"
        outcome = effect.outcome
        if isinstance(outcome, Failure):
            return _failed_line(sample, outcome.code, outcome.message)
        line: dict[str, Any] = {"sample": sample}
        line["output_ids"] = outcome.ids.tolist()
        line["logprobs"] = outcome.logprobs.tolist()
        line["finish_reason"] = outcome.finish_reason
        line["spans"] = outcome.spans
        line["text"] = self._text.answer(outcome.ids, outcome.finish_reason, request.params)
        return msgspec.json.encode(line) + b"\n"

    def _answer(self, known: request_bodies.Generate, request: Request, answer: Answer, rid: str) -> dict[str, Any]:
        text = self._text.answer(answer.ids, answer.finish_reason, request.params)
        return {"text": text, "output_ids": answer.ids.tolist(), "meta_info": meta_info(answer, rid, logprobs=bool(known.return_logprob))}

    def _encoded(
        self, known: request_bodies.Generate, requests: list[Request], answers: list[Answer], rids: list[str]
    ) -> list[msgspec.Raw]:
        """Return the answers one by one: the encoder, too, holds the interpreter's lock."""
        answered = zip(requests, answers, rids, strict=True)
        return [msgspec.Raw(msgspec.json.encode(self._answer(known, one, answer, rid))) for one, answer, rid in answered]

    @staticmethod
    def _rids(given: str | list[str] | None, count: int) -> list[str]:
        if given is None:
            return [uuid4().hex for _ in range(count)]
        rids = [given] if isinstance(given, str) else given
        if len(rids) == count:
            return rids
        return [f"{rids[0] if rids else uuid4().hex}_{index}" for index in range(count)]


class _PartialAnswer:
    """One sample of a stream: everything so far, each time."""

    def __init__(self, request: Request, text: TextStream) -> None:
        self._request, self._text = request, text
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._rows: dict[str, list[Any]] = {}

    def grow(self, effect: Grew, known: request_bodies.Generate, rid: str) -> dict[str, Any]:
        self._ids += effect.ids
        self._logprobs += effect.logprobs
        for name, rows in effect.rows.items():
            self._rows.setdefault(name, []).extend(rows)
        self._text.push(effect.ids)
        meta: dict[str, Any] = {
            "id": rid,
            "finish_reason": None,
            "prompt_tokens": len(self._request.prompt),
            "completion_tokens": len(self._ids),
        }
        if known.return_logprob:
            meta.update(logprob_fields(self._ids, self._logprobs, self._rows))
        return {"text": self._text.sent, "output_ids": self._ids, "meta_info": meta}


def _failed_line(sample: int, code: str, message: str) -> bytes:
    return msgspec.json.encode({"sample": sample, "error": {"code": code, "message": message}}) + b"\n"


def encoded_size(answers: Iterable[Answer]) -> int:
    """Return about how many bytes of JSON the answers become."""
    return sum(32 * len(answer.ids) for answer in answers)


def meta_info(answer: Answer, rid: str, *, logprobs: bool) -> dict[str, Any]:
    """Return SGLang's meta_info, with `spans` beside `weight_versions`: which life of which engine made which tokens."""
    versions: list[dict[str, Any]] = []
    for span in answer.spans:
        label = str(span.version)
        if versions and versions[-1]["version"] == label:
            versions[-1]["end"] = span.end
        else:
            versions.append({"version": label, "start": span.start, "end": span.end})
    meta = {
        "input_token_logprobs": [],
        **answer.meta,
        **answer.prompt_meta,
        "id": rid,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.ids),
        "cached_tokens": answer.cached_tokens,
        "weight_version": versions[-1]["version"] if versions else None,
        "weight_versions": versions,
        "spans": answer.spans,
    }
    if not logprobs:
        return {name: value for name, value in meta.items() if not name.startswith(_LOGPROBS)}
    meta.update(logprob_fields(answer.ids.tolist(), answer.logprobs.tolist(), answer.rows))
    return meta


def logprob_fields(ids: list[int], logprobs: list[float], rows: Rows) -> dict[str, Any]:
    """Return the fields of meta_info that have a row for each token: `output_token_logprobs` is (log-prob, token id, text or None)."""
    pairs = [(logprob, token, None) for token, logprob in zip(ids, logprobs, strict=True)]
    return {"output_token_logprobs": pairs, **rows, "output_token_logprobs_length": len(ids)}
