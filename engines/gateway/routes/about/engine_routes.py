"""This module serves what is asked about the engines, as if they were one server, and refuses what only the supervisor may do to them."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from engines.gateway.core.samples import Request
from engines.gateway.routes.asking import Asking
from engines.gateway.routes.body_reader import BodyReader
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.request_bodies import copies, decode
from engines.gateway.routes.responses import json_response
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell

_WEIGHTS: Final = "weights are published by the trainer (pipeline.publish), and loaded by the supervisor before an engine gets requests"
_MEMORY: Final = "the supervisor pauses and wakes engines by itself, when another lease needs the GPU"
_OPERATORS: Final = "start the engine with it: [pipeline.engine] args"
_METHODS: Final = ("GET", "POST")
_TRIAL_TOKENS: Final = 1
REFUSED: Final = {
    _MEMORY: (
        "release_memory_occupation", "resume_memory_occupation", "pause_generation", "continue_generation", "sleep", "wake_up", "slow_down",
    ),
    _WEIGHTS: (
        "update_weights_from_disk", "update_weights_from_tensor", "update_weights_from_distributed", "update_weights_from_ipc",
        "update_weight_version", "init_weights_update_group", "destroy_weights_update_group", "begin_weight_update", "end_weight_update",
        "init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance", "get_weights_by_name", "weights_checker",
        "init_communicator", "update_named_param", "close_communicator",
    ),
    "adapters are part of what is published": ("load_lora_adapter", "load_lora_adapter_from_tensors", "unload_lora_adapter"),
    "a session inside an engine ends when it is paused; X-Trainshed-Session keeps a conversation on one engine": ("open_session", "close_session"),
    _OPERATORS: (
        "set_internal_state", "start_profile", "stop_profile", "set_trace_level", "freeze_gc", "configure_logging", "start_expert_distribution_record",
        "stop_expert_distribution_record", "dump_expert_distribution_record",
    ),
    "the supervisor adds and removes engines": ("add_worker", "remove_worker"),
}  # fmt: skip
"""Routes of SGLang, of its router and of TRL's server that would change an engine, by why they are refused."""


class _Abort(msgspec.Struct):
    rid: str = ""
    abort_all: bool = False


class EngineRoutes:
    """`name`: the pipeline's; `path`: the model's; `context`: tokens that engines take."""

    def __init__(self, shell: Shell, text: Text, bodies: BodyReader, *, name: str, path: str, context: int | None) -> None:
        self._shell, self._text, self._bodies = shell, text, bodies
        self._about = {"model_path": path, "served_model_name": name, "context_length": context}

    def routes(self) -> list[web.RouteDef]:
        """Return them all."""
        return [
            web.get("/server_info", self.server_info),
            web.get("/get_server_info", self.server_info),
            web.get("/health_generate", self.health_generate),
            web.get("/v1/loads", self.loads),
            web.get("/get_load", self.loads),
            web.get("/workers", self.workers),
            web.get("/list_workers", self.workers),
            web.post("/abort_request", self.abort),
            *(web.route(method, "/flush_cache", self.flush) for method in _METHODS),
            *(
                web.route(method, f"/{name}", _refusing(name, why))
                for why, names in REFUSED.items()
                for name in names
                for method in _METHODS
            ),
        ]

    async def server_info(self, request: web.Request) -> web.Response:
        """Answer as SGLang's `GET /server_info`: `internal_states` has one entry an engine. Arguments of engines are not told; keys are among them."""
        states = [
            {"engine": load.engine, "incarnation": load.incarnation, "num_running_reqs": load.in_flight}
            for load in self._shell.progress().engines
        ]
        return json_response({**self._about, "weight_version": str(self._shell.version), "internal_states": states, "version": "trainshed"})

    async def health_generate(self, request: web.Request) -> web.Response:
        """Answer 200 when a token has been made. This asks for an engine as any request does: it may wait for one to be woken."""
        async with Asking(self._shell, [self._trial()], None, [None]) as asking:
            await asking.all()
        return web.Response()

    def _trial(self) -> Request:
        (request,) = copies([min(self._text.eos, default=0)], {"max_new_tokens": _TRIAL_TOKENS, "temperature": 0.0}, self._text)
        return request

    async def loads(self, request: web.Request) -> web.Response:
        """Answer as SGLang's `GET /v1/loads`: what runs on each engine that is routed or busy, and what waits in the gateway for any."""
        progress = self._shell.progress()
        waiting = sum(rollout.waiting for rollout in progress.rollouts)
        loads = [
            {"dp_rank": load.engine, "num_running_reqs": load.in_flight, "num_waiting_reqs": 0, "num_total_reqs": load.in_flight}
            for load in progress.engines
        ]
        running = sum(load.in_flight for load in progress.engines)
        aggregate = {"total_running_reqs": running, "total_waiting_reqs": waiting, "total_reqs": running + waiting}
        return json_response({"loads": loads, "dp_rank_count": len(loads), "aggregate": aggregate})

    async def workers(self, request: web.Request) -> web.Response:
        """Answer as SGLang's router: the one worker is this gateway, to which all that a client may ask of a worker can be sent."""
        url = f"{request.scheme}://{request.host}"
        worker = {
            "id": self._about["served_model_name"],
            "url": url,
            "model_id": self._about["served_model_name"],
            "worker_type": "regular",
        }
        made: dict[str, Any] = {
            "workers": [{**worker, "is_healthy": True, "load": len(self._shell.progress().engines)}],
            "total": 1,
            "urls": [url],
        }
        return json_response(made)

    async def abort(self, request: web.Request) -> web.Response:
        """Answer `POST /abort_request`: requests whose name begins with `rid`, or all, end with what there is."""
        body = await self._bodies.decoded(request, lambda raw: decode(raw, _Abort))
        if not body.abort_all and not body.rid:
            raise RequestError(400, "bad_request", "give the rid of a request, or abort_all")
        self._shell.abort(None if body.abort_all else body.rid)
        return json_response({"message": "requests that were running have been told to end"})

    async def flush(self, request: web.Request) -> web.Response:
        """Answer `/flush_cache`: nothing is flushed, since an engine's cache knows its own weights, and no answer depends on it."""
        return web.Response(text="The cache is flushed with every load of weights.\n")


def _refusing(name: str, why: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        raise RequestError(403, "not_yours", f"{name} is refused: {why}")

    return handler
