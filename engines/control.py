"""Driving an engine from outside: the only module of ours that knows SGLang's HTTP control dialect (0.5.23; the embedded engine's too).

An operation (`pause`, `wake`, `load` …) is a sequence of calls with one deadline for all of it, and one operation runs at a time.
Calls that may be sent twice (questions, aborts, flushes, pausing, continuing) are repeated once when the connection breaks; calls that
kill an engine when they are repeated (release, resume) or run twice (updates) are sent **once, whatever happens**. An operation that did
not come to its end leaves the engine in an unknown state: every later one but a look (`probe`, `model_info`) is refused here, without
asking it. Only a new incarnation, with a new EngineControl, is the way out.

The type of an EngineError says what the operator's program must do next.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

import aiohttp
import anyio
import msgspec

from engines.control_http import (
    Calls,
    EngineError,
    EngineGarbled,
    EnginePoisoned,
    EngineRefused,
    EngineTimedOut,
    EngineUnreachable,
    Verb,
    new_session,
    within,
)
from trainers.protocol.ids import Version

__all__ = [
    "EngineControl",
    "EngineError",
    "EngineGarbled",
    "EnginePoisoned",
    "EngineRefused",
    "EngineTimedOut",
    "EngineUnreachable",
    "Load",
    "Memory",
    "ModelInfo",
    "ServerInfo",
    "new_session",
]

POLL_S: Final = 0.05
TAGS: Final = ("kv_cache", "weights", "cuda_graph")


class Memory(Enum):
    """What we know of the engine's device memory."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    UNKNOWN = "unknown"


MODEL_INFO: Final = Verb("GET", "/model_info", 5.0, True)
SERVER_INFO: Final = Verb("GET", "/server_info", 10.0, True)
LOADS: Final = Verb("GET", "/v1/loads?include=core", 5.0, True)
HEALTH: Final = Verb("GET", "/health", 30.0, True)
HEALTH_GENERATE: Final = Verb("GET", "/health_generate", 30.0, True)
GENERATE: Final = Verb("POST", "/generate", 3600.0, False)  # the first one compiles kernels: the operation's deadline is what counts
ABORT: Final = Verb("POST", "/abort_request", 10.0, True)
PAUSE: Final = Verb("POST", "/pause_generation", 120.0, True)
CONTINUE: Final = Verb("POST", "/continue_generation", 30.0, True)
FLUSH: Final = Verb("POST", "/flush_cache?timeout=30", 40.0, True)
FLUSH_QUEUED: Final = Verb("POST", "/flush_cache", 30.0, True)  # with a time-out it would wait for what was retracted to end
RELEASE: Final = Verb("POST", "/release_memory_occupation", 120.0, False)
RESUME: Final = Verb("POST", "/resume_memory_occupation", 120.0, False)
UPDATE: Final = Verb("POST", "/update_weights_from_disk", 600.0, False)
CHECK: Final = Verb("POST", "/weights_checker", 120.0, True)


class ModelInfo(msgspec.Struct, frozen=True):
    """Who answers. `weight_version` is the label of what it has loaded; `engine` names our embedded engine, else it is SGLang."""

    model_path: str
    weight_version: str
    engine: str = "sglang"

    @property
    def version(self) -> Version | None:
        """The label as the number that we issued, or None when it is not one (SGLang's `default`)."""
        label = self.weight_version
        return Version(int(label)) if label.isascii() and label.isdigit() and len(label) <= 18 else None


class _State(msgspec.Struct, frozen=True):
    num_running_reqs: int | None = None
    num_waiting_reqs: int | None = None


class _ServerInfo(msgspec.Struct, frozen=True):
    version: str
    internal_states: list[_State] = []
    max_total_num_tokens: int | None = None


class ServerInfo(msgspec.Struct, frozen=True):
    """The dialect's version, requests running and waiting where the engine says (the embedded one does; SGLang: `load_info`), and the tokens of
    the KV pool as it became (SGLang)."""

    version: str
    running: int | None
    waiting: int | None
    kv_tokens: int | None = None


class Load(msgspec.Struct, frozen=True):
    """Requests on the engine, for routing hints only: SGLang does not refresh it while paused."""

    running: int
    waiting: int


class _LoadOfRank(msgspec.Struct, frozen=True):
    num_running_reqs: int
    num_waiting_reqs: int


class _Loads(msgspec.Struct, frozen=True):
    loads: list[_LoadOfRank]


class _Finish(msgspec.Struct, frozen=True):
    type: str
    message: str = ""


class _Meta(msgspec.Struct, frozen=True):
    finish_reason: _Finish
    completion_tokens: int


class _Generated(msgspec.Struct, frozen=True):
    meta_info: _Meta


class _Updated(msgspec.Struct, frozen=True):
    success: bool
    message: str = ""


class _Checked(msgspec.Struct, frozen=True):
    per_engine_checksum: str
    success: bool = True


class EngineControl:
    """One incarnation of one engine. All deadlines are seconds from now, for the whole operation."""

    def __init__(self, url: str, key: str, session: aiohttp.ClientSession, *, retract_flushes: bool = True) -> None:
        """`url` without a trailing slash; `key` is this incarnation's API key ("" if it has none); `session` from `new_session`.

        `retract_flushes`: whether the cache can be flushed while retracted requests wait (`engines.sglang.versions`). Where it cannot,
        a load in place aborts what runs instead; the gateway goes on with it.
        """
        self._mode = "retract" if retract_flushes else "abort"
        self._calls = Calls(url, key, session)
        self._url = self._calls.url
        self._one_at_a_time = anyio.Lock()
        self.memory = Memory.AWAKE

    # -- looking ------------------------------------------------------------------------------------------------------------

    async def model_info(self, deadline: float) -> ModelInfo:
        """Who answers, and which weights it says it has. Proves that its HTTP side lives. Raises EngineError."""
        with within(deadline, MODEL_INFO.path):
            return await self._calls.ask(MODEL_INFO, ModelInfo)

    async def ready(self, deadline: float) -> ModelInfo:
        """Wait until the engine answers, and make sure that it is ours: it must know the key and turn away who does not.

        Raises EngineTimedOut when it does not answer in time, EngineGarbled when somebody else does. Watch the process meanwhile.
        """
        with within(deadline, "becoming ready"):
            while True:
                try:
                    info = await self._calls.ask(MODEL_INFO, ModelInfo)
                except (EngineUnreachable, EngineTimedOut):
                    await anyio.sleep(POLL_S)  # a port that is not open yet gives no event
                    continue
                except EngineRefused as refusal:
                    if refusal.status in (401, 403):
                        raise EngineGarbled(f"{self._url} does not take this incarnation's key: another process has the port") from refusal
                    if refusal.status < 500:
                        raise
                    await anyio.sleep(POLL_S)
                    continue
                break
            status = await self._calls.status_without_key(MODEL_INFO) if self._calls.has_key else 401
            if status not in (401, 403):
                raise EngineGarbled(f"{self._url} answers without a key ({status}): another process has the port")
            return info

    async def probe(self, deadline: float) -> ServerInfo:
        """A round trip through the thread that computes; harmless while paused. Raises EngineError."""
        with within(deadline, SERVER_INFO.path):
            info = await self._calls.ask(SERVER_INFO, _ServerInfo)
        states = info.internal_states
        running, waiting = [state.num_running_reqs for state in states], [state.num_waiting_reqs for state in states]
        return ServerInfo(info.version, _sum(running), _sum(waiting), info.max_total_num_tokens)

    async def load_info(self, deadline: float) -> Load:
        """Requests running and waiting. Raises EngineError."""
        with within(deadline, LOADS.path):
            loads = (await self._calls.ask(LOADS, _Loads)).loads
        return Load(sum(load.num_running_reqs for load in loads), sum(load.num_waiting_reqs for load in loads))

    async def health(self, deadline: float) -> None:
        """Liveness. Raises EngineError; EngineRefused (409) unless it is awake: a paused engine would call itself unhealthy."""
        self._must_be_awake("a health probe")
        with within(deadline, HEALTH.path):
            await self._calls.send(HEALTH)

    async def health_generate(self, deadline: float) -> None:
        """One token through the model by the engine's own probe. Raises EngineError; EngineRefused (409) unless it is awake."""
        self._must_be_awake("a health probe")
        with within(deadline, HEALTH_GENERATE.path):
            await self._calls.send(HEALTH_GENERATE)

    async def canary(self, deadline: float, *, sampled: bool = False) -> None:
        """One token by the route that samples take, the likeliest or a `sampled` one (whose kernels are others, compiled at first use).

        Raises EngineError; EngineRefused also when the engine aborted it, or is not awake.
        """
        self._must_be_awake("the canary")
        chance = {"temperature": 1.0, "top_p": 0.9} if sampled else {"temperature": 0}
        params = {"max_new_tokens": 1, "ignore_eos": True, **chance}
        body = {"input_ids": [0], "rid": uuid.uuid4().hex, "sampling_params": params, "return_logprob": sampled}
        with within(deadline, "the canary"):
            meta = (await self._calls.ask(GENERATE, _Generated, body)).meta_info
        if meta.finish_reason.type == "abort" or meta.completion_tokens != 1:
            raise EngineRefused(f"the canary came back as {meta.finish_reason.type} {meta.finish_reason.message}".rstrip(), 200)

    async def checksum(self, deadline: float) -> str:
        """Of all weights as they lie in device memory: engines of one shape with the same weights agree. Raises EngineError.

        EngineRefused (409) unless it is awake: weights that are not resident have no bytes.
        """
        self._must_be_awake("a checksum")
        with within(deadline, CHECK.path):
            return (await self._calls.ask(CHECK, _Checked, {"action": "checksum"})).per_engine_checksum

    def _must_be_awake(self, what: str) -> None:
        if self.memory is not Memory.AWAKE:
            raise EngineRefused(
                f"{self._url} is {self.memory.value}: {what} is for an engine that is awake, with no other operation under way", 409
            )

    # -- acting -------------------------------------------------------------------------------------------------------------

    async def abort_all(self, deadline: float) -> None:
        """End every request on the engine; their clients get what there is. Raises EngineError."""
        with within(deadline, ABORT.path):
            await self._calls.send(ABORT, {"abort_all": True})

    async def pause(self, deadline: float) -> None:
        """Abort what is left, close the engine and give its device memory back; nothing may be routed to it any more.

        Its answer is not a measurement: see the memory free before it is lent on. Does nothing when it is asleep. Raises EngineError.
        """
        async with self._operation("pause", deadline, Memory.ASLEEP) as needed:
            if needed:
                await self._calls.send(PAUSE, {"mode": "abort"})
                await self._calls.send(FLUSH)
                await self._calls.send(RELEASE, {"tags": list(TAGS)})

    async def wake(self, version: Version, path: str, deadline: float) -> Version:
        """Take device memory again and load `path` as `version`; the version that the engine says it has. Its GPUs must be free.

        Raises EngineError; EngineRefused (status 409) when it is not asleep.
        """
        if self.memory is Memory.AWAKE:
            raise EngineRefused(f"{self._url} is awake: wake is for a sleeping engine, load for this one", 409)
        async with self._operation("wake", deadline, Memory.AWAKE):
            await self._calls.send(RESUME, {"tags": ["weights"]})
            await self._update(version, path)
            await self._calls.send(RESUME, {"tags": ["kv_cache", "cuda_graph"]})
            await self._calls.send(FLUSH)
            loaded = await self._version()
            await self._calls.send(CONTINUE, {})
            return loaded

    async def load(self, version: Version, path: str, deadline: float) -> Version:
        """Load `path` as `version` on an awake engine; the version that it says it has. What runs goes on after it, as a second span.

        Raises EngineError; EngineRefused (status 409) when it is asleep.
        """
        if self.memory is Memory.ASLEEP:
            raise EngineRefused(f"{self._url} is asleep: load is for an awake engine, wake for this one", 409)
        async with self._operation("load", deadline, Memory.AWAKE):
            await self._calls.send(PAUSE, {"mode": self._mode})
            await self._update(version, path)
            await self._calls.send(FLUSH_QUEUED)
            loaded = await self._version()
            await self._calls.send(CONTINUE, {})
            return loaded

    @asynccontextmanager
    async def _operation(self, name: str, deadline: float, after: Memory) -> AsyncIterator[bool]:
        """One operation at a time; yields whether it has anything to do. If it does not reach its end, the state is unknown."""
        with within(deadline, name):
            async with self._one_at_a_time:
                if self.memory is Memory.UNKNOWN:
                    raise EngineTimedOut(f"{name} of {self._url}: an earlier operation did not end, its state is unknown")
                before, self.memory = self.memory, Memory.UNKNOWN
                yield before is not Memory.ASLEEP or after is not Memory.ASLEEP
                self.memory = after

    async def _update(self, version: Version, path: str) -> None:
        # flush_cache is a call of its own: an update that cannot flush kills older servers.
        body = {"model_path": path, "weight_version": str(version), "load_format": "auto", "flush_cache": False}
        try:
            updated = await self._calls.ask(UPDATE, _Updated, body)
        except EngineRefused as refusal:
            raise EnginePoisoned(f"loading version {version} from {path}: {refusal}", refusal.status) from refusal
        if not updated.success:
            raise EnginePoisoned(f"loading version {version} from {path}: {updated.message}", 200)

    async def _version(self) -> Version:
        info = await self._calls.ask(MODEL_INFO, ModelInfo)
        if info.version is None:
            raise EngineGarbled(f"{self._url} says that its weights are {info.weight_version!r}, which is no version of ours")
        return info.version


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
