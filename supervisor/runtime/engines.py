"""The engine groups: started on ports of their own, seen ready and able, paused, woken and loaded through their control dialect."""

import os

import aiohttp
import anyio

from engines import launch
from engines.control import EngineControl, EngineError, new_session
from engines.ids import EngineId, Incarnation, PipelineId, Version
from supervisor.environment import choose
from supervisor.runtime.fronts import Front, Fronts
from supervisor.runtime.gpus import visible
from supervisor.runtime.life import Life
from supervisor.runtime.processes import Command, Group
from supervisor.runtime.site import CHECKOUT, Site
from supervisor.scheduler.actions import LoadWeights, Pause, StartGroup, Wake
from supervisor.scheduler.events import ActionFailed, GroupReady, Paused, Woken
from trainers import weights


class Engines:
    """Every engine of every pipeline. Use as an async context manager: it has an HTTP session."""

    def __init__(self, site: Site, life: Life, fronts: Fronts) -> None:
        self._site = site
        self._life = life
        self._fronts = fronts
        self._controls: dict[EngineId, tuple[Incarnation, EngineControl]] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Engines":
        self._session = new_session()
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
        front = self._fronts.open(engine, self._site.ports.reserve(engine, launch.WINDOW))
        control = EngineControl(front.url, front.key, self._session)
        limit = self._site.config.health.start_s

        async def ready(group: Group) -> None:
            await _or_exit(group, control, limit)

        group = await self._life.begin(engine, incarnation, self._commands(action, front), ready)
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        self._controls[engine] = (incarnation, control)
        return GroupReady(id=action.id, version=Version(0), pids=tuple(member.pid for member in group.members))

    def _commands(self, action: StartGroup, front: Front) -> list[Command]:
        """One for each member of the group, the head first."""
        spec = self._site.pipeline(action.engine.pipeline).engine
        members = launch.shape(spec.members, spec.tp)
        return [self._command(action, front, member, len(members)) for member in members]

    def _command(self, action: StartGroup, front: Front, member: launch.Member, count: int) -> Command:
        site, engine = self._site, action.engine
        spec = site.pipeline(engine.pipeline).engine
        bundle = site.bundle(engine)
        seen = visible([bundle[position] for position in member.gpus])
        env = {
            **choose("engine", site.environ, spec.pass_env, spec.env).kept,
            **seen.env,
            "PYTHONUNBUFFERED": "1",
            "TRAINSHED_API_KEY": front.key,
            "TRAINSHED_GPUS": ",".join(seen.devices),
            "TRAINSHED_RUN": str(site.directory.path),
            "TRAINSHED_TAG": site.tag(engine, action.incarnation),
        }
        if spec.kind == "embedded":
            argv = ["--model", str(site.model(engine.pipeline)), "--slots", str(spec.slots), "--context", str(spec.context)]
            argv += ["--host", "127.0.0.1", "--port", str(front.window.first), "--gpu", seen.devices[0], *spec.args]
            module: str | None = "engines.embedded"
            env["PYTHONPATH"] = str(CHECKOUT)
        else:
            assert spec.python is not None, "a rule refuses it"
            argv = [spec.python, "-m", "sglang.launch_server", "--model-path", str(site.model(engine.pipeline))]
            argv += launch.arguments(member, count, launch.Ports(front.window.first), tp=spec.tp, ep=spec.ep)
            argv += spec.args
            module = None
        log = site.directory.log_of(engine, member.index or None)
        return Command(argv=argv, module=module, env=env, cwd=site.directory.path, log=log)

    async def pause(self, action: Pause) -> Paused | ActionFailed:
        """Raises EngineError."""
        control = self._control(action.engine, action.incarnation)
        if control is None:
            return _gone_meanwhile(action.id)
        await control.pause(self._site.config.health.pause_s)
        return Paused(id=action.id)

    async def wake(self, action: Wake) -> Woken | ActionFailed:
        """Raises EngineError."""
        control = self._control(action.engine, action.incarnation)
        if control is None:
            return _gone_meanwhile(action.id)
        path = self._weights(action.engine.pipeline, action.version)
        return Woken(id=action.id, version=await control.wake(action.version, path, self._site.config.health.wake_s))

    async def load(self, action: LoadWeights) -> Woken | ActionFailed:
        """Raises EngineError."""
        control = self._control(action.engine, action.incarnation)
        if control is None:
            return _gone_meanwhile(action.id)
        path = self._weights(action.engine.pipeline, action.version)
        return Woken(id=action.id, version=await control.load(action.version, path, self._site.config.health.load_s))

    def _control(self, engine: EngineId, incarnation: Incarnation) -> EngineControl | None:
        known = self._controls.get(engine)
        return known[1] if known is not None and known[0] == incarnation else None

    def _weights(self, pipeline: PipelineId, version: Version) -> str:
        if version == 0:
            return str(self._site.model(pipeline))
        return os.fspath(weights.path_of(self._site.weights(pipeline), version))

    def gone(self, engine: EngineId) -> None:
        """Nothing of this incarnation lives."""
        self._controls.pop(engine, None)
        self._fronts.close(engine)
        self._site.ports.release(engine)


async def _or_exit(group: Group, control: EngineControl, limit: float) -> None:
    """Ready and able, or raises EngineError: at once when a member ends, at the deadline else."""
    failure: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def exit_first() -> None:
            failure.append(f"ended before it was ready: {await group.exited()}")
            tasks.cancel_scope.cancel()

        tasks.start_soon(exit_first)
        await control.ready(limit)
        await control.canary(limit)
        tasks.cancel_scope.cancel()
    if failure:
        raise EngineError(failure[0])
    await group.watch_tree()


def _gone_meanwhile(id: int) -> ActionFailed:
    return ActionFailed(id=id, reason="that life of the engine is over")
