"""This module turns text into tokens and back for the routes: what a model's files say, with the errors that a client reads."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from engines.gateway.model_files import conversation, settings
from engines.gateway.model_files.conversation import BadMessage
from engines.gateway.model_files.tokenizer import ModelTokenizer, TemplateRefused
from engines.gateway.routes.errors import RequestError

_UNFINISHED: Final = "\ufffd"
"""A decoder makes this of a character whose bytes have not all come."""
_SHORT: Final = 4096
"""Characters of a text that cost nothing to encode."""
_KEEP_LENGTH: Final = ("NFC", "NFD")
_NFC_SHRINKS: Final = 4
"""A normalizer of these kinds makes a text at most so many times shorter."""


class Text:
    """The text side of one model directory. Where it has no tokenizer, only token ids can be asked and answered."""

    def __init__(self, model: Path) -> None:
        """Raises OSError, ValueError or a bare Exception of `tokenizers` for files that are there and cannot be read."""
        self.tokenizer = ModelTokenizer(model)
        self.settings = settings.read(model)
        own = self.tokenizer.eos
        self.eos = self.settings.end_tokens if own is None else self.settings.end_tokens | {own}
        """The tokens at which the model ends."""
        self.vocabulary = self.settings.vocabulary
        """Rows of the model's embedding: a token id from here on kills an engine. None: the model does not say."""

    @property
    def known(self) -> bool:
        """Whether there is a tokenizer."""
        return self.tokenizer.present

    def require(self) -> None:
        """Raises RequestError where there is no tokenizer."""
        if not self.known:
            why = f" that can be read here ({self.tokenizer.problem})" if self.tokenizer.problem else ""
            raise RequestError(400, "no_tokenizer", f"this model has no tokenizer{why}: ask /generate with token ids (input_ids)")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of `text`. Raises RequestError where there is no tokenizer."""
        self.require()
        if len(text) <= _SHORT:
            return self.tokenizer.encode(text, special=special)
        if (limit := self._longest) is not None and len(text) > limit:
            raise RequestError(
                400,
                "bad_request",
                f"a text of {len(text)} characters cannot fit into the model's context of {self.settings.positions} tokens",
            )
        return self.tokenizer.encode_long(text, special=special)

    @cached_property
    def _longest(self) -> int | None:
        """Characters of the longest text that may fit into the context; None where that cannot be known."""
        if not self.known or self.settings.positions is None:
            return None
        normalizer = self.tokenizer.normalizer
        if normalizer is not None and type(normalizer).__name__ not in _KEEP_LENGTH:
            return None  # it may take anything away
        longest = max(map(len, self.tokenizer.vocabulary()), default=1)
        return self.settings.positions * longest * (1 if normalizer is None else _NFC_SHRINKS)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of token ids; empty where there is no tokenizer. Ids beyond the vocabulary are passed over."""
        return self.tokenizer.decode(ids, skip_special=skip_special) if self.known else ""

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text with special tokens in it, as stop strings are looked for."""
        return self.decode(ids, skip_special=False)

    def token(self, token: int) -> str:
        """Return one token as text, for log-prob tables."""
        return self.decode([token], skip_special=False)

    def answer(self, ids: Sequence[int], reason: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        """Return the text of an answer as SGLang gives it: without the stop string or token that ended it, and without special tokens."""
        matched = None if params.get("no_stop_trim") else reason.get("matched")
        if isinstance(matched, int) and ids and ids[-1] == matched:
            ids = ids[:-1]
        text = self.decode(ids, skip_special=params.get("skip_special_tokens", True) is not False)
        return text.partition(matched)[0] if isinstance(matched, str) and matched else text

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Return the token ids of a conversation, ready for the assistant's turn: by the model's template, else `role: content` lines.

        Raises RequestError(400) for messages that cannot be put into a prompt, and for a template that refuses them or does not compile.
        """
        self.require()
        try:
            if self.tokenizer.template is None:
                if tools or continue_final_message:
                    raise RequestError(
                        400, "bad_request", "this model has no chat template: neither tools nor continue_final_message can be used"
                    )
                lines = [f"{message['role']}: {message['content']}" for message in conversation.prepared(messages, parts=False)]
                return self.encode("\n".join([*lines, "assistant:"] if add_generation_prompt else lines))
            text = self.tokenizer.render(
                conversation.prepared(messages, parts=self._reads_parts),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=variables,
            )
        except BadMessage as error:
            raise RequestError(400, "bad_request", str(error)) from error
        except TemplateRefused as error:
            raise RequestError(400, "bad_request", f"the model's chat template refuses these messages: {error}") from error
        return self.encode(text, special=False)

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template reads content as a list of parts, as those of models that see images do."""
        try:
            return conversation.shows_parts(self.tokenizer.render(conversation.probe(parts=True)))
        except TemplateRefused:
            return False


class TextStream:
    """The text of one answer as its tokens come: only complete characters, and nothing that may be the beginning of a stop string."""

    def __init__(self, text: Text, params: Mapping[str, Any], stops: Sequence[str]) -> None:
        self._text, self._params = text, params
        self._stops = () if params.get("no_stop_trim") else tuple(stops)
        self._held = max((len(stop) for stop in self._stops), default=1) - 1
        trims = not (params.get("no_stop_trim") or params.get("ignore_eos"))
        self._ends = text.eos.union(params.get("stop_token_ids") or ()) if trims else frozenset()
        self._ids: list[int] = []
        self._from, self._read = 0, 0
        self._certain = ""
        self._sent = 0

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that these tokens add for certain."""
        self._ids.extend(ids)
        skip = self._params.get("skip_special_tokens", True) is not False
        end = len(self._ids) - (bool(self._ids) and self._ids[-1] in self._ends)  # a token that ends the answer is none of its text
        before = self._text.decode(self._ids[self._from : self._read], skip_special=skip)
        now = self._text.decode(self._ids[self._from : end], skip_special=skip)
        if len(now) > len(before) and not now.endswith(_UNFINISHED):
            self._certain += now[len(before) :]
            self._from, self._read = self._read, end
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
