"""Engine groups are started on ports of their own and, once ready, paused, woken and loaded through their control dialect.

What differs between kinds of engine is in `kinds`.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import anyio
import structlog

from engines.control import EngineControl, EngineError, new_session
from engines.lifecycle import members
from supervisor.host.processes.group import Group
from supervisor.runtime.group_lifecycle import GroupLifecycle
from supervisor.runtime.kinds.engine_kind import Endpoint, EngineLife, EngineStart
from supervisor.runtime.kinds.registry import KINDS
from supervisor.runtime.run_facts import RunFacts
from supervisor.runtime.snapshots import WeightTransport
from supervisor.scheduler.actions import LoadWeights, Pause, StartGroup, Wake
from supervisor.scheduler.events import ActionFailed, GroupReady, Paused, Woken
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version

Load = Callable[[Version, str, float], Awaitable[Version]]
"""(version, where it lies, seconds) -> the version read back from the engine."""


@dataclass(frozen=True, slots=True)
class _Running:
    """An incarnation that has been ready."""

    incarnation: Incarnation
    control: EngineControl
    life: EngineLife


class Engines:
    """Starts and controls every engine of every pipeline. Use it as an async context manager: it has an HTTP session."""

    def __init__(
        self,
        facts: RunFacts,
        lifecycle: GroupLifecycle,
        transports: Mapping[PipelineId, WeightTransport],
        log: "structlog.typing.FilteringBoundLogger",
    ) -> None:
        self._facts = facts
        self._limits = facts.pipelines.config.health
        self._lifecycle = lifecycle
        self._transports = transports
        self._kinds = {kind: KINDS[kind](facts, log) for kind in {table.engine.kind for _, table in facts.pipelines}}
        self._endpoints: dict[EngineId, Endpoint] = {}
        self._running: dict[EngineId, _Running] = {}
        self._session: aiohttp.ClientSession | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> "Engines":
        self._session = await self._open.enter_async_context(new_session())
        for kind in self._kinds.values():
            await kind.look()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def start(self, action: StartGroup) -> GroupReady | ActionFailed:
        """Start an engine and wait until it is ready, as its kind says. Its exit is watched meanwhile: whichever comes first decides.

        Raises SpawnFailed, NoPortFree, EngineError, OSError.
        """
        engine, incarnation = action.engine, action.incarnation
        assert self._session is not None
        table = self._facts.pipelines.table(engine.pipeline).engine
        endpoint = Endpoint.on(self._lifecycle.reserve(engine, members.WINDOW), table.slots)
        self._endpoints[engine] = endpoint
        self._lifecycle.when_gone(engine, lambda: self._forget(engine))
        life = self._kinds[table.kind].prepare(EngineStart(self._facts, engine, incarnation, endpoint))
        self._lifecycle.remove_when_gone(engine, life.clean_up)
        control = EngineControl(endpoint.url, endpoint.key, self._session, retract_flushes=life.retract_flushes)

        async def ready(group: Group) -> None:
            await _ready_or_exit(group, life, control, self._limits.start_s)
            await life.trace(await group.pids())

        group = await self._lifecycle.begin(engine, incarnation, life.commands, ready)
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        self._running[engine] = _Running(incarnation, control, life)
        self._lifecycle.watch_tree(engine, incarnation)
        return GroupReady(id=action.id, version=Version(0), pids=tuple(member.pid for member in group.members))

    def _forget(self, engine: EngineId) -> None:
        self._running.pop(engine, None)
        self._endpoints.pop(engine, None)

    def endpoint(self, engine: EngineId) -> Endpoint:
        """Returns where the present incarnation of an engine that has been started listens."""
        return self._endpoints[engine]

    def control(self, engine: EngineId, incarnation: Incarnation) -> EngineControl | None:
        """Returns the control of this incarnation; None when it has ended, or was never ready."""
        running = self._get(engine, incarnation)
        return None if running is None else running.control

    def _get(self, engine: EngineId, incarnation: Incarnation) -> _Running | None:
        running = self._running.get(engine)
        return running if running is not None and running.incarnation == incarnation else None

    async def pause(self, action: Pause) -> Paused | ActionFailed:
        """Give back the engine's device memory. Raises EngineError."""
        running = self._get(action.engine, action.incarnation)
        if running is None:
            return _has_ended(action.id)
        await running.control.pause(self._limits.pause_s)
        return Paused(id=action.id)

    async def wake(self, action: Wake) -> Woken | ActionFailed:
        """Take device memory again, with the weights of a version. Raises EngineError."""
        running = self._get(action.engine, action.incarnation)
        if running is None:
            return _has_ended(action.id)
        return await self._loaded(action, running, running.control.wake, self._limits.wake_s)

    async def load(self, action: LoadWeights) -> Woken | ActionFailed:
        """Load a version in place. Raises EngineError."""
        running = self._get(action.engine, action.incarnation)
        if running is None:
            return _has_ended(action.id)
        return await self._loaded(action, running, running.control.load, self._limits.load_s)

    async def _loaded(self, action: Wake | LoadWeights, running: _Running, load: Load, limit: float) -> Woken:
        """Load a version, read it back and have the kind verify it, all within `limit` seconds. Raises EngineError."""
        began = anyio.current_time()
        version = await load(action.version, self._transports[action.engine.pipeline].locate(action.version), limit)
        await running.life.verify(running.control, version, limit - (anyio.current_time() - began))
        return Woken(id=action.id, version=version)


async def _ready_or_exit(group: Group, life: EngineLife, control: EngineControl, limit: float) -> None:
    """Returns when the engine is ready and able. Raises EngineError: at once when a member ends, at the deadline else."""
    failure: list[EngineError] = []
    async with anyio.create_task_group() as tasks:

        async def exit_first() -> None:
            failure.append(EngineError(f"ended before it was ready: {await group.exited()}"))
            tasks.cancel_scope.cancel()

        tasks.start_soon(exit_first)
        tasks.start_soon(life.follow, group.pids)
        try:
            await life.ready(control, limit)
        except EngineError as error:  # not out of the task group, which would wrap it
            failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    await group.watch_tree()


def _has_ended(id: int) -> ActionFailed:
    return ActionFailed(id=id, reason="that life of the engine is over")
