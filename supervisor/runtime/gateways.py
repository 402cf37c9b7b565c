"""The gateway processes: started on a listening socket that is ours and outlives them, ordered about, listened to."""

import socket
from dataclasses import dataclass
from typing import Final

import anyio

from engines.gateway.core.attempts import PATIENCE
from supervisor.config.child_environment import choose
from supervisor.config.schema.tables import GatewayTable, HealthTable
from supervisor.host.channel import Channel, ChannelFailure
from supervisor.host.processes.group import Command, Group
from supervisor.runtime.context import Site
from supervisor.runtime.endpoints import Fronts
from supervisor.runtime.group_lifecycle import Life
from supervisor.scheduler import actions as do
from supervisor.scheduler.events import ActionFailed, GatewayReady, GatewaySaid, Ordered, PeerFailed
from trainers.protocol.child_env import OUR_PATH
from trainers.protocol.gateway_messages import (
    CloseRollout,
    Done,
    Drain,
    Forget,
    Hopeless,
    Lost,
    OpenRollout,
    Order,
    Progress,
    Ready,
    Report,
    Route,
    Unroute,
)
from trainers.protocol.ids import GatewayId, Incarnation, PipelineId

EXIT_SECONDS: Final = 1.0
"""From the end of its channel to the end of a gateway that dies."""


@dataclass(slots=True)
class _Gateway:
    incarnation: Incarnation
    channel: "Channel[Report]"
    ready: anyio.Event


def arguments(gateway: GatewayTable, health: HealthTable) -> list[str]:
    """Arguments for `[pipeline.gateway]`, and what `[health]` has to say."""
    made = ["--on-publish", gateway.on_publish, "--abort-patience", f"{min(PATIENCE, health.drain_s / 4):g}"]
    if gateway.max_version_lag is not None:
        made += ["--max-version-lag", str(gateway.max_version_lag)]
    if gateway.prefix_affinity:
        made += ["--prefix-slack", str(gateway.prefix_slack)]
    return made


class Gateways:
    """Every pipeline's gateway. `fronts` knows where an engine of this life listens."""

    def __init__(self, site: Site, life: Life, fronts: Fronts) -> None:
        self._site = site
        self._life = life
        self._fronts = fronts
        self._gateways: dict[PipelineId, _Gateway] = {}
        self._listeners: dict[PipelineId, socket.socket] = {}

    def open_listeners(self) -> None:
        """One listening socket a pipeline, for the whole run: a URL that never changes. Raises OSError, NoPortFree."""
        for pipeline in self._site.config.pipeline:
            id = PipelineId(pipeline.name)
            port = self._site.ports.reserve(GatewayId(id), count=1).first
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
            self._listeners[id] = listener
            self._site.urls[id] = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()

    async def start(self, action: do.StartGateway) -> GatewayReady | ActionFailed:
        """Raises SpawnFailed."""
        id, incarnation = action.pipeline, action.incarnation
        ours, theirs = socket.socketpair()
        ready = anyio.Event()
        channel: Channel[Report] = Channel(
            ours, Report, lambda report: self._heard(id, incarnation, report), lambda failure: self._failed(id, incarnation, failure)
        )
        self._gateways[id] = _Gateway(incarnation, channel, ready)
        self._site.spawn_task(channel.run, name=f"channel {id}/gateway")

        async def is_ready(_group: Group) -> None:
            await ready.wait()

        try:
            group = await self._life.begin(GatewayId(id), incarnation, [self._command(action, theirs.fileno())], is_ready)
        finally:
            theirs.close()
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        return GatewayReady(id=action.id, pids=tuple(member.pid for member in group.members))

    def _command(self, action: do.StartGateway, descriptor: int) -> Command:
        site, id = self._site, action.pipeline
        listener = self._listeners[id].fileno()
        env = {
            **choose("gateway", site.environ).kept,
            "PYTHONPATH": OUR_PATH,
            "PYTHONUNBUFFERED": "1",
            "TRAINSHED_FD": str(descriptor),
            "TRAINSHED_RUN": str(site.directory.path),
            "TRAINSHED_TAG": site.tag(GatewayId(id), action.incarnation),
        }
        pipeline = site.pipeline(id)
        who = ["--pipeline", id, "--listen-fd", str(listener), "--seed", str(pipeline.seed), "--model", str(site.model(id))]
        return Command(
            argv=[*who, *arguments(pipeline.gateway, self._site.config.health)],
            module="engines.gateway",
            env=env,
            cwd=site.directory.path,
            log=site.directory.log_of(GatewayId(id)),
            pass_fds=(descriptor, listener),
        )

    def order(self, action: do.GatewayOrder) -> Ordered | None:
        """Queue the order, in the order of the calls. None: its `Done` will come. An answer at once: there is no gateway to ask."""
        pipeline = action.engine.pipeline if isinstance(action, do.Route | do.Unroute | do.Drain | do.Lost) else action.pipeline
        gateway = self._gateways.get(pipeline)
        if gateway is None:
            return Ordered(id=action.id, error="there is no gateway")
        gateway.channel.send(self._order(action))
        return None

    def _order(self, action: do.GatewayOrder) -> Order:
        match action:
            case do.Route(engine=engine, incarnation=incarnation, version=version):
                front = self._fronts.of(engine)
                slots = self._site.pipeline(engine.pipeline).engine.slots
                return Route(
                    order=action.id, engine=engine.rank, incarnation=incarnation, url=front.url, key=front.key, slots=slots, version=version
                )
            case do.Unroute(engine=engine, incarnation=incarnation, published=published):
                return Unroute(action.id, engine.rank, incarnation, published)
            case do.Drain(engine=engine, incarnation=incarnation):
                return Drain(action.id, engine.rank, incarnation)
            case do.Lost(engine=engine, incarnation=incarnation):
                return Lost(action.id, engine.rank, incarnation)
            case do.OpenAtGateway(rollout=rollout, target=target):
                return OpenRollout(action.id, rollout, target)
            case do.CloseAtGateway(rollout=rollout):
                return CloseRollout(action.id, rollout)
            case do.ForgetAtGateway():
                return Forget(action.id)
            case do.TellHopeless(reason=reason):
                return Hopeless(action.id, reason)

    def _heard(self, id: PipelineId, incarnation: Incarnation, report: Report) -> None:
        match report:
            case Ready():
                self._gateways[id].ready.set()
            case Done(order=order, error=error):
                self._site.feed(Ordered(id=order, error=error))
            case Progress():
                self._site.feed(GatewaySaid(pipeline=id, incarnation=incarnation, progress=report))

    def _failed(self, id: PipelineId, incarnation: Incarnation, failure: ChannelFailure) -> None:
        living = self._site.living.get(GatewayId(id))
        told = PeerFailed(group=GatewayId(id), incarnation=incarnation, reason=str(failure))
        if living is None:
            self._site.feed(told)
        elif not living.stopping:
            self._site.spawn_task(self._unless_it_ends, living.group, told, name=f"{id}/gateway closed its end")

    async def _unless_it_ends(self, group: Group, told: PeerFailed) -> None:
        """A death closes descriptors, too, a moment before it can be seen; its exit, which is watched, says more."""
        with anyio.move_on_after(EXIT_SECONDS):
            await group.ended()
            return
        self._site.feed(told)

    def gone(self, gateway: GatewayId) -> None:
        """Nothing of this incarnation lives; the listening socket stays."""
        if (record := self._gateways.pop(gateway.pipeline, None)) is not None:
            record.channel.close()
