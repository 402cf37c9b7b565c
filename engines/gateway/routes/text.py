"""This module turns text into tokens and back with the model's own tokenizer.json and chat template; no torch, no transformers."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from engines.gateway.routes.errors import RequestError

_UNFINISHED: Final = "\ufffd"
"""A decoder makes this of a character whose bytes have not all come."""
_SHORT: Final = 4096
"""Characters of a text that cost nothing to encode."""
_KEEP_LENGTH: Final = ("NFC", "NFD")
_NFC_SHRINKS: Final = 4
"""A normalizer of these kinds makes a text at most so many times shorter."""


class Text:
    """The text side of one model directory. Where it has no tokenizer.json, only token ids can be asked and answered."""

    def __init__(self, model: Path) -> None:
        """Raises OSError or ValueError for files that are there and cannot be read."""
        path = model / "tokenizer.json"
        self._tokenizer: Any = Tokenizer.from_file(str(path)) if path.is_file() else None
        config = _json(model / "tokenizer_config.json")
        self._special = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self._template = _template(model, config)
        self.eos = self._eos(model)
        shape = _json(model / "config.json")
        self._positions = _size(shape, "max_position_embeddings")
        self.vocabulary = _size(shape, "vocab_size")
        """Rows of the model's embedding: a token id from here on kills an engine. None: the model does not say."""

    @property
    def known(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of `text`. Raises RequestError where there is no tokenizer."""
        if self._tokenizer is None:
            raise RequestError(400, "no_tokenizer", "this model has no tokenizer.json: ask with token ids (input_ids)")
        if len(text) <= _SHORT:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
            return ids
        if (limit := self._longest) is not None and len(text) > limit:
            raise RequestError(
                400, "bad_request", f"a text of {len(text)} characters cannot fit into the model's context of {self._positions} tokens"
            )
        # A batch lets other threads run meanwhile; a single text would stop the event loop wherever it is encoded.
        (encoded,) = self._tokenizer.encode_batch([text], add_special_tokens=special)
        made: list[int] = encoded.ids
        return made

    @cached_property
    def _longest(self) -> int | None:
        """Characters of the longest text that may fit into the context; None where that cannot be known."""
        if self._tokenizer is None or self._positions is None:
            return None
        normalizer = self._tokenizer.normalizer
        if normalizer is not None and type(normalizer).__name__ not in _KEEP_LENGTH:
            return None  # it may take anything away
        longest = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)
        return self._positions * longest * (1 if normalizer is None else _NFC_SHRINKS)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of token ids; empty where there is no tokenizer. Ids beyond the vocabulary are passed over."""
        if self._tokenizer is None:
            return ""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text with special tokens in it, as stop strings are looked for."""
        return self.decode(ids, skip_special=False)

    def token(self, token: int) -> str:
        """Return one token as text, for log-prob tables."""
        return self.decode([token], skip_special=False)

    def answer(self, ids: Sequence[int], reason: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        """Return the text of an answer as SGLang gives it: without the stop string that ended it, and without special tokens."""
        text = self.decode(ids, skip_special=params.get("skip_special_tokens", True) is not False)
        matched = reason.get("matched")
        if isinstance(matched, str) and matched and not params.get("no_stop_trim"):
            return text.partition(matched)[0]
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a conversation, ready for the assistant's turn: by the model's template, else `role: content` lines."""
        if self._template is None:
            lines = [f"{message['role']}: {message['content']}" for message in messages]
            return self.encode("\n".join([*lines, "assistant:"]))
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, tools=None, **self._special, **options)
        except Exception as error:  # whatever a template of somebody else's raises, in its sandbox
            raise RequestError(400, "bad_request", f"the model's chat template refuses these messages: {error}") from error
        return self.encode(text, special=False)

    def _eos(self, model: Path) -> frozenset[int]:
        """Return the tokens at which the model ends: what its generation or model config says, and the tokenizer's own end token."""
        named = [_json(model / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
        ids = {item for value in named for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
        token = self._tokenizer.token_to_id(self._special["eos_token"]) if self._tokenizer and self._special["eos_token"] else None
        return frozenset(ids if token is None else ids | {token})


class TextStream:
    """The text of one answer as its tokens come: only complete characters, and nothing that may be the beginning of a stop string."""

    def __init__(self, text: Text, params: Mapping[str, Any], stops: Sequence[str]) -> None:
        self._text, self._params = text, params
        self._stops = () if params.get("no_stop_trim") else tuple(stops)
        self._held = max((len(stop) for stop in self._stops), default=1) - 1
        self._ids: list[int] = []
        self._from, self._read = 0, 0
        self._certain = ""
        self._sent = 0

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that these tokens add for certain."""
        self._ids.extend(ids)
        skip = self._params.get("skip_special_tokens", True) is not False
        before = self._text.decode(self._ids[self._from : self._read], skip_special=skip)
        now = self._text.decode(self._ids[self._from :], skip_special=skip)
        if len(now) > len(before) and not now.endswith(_UNFINISHED):
            self._certain += now[len(before) :]
            self._from, self._read = self._read, len(self._ids)
        found = [at for stop in self._stops if (at := self._certain.find(stop, self._sent)) >= 0]
        return self._send(min([len(self._certain) - self._held, *found]))

    def finish(self, text: str) -> str:
        """Return what has not been sent yet of the answer's full `text`."""
        self._certain = text
        return self._send(len(text))

    @property
    def sent(self) -> str:
        """The text so far."""
        return self._certain[: self._sent]

    def _send(self, end: int) -> str:
        piece = self._certain[self._sent : max(end, self._sent)]
        self._sent += len(piece)
        return piece


def _template(model: Path, config: Mapping[str, Any]) -> Template | None:
    path = model / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _size(config: Mapping[str, Any], name: str) -> int | None:
    """Return a size of the model, which those of several modalities keep with their text part."""
    text = config.get("text_config")
    size = config.get(name, text.get(name) if isinstance(text, dict) else None)
    return size if isinstance(size, int) and size > 0 else None


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _content(token: object) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
