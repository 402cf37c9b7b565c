"""The engine groups: started on ports of their own, seen ready and able, paused, woken and loaded through their control dialect."""

import os
from collections.abc import Awaitable, Callable, Coroutine

import aiohttp
import anyio

from engines.control import EngineControl, EngineError, EnginePoisoned, new_session
from engines.lifecycle import members
from supervisor.config.child_environment import choose
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.group import Command, Group
from supervisor.runtime.context import Site
from supervisor.runtime.endpoints import Front, Fronts
from supervisor.runtime.group_lifecycle import Life
from supervisor.runtime.sglang_engines import Sglang
from supervisor.runtime.weight_checksums import Checksums
from supervisor.scheduler.actions import LoadWeights, Pause, StartGroup, Wake
from supervisor.scheduler.events import ActionFailed, GroupReady, Paused, Woken
from trainers import weights
from trainers.protocol.child_env import OUR_PATH
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version

Sync = Callable[[Version, str, float], Awaitable[Version]]


class Engines:
    """Every engine of every pipeline. Use as an async context manager: it has an HTTP session."""

    def __init__(self, site: Site, life: Life, fronts: Fronts) -> None:
        self._site = site
        self._life = life
        self._fronts = fronts
        self._controls: dict[EngineId, tuple[Incarnation, EngineControl]] = {}
        self._session: aiohttp.ClientSession | None = None
        self._sglang = Sglang(site)
        self._checksums = Checksums()

    async def __aenter__(self) -> "Engines":
        self._session = new_session()
        await self._sglang.look()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def start(self, action: StartGroup) -> GroupReady | ActionFailed:
        """Spawn it, wait until the listener is ours and one token came through the real endpoint.

        Raises SpawnFailed, NoPortFree, EngineError. Its exit is watched meanwhile: whichever comes first decides.
        """
        engine, incarnation = action.engine, action.incarnation
        assert self._session is not None
        front = self._fronts.open(engine, self._site.ports.reserve(engine, members.WINDOW))
        commands = self._commands(action, front)
        control = EngineControl(front.url, front.key, self._session, retract_flushes=self._sglang.retract_flushes(engine))
        limit = self._site.config.health.start_s

        async def ready(group: Group) -> None:
            await _or_exit(group, control, limit, lambda: self._sglang.follow(engine, group.pids))
            await self._sglang.trace(engine, await group.pids())

        group = await self._life.begin(engine, incarnation, commands, ready)
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        self._controls[engine] = (incarnation, control)
        self._site.spawn_task(self._life.watch_tree, engine, incarnation, name=f"watch the tree of {engine}")
        return GroupReady(id=action.id, version=Version(0), pids=tuple(member.pid for member in group.members))

    def _commands(self, action: StartGroup, front: Front) -> list[Command]:
        """One for each member of the group, the head first."""
        spec = self._site.pipeline(action.engine.pipeline).engine
        shape = members.shape(spec.members, spec.tp)
        if spec.kind == "sglang":
            self._sglang.prepare(action.engine, action.incarnation, front)
            return [self._sglang.command(action.engine, action.incarnation, front, member, len(shape)) for member in shape]
        return [self._command(action, front)]

    def _command(self, action: StartGroup, front: Front) -> Command:
        site, engine = self._site, action.engine
        spec = site.pipeline(engine.pipeline).engine
        assert spec.context is not None, "load fills it in"
        seen = visible(site.bundle(engine))
        env = {
            **choose("engine", site.environ, spec.pass_env, spec.env).kept,
            **seen.env,
            "PYTHONPATH": OUR_PATH,
            "PYTHONUNBUFFERED": "1",
            "TRAINSHED_API_KEY": front.key,
            "TRAINSHED_GPUS": ",".join(seen.devices),
            "TRAINSHED_RUN": str(site.directory.path),
            "TRAINSHED_TAG": site.tag(engine, action.incarnation),
        }
        argv = ["--model", str(site.model(engine.pipeline)), "--slots", str(spec.slots), "--context", str(spec.context)]
        argv += ["--host", "127.0.0.1", "--port", str(front.window.first), "--gpu", seen.devices[0], *spec.args]
        return Command(argv=argv, module="engines.embedded", env=env, cwd=site.directory.path, log=site.directory.log_of(engine))

    async def pause(self, action: Pause) -> Paused | ActionFailed:
        """Raises EngineError."""
        control = self.control(action.engine, action.incarnation)
        if control is None:
            return _gone_meanwhile(action.id)
        await control.pause(self._site.config.health.pause_s)
        return Paused(id=action.id)

    async def wake(self, action: Wake) -> Woken | ActionFailed:
        """Raises EngineError."""
        control = self.control(action.engine, action.incarnation)
        if control is None:
            return _gone_meanwhile(action.id)
        path = self._weights(action.engine.pipeline, action.version)
        return Woken(id=action.id, version=await self._synced(action, control, control.wake, path, self._site.config.health.wake_s))

    async def load(self, action: LoadWeights) -> Woken | ActionFailed:
        """Raises EngineError."""
        control = self.control(action.engine, action.incarnation)
        if control is None:
            return _gone_meanwhile(action.id)
        path = self._weights(action.engine.pipeline, action.version)
        return Woken(id=action.id, version=await self._synced(action, control, control.load, path, self._site.config.health.load_s))

    async def _synced(self, action: Wake | LoadWeights, control: EngineControl, sync: Sync, path: str, limit: float) -> Version:
        """Weights loaded, the version read back, and now and then its bytes compared with other engines'. Raises EngineError."""
        engine, began = action.engine, anyio.current_time()
        version = await sync(action.version, path, limit)
        if self._sglang.has_checksums(engine) and self._checksums.due(engine, action.incarnation):
            checksum = await control.checksum(limit - (anyio.current_time() - began))
            log = self._site.group_log(engine, action.incarnation)
            if (complaint := self._checksums.disagreement(engine, version, checksum)) is not None:
                raise EnginePoisoned(complaint, 200)
            log.info("weights verified", version=version, checksum=checksum[:16])
        return version

    def control(self, engine: EngineId, incarnation: Incarnation) -> EngineControl | None:
        """The line to this life of the engine; None when it is over."""
        known = self._controls.get(engine)
        return known[1] if known is not None and known[0] == incarnation else None

    def _weights(self, pipeline: PipelineId, version: Version) -> str:
        if version == 0:
            return str(self._site.model(pipeline))
        return os.fspath(weights.path_of(self._site.weights(pipeline), version))

    def gone(self, engine: EngineId) -> None:
        """Nothing of this incarnation lives."""
        self._controls.pop(engine, None)
        self._sglang.gone(engine)
        self._fronts.close(engine)
        self._site.ports.release(engine)


async def _or_exit(group: Group, control: EngineControl, limit: float, meanwhile: Callable[[], Coroutine[None, None, None]]) -> None:
    """Ready and able, or raises EngineError: at once when a member ends, at the deadline else. `meanwhile` runs until then."""
    failure: list[EngineError] = []
    async with anyio.create_task_group() as tasks:

        async def exit_first() -> None:
            failure.append(EngineError(f"ended before it was ready: {await group.exited()}"))
            tasks.cancel_scope.cancel()

        tasks.start_soon(exit_first)
        tasks.start_soon(meanwhile)
        try:
            await control.ready(limit)
            await control.canary(limit)
        except EngineError as error:  # not out of the task group, which would wrap it
            failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    await group.watch_tree()


def _gone_meanwhile(id: int) -> ActionFailed:
    return ActionFailed(id=id, reason="that life of the engine is over")
