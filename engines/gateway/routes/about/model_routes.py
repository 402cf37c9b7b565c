"""This module serves what is known of the model without asking an engine: its name, its sizes, its tokens."""

from typing import Any

import msgspec
from aiohttp import web

from engines.gateway.routes.agents.chat_bodies import Chat, Parsers, chat_prompt
from engines.gateway.routes.body_reader import BodyReader
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.request_bodies import TokenId, decode
from engines.gateway.routes.responses import json_response
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell


class _Tokenize(msgspec.Struct):
    """SGLang's and vLLM's body of /tokenize; a chat has `messages` instead of `prompt`, and what a chat's body has."""

    prompt: str | list[str]
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class _Detokenize(msgspec.Struct):
    tokens: list[TokenId | list[TokenId]]
    skip_special_tokens: bool = True


class ModelRoutes:
    """`name`: the pipeline's; `path`: the model's; `context`: tokens that engines take."""

    def __init__(
        self, shell: Shell, text: Text, bodies: BodyReader, parsers: Parsers, *, name: str, path: str, context: int | None
    ) -> None:
        self._shell, self._text, self._bodies, self._parsers = shell, text, bodies, parsers
        self._name, self._path = name, path
        self._context = context if context is not None else text.settings.positions

    def routes(self) -> list[web.RouteDef]:
        """Return them all."""
        return [
            web.get("/model_info", self.info),
            web.get("/get_model_info", self.info),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
            web.post("/tokenize", self.tokenize),
            web.post("/v1/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.post("/v1/detokenize", self.detokenize),
        ]

    async def info(self, request: web.Request) -> web.Response:
        """Answer as SGLang's `GET /model_info`."""
        return json_response(
            {
                "model_path": self._path,
                "tokenizer_path": self._path,
                "served_model_name": self._name,
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": str(self._shell.version),
                "tool_call_parser": self._parsers.tool,
                "reasoning_parser": self._parsers.reasoning,
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "context_length": self._context,
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models`."""
        return json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models/{id}`; the model's path is a name of it, too."""
        if (wanted := request.match_info["model"]) not in (self._name, self._path, self._path.strip("/")):
            raise RequestError(404, "model_not_found", f"the model {wanted!r} is not here: this is {self._name!r}")
        return json_response(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "trainshed",
            "root": self._path,
            "parent": None,
            "max_model_len": self._context,
        }

    async def tokenize(self, request: web.Request) -> web.Response:
        """Answer `POST /tokenize`, of texts or of a chat."""
        return json_response(await self._bodies.decoded(request, self._tokenized))

    def _tokenized(self, raw: bytearray) -> dict[str, Any]:
        if "messages" in decode(raw, dict[str, msgspec.Raw]):
            tokens: list[int] | list[list[int]] = chat_prompt(decode(raw, Chat), self._text)
            strings = False
        else:
            body = decode(raw, _Tokenize)
            special, strings = body.add_special_tokens, bool(body.return_token_strs)
            if isinstance(body.prompt, str):
                tokens = self._text.encode(body.prompt, special=special)
            else:
                tokens = [self._text.encode(one, special=special) for one in body.prompt]
        many = bool(tokens) and isinstance(tokens[0], list)
        made: dict[str, Any] = {"tokens": tokens, "count": [len(one) for one in tokens if isinstance(one, list)] if many else len(tokens)}
        if strings and not many:
            made["token_strs"] = [self._text.token(token) for token in tokens if isinstance(token, int)]
        return {**made, "max_model_len": self._context}

    async def detokenize(self, request: web.Request) -> web.Response:
        """Answer `POST /detokenize`: `text` is where SGLang has it, `prompt` where vLLM has it."""
        return json_response(await self._bodies.decoded(request, self._detokenized))

    def _detokenized(self, raw: bytearray) -> dict[str, Any]:
        self._text.require()
        body = decode(raw, _Detokenize)
        one = [token for token in body.tokens if isinstance(token, int)]
        several = [tokens for tokens in body.tokens if isinstance(tokens, list)]
        if one and several:
            raise RequestError(400, "bad_request", "tokens are either token ids or a list of lists of them, not both")
        skip = body.skip_special_tokens
        made = (
            [self._text.decode(tokens, skip_special=skip) for tokens in several] if several else self._text.decode(one, skip_special=skip)
        )
        return {"text": made, "prompt": made}
