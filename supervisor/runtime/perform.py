"""Carries out what the scheduler decides: each action becomes one event, whatever happens on the way."""

from collections.abc import Awaitable, Callable

from anyio import to_thread

from engines.control import EngineError
from supervisor.host.ports import NoPortFree
from supervisor.host.processes.child import SpawnFailed
from supervisor.runtime import model_recipe
from supervisor.runtime.context import Site
from supervisor.runtime.endpoints import Fronts
from supervisor.runtime.engines import Engines
from supervisor.runtime.gateways import Gateways
from supervisor.runtime.gpu_memory import Memory
from supervisor.runtime.group_lifecycle import Life
from supervisor.runtime.ranks import Ranks
from supervisor.scheduler import actions as do
from supervisor.scheduler.events import ActionFailed, CheckpointKept, Event, SnapshotAdopted, Told
from trainers import weights
from trainers.protocol.ids import EngineId, GatewayId, GroupId, PipelineId, TrainerId

Work = Callable[[], Awaitable[Event]]
CHILDS_FAULT = (SpawnFailed, NoPortFree, EngineError, weights.SnapshotError, OSError, TimeoutError)
"""What an action may fail with. Anything else is a bug of ours and ends the supervisor."""


class Performer:
    """`begin` is called in the order of the decisions and never waits; what takes time is returned to be run beside."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._layouts: dict[PipelineId, frozenset[str]] = {}
        fronts = Fronts()
        self.life = Life(site, self._gone)
        self.memory = Memory(site)
        self.ranks = Ranks(site, self.life)
        self.gateways = Gateways(site, self.life, fronts)
        self.engines = Engines(site, self.life, fronts)

    def begin(self, action: do.Action) -> Work | None:
        """What is left to do, or None when its event has been fed or will come from a child's descriptor."""
        match action:
            case do.TellTrainer():
                self._site.feed(self.ranks.tell(action))
                return None
            case do.Route() | do.Unroute() | do.Drain() | do.Lost() | do.OpenAtGateway() | do.CloseAtGateway():
                self._order(action)
                return None
            case do.ForgetAtGateway() | do.TellHopeless():
                self._order(action)
                return None
            case _:
                return lambda: self._guarded(action)

    def _order(self, action: do.GatewayOrder) -> None:
        if (refused := self.gateways.order(action)) is not None:
            self._site.feed(refused)

    async def _guarded(self, action: do.Action) -> Event:
        try:
            return await self._perform(action)
        except CHILDS_FAULT as error:
            code = "bad_snapshot" if isinstance(action, do.AdoptSnapshot) else "failed"
            return ActionFailed(id=action.id, reason=str(error) or type(error).__name__, code=code)

    async def _perform(self, action: do.Action) -> Event:
        match action:
            case do.PrepareModel():
                return await model_recipe.prepare(self._site, action)
            case do.StartGroup():
                return await self.engines.start(action)
            case do.StartTrainer():
                return await self.ranks.start(action)
            case do.StartGateway():
                return await self.gateways.start(action)
            case do.StopGroup():
                return await self.life.end(action)
            case do.Measure():
                return await self.memory.measure(action)
            case do.Pause():
                return await self.engines.pause(action)
            case do.Wake():
                return await self.engines.wake(action)
            case do.LoadWeights():
                return await self.engines.load(action)
            case do.AdoptSnapshot() | do.DropSnapshot():
                return await self._snapshot(action)
            case do.RecordCheckpoint(pipeline=pipeline, step=step, path=path):
                await to_thread.run_sync(self._site.checkpoints[pipeline].record, step, path)
                return CheckpointKept(id=action.id)
            case _:
                raise AssertionError(f"{action} is begun, not performed")

    async def _snapshot(self, action: do.AdoptSnapshot | do.DropSnapshot) -> Event:
        folder = self._site.weights(action.pipeline)
        if isinstance(action, do.DropSnapshot):
            await to_thread.run_sync(weights.drop, folder, action.version)
            return Told(id=action.id)
        layout = await self._layout(action.pipeline)
        path = await to_thread.run_sync(weights.adopt, folder, action.name, action.version, layout)
        if lacking := await to_thread.run_sync(weights.missing, path, layout):
            self._site.log.warning(
                "published weights lack tensors of the model; the engine keeps what it has for them",
                pipeline=action.pipeline, version=action.version, tensors=len(lacking), first=lacking[0],
            )  # fmt: skip
        await to_thread.run_sync(self._site.checkpoints[action.pipeline].published, action.version)
        self._site.published[action.pipeline] = action.version
        return SnapshotAdopted(id=action.id)

    async def _layout(self, pipeline: PipelineId) -> frozenset[str]:
        """Names of version 0's tensors, where the engine would skip others without a word."""
        if self._site.pipeline(pipeline).engine.kind != "sglang":
            return frozenset()
        if pipeline not in self._layouts:
            self._layouts[pipeline] = await to_thread.run_sync(weights.layout_of, self._site.model(pipeline))
        return self._layouts[pipeline]

    def _gone(self, group: GroupId) -> None:
        """What was kept for a group that has ended goes, too."""
        match group:
            case EngineId():
                self.engines.gone(group)
            case TrainerId():
                self.ranks.gone(group)
                weights.abandon(self._site.weights(group.pipeline))
            case GatewayId():
                self.gateways.gone(group)
