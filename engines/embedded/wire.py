"""This module reads and checks SGLang's native bodies (does a request fit `context`?) and writes the shape of an answer. No torch, no I/O."""

import secrets
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from engines.embedded.batching import Request, Sampling
from engines.embedded.core import Answer, Refusal
from engines.embedded.text import NoText, Text

MAX_BATCH: Final = 1024
"""Samples in one `/generate` call."""
DEFAULT_NEW_TOKENS: Final = 128
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Tags = Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=16)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class SamplingIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body's `sampling_params`. What this engine cannot do is accepted only where it changes nothing."""

    max_new_tokens: int | msgspec.UnsetType | None = msgspec.UNSET  # SGLang's 128, or what the context has room for
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = -1
    min_p: float | None = 0.0
    min_new_tokens: int | None = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool = False
    sampling_seed: Seed | None = None
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int | None = 1
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0
    spaces_between_special_tokens: bool = True
    stream_interval: Annotated[int, msgspec.Meta(ge=1)] | None = None
    json_schema: None = None
    regex: None = None
    ebnf: None = None
    structural_tag: None = None
    stop_regex: None = None
    logit_bias: None = None
    custom_params: None = None


class GenerateIn(msgspec.Struct):
    """The body of `/generate`: one sample, or a batch where `text` or `input_ids` is a list of them."""

    text: str | list[str] | None = None
    input_ids: list[Token | list[Token]] | None = None
    sampling_params: SamplingIn | list[SamplingIn] | None = None
    rid: Name | list[Name] | None = None
    stream: bool = False
    return_logprob: bool | list[bool] | None = False
    logprob_start_len: int | list[int] | None = -1
    top_logprobs_num: int | list[int] | None = 0
    return_text_in_logprobs: bool = False


class AbortIn(msgspec.Struct):
    rid: str = ""
    abort_all: bool = False


class PauseIn(msgspec.Struct):
    mode: str = "abort"


class TagsIn(msgspec.Struct):
    tags: Tags | None = None


class LoadIn(msgspec.Struct):
    """The body of `/update_weights_from_disk`. `load_format` is ignored: this engine reads safetensors."""

    model_path: str
    load_format: str | None = None
    weight_version: str | None = None
    flush_cache: bool = True
    abort_all_requests: bool = False


class Limits(msgspec.Struct, frozen=True):
    """What a request may ask of this engine."""

    vocab: int
    context: int
    eos: frozenset[int]


class Wish(msgspec.Struct):
    """A request, and how its answer is to be written."""

    request: Request
    return_logprob: bool = False
    text_in_logprobs: bool = False
    skip_special: bool = True
    trim: bool = True


def wishes(body: GenerateIn, limits: Limits, text: Text) -> tuple[list[Wish], bool]:
    """Return the samples of a body, and whether it is a batch. Raises Refusal (400) for what cannot be served."""
    prompts, batched = _prompts(body, text)
    count = len(prompts)
    if not 1 <= count <= MAX_BATCH:
        raise Refusal(f"a batch has 1 to {MAX_BATCH} samples, not {count}")
    if any(_each(body.top_logprobs_num or 0, count)):
        raise Refusal("top_logprobs_num: the embedded engine returns the log-probability of the chosen token only")
    rids = _rids(body.rid, count)
    found = []
    for index, prompt in enumerate(prompts):
        wanted = _each(body.sampling_params or SamplingIn(), count)[index]
        with_logprobs = bool(_each(body.return_logprob or False, count)[index])
        start = _each(-1 if body.logprob_start_len is None else body.logprob_start_len, count)[index]
        check_prompt(prompt, limits)
        request = Request(
            rid=rids[index],
            prompt=tuple(prompt),
            sampling=sampling(wanted, len(prompt), limits),
            logprobs_from=max(start, -1) if with_logprobs else -1,
            streams=body.stream,
            interval=wanted.stream_interval or 1,
        )
        found.append(Wish(request, with_logprobs, body.return_text_in_logprobs, wanted.skip_special_tokens, not wanted.no_stop_trim))
    return found, batched


def sampling(wanted: SamplingIn, prompt: int, limits: Limits) -> Sampling:
    """Check and complete what is wished for a prompt of this many tokens. Raises Refusal (400)."""
    temperature = 1.0 if wanted.temperature is None else wanted.temperature
    top_p = 1.0 if wanted.top_p is None else wanted.top_p
    top_k = -1 if wanted.top_k is None else wanted.top_k
    min_p = wanted.min_p or 0.0
    fewest = wanted.min_new_tokens or 0
    room = limits.context - prompt
    if wanted.max_new_tokens is msgspec.UNSET:
        most = min(DEFAULT_NEW_TOKENS, room)
    else:
        most = room if wanted.max_new_tokens is None else wanted.max_new_tokens
    stops = (wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop or ())
    rules = (
        (0.0 <= temperature < float("inf"), f"temperature must be non-negative, got {temperature}."),
        (0.0 < top_p <= 1.0, f"top_p must be in (0, 1], got {top_p}."),
        (top_k == -1 or top_k >= 1, f"top_k must be -1 (disable), or at least 1, got {top_k}."),
        (0.0 <= min_p <= 1.0, f"min_p must be in [0, 1], got {min_p}."),
        (most >= 0, f"max_new_tokens must be at least 0, got {most}."),
        (0 <= fewest <= most, f"min_new_tokens must be in [0, max_new_tokens({most})], got {fewest}."),
        (wanted.n in (None, 1), "n: send n samples instead"),
        (len(stops) <= 16 and all(0 < len(stop) <= 256 for stop in stops), "stop: at most 16 strings of 1 to 256 characters"),
        (not wanted.frequency_penalty and not wanted.presence_penalty, "penalties are not computed by the embedded engine"),
        (wanted.repetition_penalty in (None, 1.0), "penalties are not computed by the embedded engine"),
        (
            most <= room,
            f"Requested token count exceeds the model's maximum context length of {limits.context} tokens. You requested a total of "
            f"{prompt + most} tokens: {prompt} tokens from the input messages and {most} tokens for the completion. (`context` in [pipeline.engine].)",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise Refusal(message)
    return Sampling(
        seed=secrets.randbits(63) if wanted.sampling_seed is None else wanted.sampling_seed,
        max_new_tokens=max(most, 1),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        min_new_tokens=fewest,
        stop=stops,
        stop_tokens=limits.eos | frozenset(token for token in wanted.stop_token_ids or () if token < limits.vocab),
        ignore_eos=wanted.ignore_eos,
    )


def check_prompt(prompt: Sequence[int], limits: Limits) -> None:
    """Check a prompt. Raises Refusal (400) when it is empty, too long, or has tokens that the model does not know."""
    if not prompt:
        raise Refusal("The input is empty.")
    if len(prompt) >= limits.context:
        raise Refusal(
            f"The input ({len(prompt)} tokens) is longer than the model's context length ({limits.context} tokens; `context` in [pipeline.engine])."
        )
    worst = max(prompt)
    if worst >= limits.vocab:
        raise Refusal(f"The input_ids {worst} is out of the vocabulary of {limits.vocab} tokens.")


def _prompts(body: GenerateIn, text: Text) -> tuple[list[list[int]], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise Refusal("Either text or input_ids should be provided, and not both.")
    if body.input_ids is not None:
        lists = [entry for entry in body.input_ids if isinstance(entry, list)]
        if not lists:
            return [[entry for entry in body.input_ids if isinstance(entry, int)]], False
        if len(lists) != len(body.input_ids):
            raise Refusal("input_ids mixes tokens and lists of tokens.")
        return lists, True
    try:
        if isinstance(body.text, str):
            return [text.encode(body.text)], False
        return [text.encode(entry) for entry in body.text or ()], True
    except NoText as error:
        raise Refusal(str(error)) from error


def _rids(given: str | list[str] | None, count: int) -> list[str]:
    if isinstance(given, str):
        return [given] if count == 1 else [f"{given}_{index}" for index in range(count)]
    rids = given or [uuid.uuid4().hex for _ in range(count)]
    if len(rids) != count or len(set(rids)) != count:
        raise Refusal(f"rid: {count} different ids are needed")
    return rids


def _each(value: Any, count: int) -> list[Any]:
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        raise Refusal(f"a list of {len(values)} values for a batch of {count}")
    return values


def visible(wish: Wish, answer: Answer, text: Text) -> str:
    """Return the text of an answer so far, without the stop token or stop string that ended it."""
    output: Sequence[int] = answer.output
    matched = (answer.finish or {}).get("matched") if wish.trim else None
    if isinstance(matched, int) and output:
        output = output[:-1]
    written = text.decode(output, wish.skip_special)
    return written.partition(matched)[0] if isinstance(matched, str) else written


def answer_body(wish: Wish, answer: Answer, text: Text) -> dict[str, Any]:
    """Return SGLang's answer: everything so far, also in the chunks of a stream."""
    request = wish.request
    meta: dict[str, Any] = {
        "id": answer.rid,
        "finish_reason": answer.finish,
        "prompt_tokens": len(request.prompt),
        "weight_version": answer.version,
        "weight_versions": [{"version": span.version, "start": span.start, "end": span.end} for span in answer.spans],
        "num_retractions": answer.retractions,
        "completion_tokens": len(answer.output),
        "cached_tokens": 0,
    }
    if wish.return_logprob:
        meta["output_token_logprobs"] = [
            [logprob, token, text.decode([token], False) if wish.text_in_logprobs else None]
            for token, logprob in zip(answer.output, answer.logprobs, strict=True)
        ]
        meta["input_token_logprobs"] = _prompt_logprobs(wish, answer, text)
    return {"text": visible(wish, answer, text), "output_ids": list(answer.output), "meta_info": meta}


def _prompt_logprobs(wish: Wish, answer: Answer, text: Text) -> list[list[Any]]:
    start, prompt = wish.request.logprobs_from, wish.request.prompt
    if start < 0:
        return []
    known = dict(answer.prompt_logprobs)
    entries: list[list[Any]] = []
    for position in range(start, len(prompt)):
        token = prompt[position]
        entries.append([known.get(position), token, text.decode([token], False) if wish.text_in_logprobs else None])
    return entries
