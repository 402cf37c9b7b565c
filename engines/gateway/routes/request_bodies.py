"""This module decodes what a client sends into requests: SGLang's `/generate` and our own samples. All else is a `RequestError`, never a crash."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec

from engines.gateway.core.continuation import is_atomic
from engines.gateway.core.samples import MAX_TOKEN, TOKENS, Request
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.text import Text

T = TypeVar("T")

MAX_SAMPLES: Final = 4096
"""Samples that one request may ask for."""
MAX_COPIES: Final = 1024
MAX_PROMPT: Final = 1 << 20
"""Tokens of one prompt: more than any model's context."""
DEFAULT_LIMIT: Final = 128
"""SGLang's own `max_new_tokens` for `/generate`."""
_OPTIONS: Final = (
    "extra_key",
    "priority",
    "lora_path",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "return_text_in_logprobs",
    "return_hidden_states",
    "return_routed_experts",
    "routed_experts_start_len",
)
_NOTHING: Final[tuple[object, ...]] = (None, False, 0, [])
"""With these values an option asks for nothing; `logprob_start_len` has -1 (0: from the beginning of the prompt)."""

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
_Limit = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
Session = Annotated[str, msgspec.Meta(max_length=200)]


class OurSample(msgspec.Struct, forbid_unknown_fields=True):
    """One sample of `POST /rollouts/{rollout}/samples`."""

    sample: Annotated[int, msgspec.Meta(ge=0, le=10**15 - 1)]
    input_ids: Annotated[list[TokenId], msgspec.Meta(min_length=1)]
    sampling_params: dict[str, Any] = {}
    expected_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)] | None = None
    session: Session | None = None


class OurSamples(msgspec.Struct, forbid_unknown_fields=True):
    samples: Annotated[list[OurSample], msgspec.Meta(min_length=1)]


class Generate(msgspec.Struct):
    """The fields of SGLang's `/generate` that the gateway itself understands; `_OPTIONS` go to the engine, others must be empty."""

    text: str | list[str] | None = None
    input_ids: list[TokenId | list[TokenId]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    stream: bool = False
    return_logprob: bool | None = None
    expected_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)] | None = None


class _Params(msgspec.Struct):
    """The sampling parameters that the gateway itself reads; the engine judges the others."""

    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_COPIES)] | None = None
    max_new_tokens: _Limit | None = DEFAULT_LIMIT
    min_new_tokens: _Limit | None = None
    sampling_seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=64)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    logit_bias: dict[str, float] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKEN)] | None = None


class _Options(msgspec.Struct):
    """The options of `/generate` that the gateway itself reads."""

    logprob_start_len: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKEN)] = -1
    top_logprobs_num: _Limit = 0
    token_ids_logprob: list[TokenId] | None = None


def decode(body: bytes | bytearray, into: type[T]) -> T:
    """Decode a body of JSON. Raises RequestError(400) that says what is wrong and where."""
    try:
        return msgspec.json.decode(body, type=into)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "bad_request", f"the body is not what this route takes: {error}") from error


def generate(body: bytes | bytearray, text: Text) -> tuple[Generate, list[Request], bool]:
    """Return the body, the requests it makes in order (prompt by prompt, copy by copy), and whether its answer is a list."""
    known = decode(body, Generate)
    options = _options(decode(body, dict[str, Any]))
    prompts, batch = _prompts(known, text)
    params = known.sampling_params
    each = params if isinstance(params, list) else [params or {}] * len(prompts)
    if len(each) != len(prompts):
        raise RequestError(400, "bad_request", f"{len(each)} sampling_params for {len(prompts)} prompts")
    requests = samples_of(list(zip(prompts, each, strict=True)), text, options=options, expected=known.expected_tokens)
    return known, requests, batch or len(requests) > 1


def refuse_many(samples: int) -> None:
    """Raise RequestError(413) for more samples than one request may ask for."""
    if samples > MAX_SAMPLES:
        raise RequestError(413, "too_large", f"a request asks for at most {MAX_SAMPLES} samples: send several requests")


def samples_of(
    asked: Sequence[tuple[Sequence[int], Mapping[str, Any]]], text: Text, *, options: Mapping[str, Any], expected: int | None = None
) -> list[Request]:
    """Return the requests for prompts, each with its sampling parameters: prompt by prompt, copy by copy."""
    made: list[Request] = []
    for prompt, params in asked:
        made += copies(prompt, params, text, options=options, expected=expected)
        refuse_many(len(made))
    return made


def copies(
    prompt: Sequence[int],
    params: Mapping[str, Any],
    text: Text,
    *,
    options: Mapping[str, Any] | None = None,
    expected: int | None = None,
    session: str = "",
) -> list[Request]:
    """Return the requests for `n` samples of one prompt. A seed that is given counts up from copy to copy, else all would be the same."""
    known, options = _typed(params, _Params, "sampling_params: "), options or {}
    _check_tokens(prompt, known, _typed(options, _Options), text.vocabulary)
    stops = tuple(stop for stop in ([known.stop] if isinstance(known.stop, str) else known.stop or ()) if stop)
    rest = {name: value for name, value in params.items() if name not in ("n", "max_new_tokens", "stop") and value is not None}
    if stops:
        rest["stop"] = list(stops)
    atomic = is_atomic(rest, options, stops=bool(stops), can_decode=text.known)
    essence = msgspec.json.encode([{**rest, "sampling_seed": None}, known.max_new_tokens, dict(options)], order="sorted")
    tokens = array(TOKENS, prompt)
    stop_ids, content = frozenset(known.stop_token_ids or ()), tokens.tobytes()
    made = []
    for copy in range(known.n or 1):
        own = dict(rest)
        if known.sampling_seed is not None:
            own["sampling_seed"] = (known.sampling_seed + copy) % 2**63
        made.append(
            Request(
                tokens,
                own,
                known.max_new_tokens,
                options=options,
                expected_tokens=expected,
                stops=stops,
                stop_ids=stop_ids,
                atomic=atomic,
                fingerprint=hash((content, essence, own.get("sampling_seed"))),
                session=session,
            )
        )
    return made


def our_samples(body: bytes | bytearray, text: Text) -> list[tuple[int, Request]]:
    """Return sample numbers and their requests."""
    samples = decode(body, OurSamples).samples
    refuse_many(len(samples))
    made = []
    for sample in samples:
        session = sample.session or ""
        requests = copies(sample.input_ids, sample.sampling_params, text, expected=sample.expected_tokens, session=session)
        if len(requests) != 1:
            raise RequestError(400, "bad_request", f"sample {sample.sample}: n must be 1; each sample has a number of its own")
        made.append((sample.sample, requests[0]))
    if len({number for number, _ in made}) != len(made):
        raise RequestError(400, "bad_request", "a sample number comes twice")
    return made


def _typed(fields: Mapping[str, Any], into: type[T], where: str = "") -> T:
    try:
        return msgspec.convert(fields, into)
    except msgspec.ValidationError as error:
        raise RequestError(400, "bad_request", f"{where}{error}") from error


def _check_tokens(prompt: Sequence[int], params: _Params, options: _Options, vocabulary: int | None) -> None:
    """Refuse what no model takes, and what SGLang (0.5.23) does not look at and dies of. Raises RequestError."""
    if len(prompt) > MAX_PROMPT:
        raise RequestError(413, "too_large", f"a prompt has at most {MAX_PROMPT} tokens, and this one has {len(prompt)}")
    if options.logprob_start_len > len(prompt):
        raise RequestError(400, "bad_request", f"logprob_start_len is {options.logprob_start_len}, and the prompt has {len(prompt)} tokens")
    if vocabulary is None:
        return
    if options.top_logprobs_num > vocabulary:
        raise RequestError(400, "bad_request", f"top_logprobs_num is {options.top_logprobs_num}, and the model has {vocabulary} tokens")
    biased = [int(token) for token in params.logit_bias or () if token.isascii() and token.isdecimal()]
    for name, tokens in (
        ("the prompt", prompt),
        ("stop_token_ids", params.stop_token_ids or ()),
        ("token_ids_logprob", options.token_ids_logprob or ()),
        ("logit_bias", biased),
    ):
        if tokens and (worst := max(tokens)) >= vocabulary:
            raise RequestError(
                400, "bad_request", f"{name} has token {worst}, which is out of the vocabulary: the model has {vocabulary} tokens"
            )


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for name, value in body.items():
        if name in Generate.__struct_fields__ or value in ((None, -1) if name == "logprob_start_len" else _NOTHING):
            continue
        if name not in _OPTIONS:
            raise RequestError(400, "bad_request", f"{name!r} is not supported by this gateway")
        if isinstance(value, list) and name != "token_ids_logprob":
            raise RequestError(400, "bad_request", f"{name!r} must be one value for the whole batch")
        made[name] = value
    return made


def _prompts(known: Generate, text: Text) -> tuple[list[list[int]], bool]:
    if (known.text is None) == (known.input_ids is None):
        raise RequestError(400, "bad_request", "give either input_ids or text")
    if known.text is not None:
        many = isinstance(known.text, list)
        texts = [known.text] if isinstance(known.text, str) else known.text
        refuse_many(len(texts))
        prompts = [text.encode(one) for one in texts]
    else:
        prompts, many = token_prompts(known.input_ids or [])
    if not prompts or not all(prompts):
        raise RequestError(400, "bad_request", "a prompt is empty")
    return prompts, many


def token_prompts(given: Sequence[int | list[int]]) -> tuple[list[list[int]], bool]:
    """Return one prompt of token ids or a list of them as a list, and whether it was a list. Raises RequestError where it is both."""
    one = [token for token in given if isinstance(token, int)]
    several = [prompt for prompt in given if isinstance(prompt, list)]
    if one and several:
        raise RequestError(400, "bad_request", "a prompt is either token ids or a list of lists of them, not both")
    return ([one], False) if one else (several, True)
