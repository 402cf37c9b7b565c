"""Gateway processes are started on a listening socket that is ours and outlives them; they get orders over a channel, and report over it."""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

import anyio

from engines.gateway.core.attempts import PATIENCE
from supervisor.config.kinds.registry import kind_of
from supervisor.config.schema.tables import GatewayTable, HealthTable
from supervisor.host.channel import Channel, ChannelFailure
from supervisor.host.ports import Ports
from supervisor.host.processes.group import Command, Group
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import GroupLifecycle
from supervisor.runtime.kinds.engine_kind import Endpoint
from supervisor.runtime.run_facts import RunFacts
from supervisor.scheduler import actions as do
from supervisor.scheduler.events import ActionFailed, GatewayReady, GatewaySaid, Ordered, PeerFailed
from trainers.protocol.child_env import API_KEY, FD
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
"""Seconds from the end of its channel to the exit of a gateway that dies, at most."""


OtherOrder = do.Unroute | do.Drain | do.Lost | do.OpenAtGateway | do.CloseAtGateway | do.ForgetAtGateway | do.TellHopeless
"""Every `GatewayOrder` but `Route`, which also says where the engine listens."""


@dataclass(slots=True)
class _Gateway:
    incarnation: Incarnation
    channel: "Channel[Report]"
    ready: anyio.Event


def arguments(gateway: GatewayTable, health: HealthTable, refused: Iterable[str] = ()) -> list[str]:
    """Return the command-line arguments that `[pipeline.gateway]` and `[health]` mean. `refused`: sampling parameters that kill the engines."""
    made = ["--on-publish", gateway.on_publish, "--abort-patience", f"{min(PATIENCE, health.drain_s / 4):g}"]
    if gateway.max_version_lag is not None:
        made += ["--max-version-lag", str(gateway.max_version_lag)]
    if gateway.prefix_affinity:
        made += ["--prefix-slack", str(gateway.prefix_slack)]
    for flag, parser in (("--tool-parser", gateway.tool_parser), ("--reasoning-parser", gateway.reasoning_parser)):
        if parser is not None:
            made += [flag, parser]
    if not gateway.auth:
        made.append("--no-auth")
    for name in refused:
        made += ["--refuse", name]
    return made


class Listeners:
    """Holds the listening socket of each pipeline's gateway for the whole run, so that its URL never changes."""

    def __init__(self, sockets: Mapping[PipelineId, socket.socket]) -> None:
        self._sockets = sockets

    @classmethod
    def open(cls, ports: Ports, pipelines: Iterable[PipelineId]) -> "Listeners":
        """Open one socket for each pipeline. Raises OSError, NoPortFree; then none is open."""
        sockets: dict[PipelineId, socket.socket] = {}
        listeners = cls(sockets)
        try:
            for id in pipelines:
                port = ports.reserve(GatewayId(id), count=1).first
                sockets[id] = listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", port))
                listener.listen(1024)
        except BaseException:
            listeners.close()
            raise
        return listeners

    @property
    def urls(self) -> dict[PipelineId, str]:
        return {id: f"http://127.0.0.1:{listener.getsockname()[1]}" for id, listener in self._sockets.items()}

    def fileno(self, pipeline: PipelineId) -> int:
        return self._sockets[pipeline].fileno()

    def close(self) -> None:
        for listener in self._sockets.values():
            listener.close()


class Gateways:
    """Starts every pipeline's gateway, sends it orders, and feeds its reports to the scheduler."""

    def __init__(self, facts: RunFacts, lifecycle: GroupLifecycle, loop: Loop, listeners: Listeners) -> None:
        self._facts = facts
        self._lifecycle = lifecycle
        self._loop = loop
        self._listeners = listeners
        self._gateways: dict[PipelineId, _Gateway] = {}

    async def start(self, action: do.StartGateway) -> GatewayReady | ActionFailed:
        """Start the gateway and wait until it says that it is ready. Raises SpawnFailed."""
        id, incarnation = action.pipeline, action.incarnation
        ours, theirs = socket.socketpair()
        ready = anyio.Event()
        channel: Channel[Report] = Channel(
            ours, Report, lambda report: self._received(id, incarnation, report), lambda failure: self._failed(id, incarnation, failure)
        )
        self._gateways[id] = _Gateway(incarnation, channel, ready)
        self._lifecycle.when_gone(GatewayId(id), lambda: self._close(id))
        self._loop.spawn_task(channel.run, name=f"channel {id}/gateway")

        async def is_ready(_group: Group) -> None:
            await ready.wait()

        try:
            group = await self._lifecycle.begin(GatewayId(id), incarnation, [self._command(action, theirs.fileno())], is_ready)
        finally:
            theirs.close()
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        return GatewayReady(id=action.id, pids=tuple(member.pid for member in group.members))

    def _close(self, pipeline: PipelineId) -> None:
        """Close the channel of an incarnation that has ended; the listening socket stays."""
        if (gateway := self._gateways.pop(pipeline, None)) is not None:
            gateway.channel.close()

    def _command(self, action: do.StartGateway, descriptor: int) -> Command:
        id, paths, environment, pipelines = action.pipeline, self._facts.paths, self._facts.environment, self._facts.pipelines
        listener, table = self._listeners.fileno(id), pipelines.table(id)
        key = {API_KEY: pipelines.keys[id]} if id in pipelines.keys else {}
        ours = {FD: str(descriptor), **key}
        env = environment.complete(environment.inherited("gateway").kept, paths.tag(GatewayId(id), action.incarnation), ours=ours)
        who = ["--pipeline", id, "--listen-fd", str(listener), "--seed", str(table.seed), "--model", str(paths.model(table))]
        if table.engine.context is not None:
            who += ["--context", str(table.engine.context)]
        return Command(
            argv=[*who, *arguments(table.gateway, pipelines.config.health, kind_of(table.engine).refused_parameters(table.engine))],
            module="engines.gateway",
            env=env,
            cwd=paths.directory.path,
            log=paths.directory.log_of(GatewayId(id)),
            pass_fds=(descriptor, listener),
        )

    def route(self, action: do.Route, endpoint: Endpoint) -> Ordered | None:
        """Queue the order that lets requests go to this endpoint. Answers as `order` does."""
        id, engine = action.id, action.engine
        route = Route(
            order=id,
            engine=engine.rank,
            incarnation=action.incarnation,
            url=endpoint.url,
            key=endpoint.key,
            slots=endpoint.slots,
            version=action.version,
        )
        return self._send(engine.pipeline, route)

    def order(self, action: OtherOrder) -> Ordered | None:
        """Queue the order; orders keep the sequence of the calls. Returns None when the gateway's `Done` will answer, an answer when there is no gateway."""
        match action:
            case do.Unroute(id=id, engine=engine, incarnation=incarnation, published=published):
                return self._send(engine.pipeline, Unroute(id, engine.rank, incarnation, published))
            case do.Drain(id=id, engine=engine, incarnation=incarnation):
                return self._send(engine.pipeline, Drain(id, engine.rank, incarnation))
            case do.Lost(id=id, engine=engine, incarnation=incarnation):
                return self._send(engine.pipeline, Lost(id, engine.rank, incarnation))
            case do.OpenAtGateway(id=id, pipeline=pipeline, rollout=rollout, target=target):
                return self._send(pipeline, OpenRollout(id, rollout, target))
            case do.CloseAtGateway(id=id, pipeline=pipeline, rollout=rollout):
                return self._send(pipeline, CloseRollout(id, rollout))
            case do.ForgetAtGateway(id=id, pipeline=pipeline):
                return self._send(pipeline, Forget(id))
            case do.TellHopeless(id=id, pipeline=pipeline, reason=reason):
                return self._send(pipeline, Hopeless(id, reason))
            case _:
                assert_never(action)

    def _send(self, pipeline: PipelineId, order: Order) -> Ordered | None:
        gateway = self._gateways.get(pipeline)
        if gateway is None:
            return Ordered(id=order.order, error="there is no gateway")
        gateway.channel.send(order)
        return None

    def _received(self, id: PipelineId, incarnation: Incarnation, report: Report) -> None:
        match report:
            case Ready():
                self._gateways[id].ready.set()
            case Done(order=order, error=error):
                self._loop.feed(Ordered(id=order, error=error))
            case Progress():
                self._loop.feed(GatewaySaid(pipeline=id, incarnation=incarnation, progress=report))
            case _:
                assert_never(report)

    def _failed(self, id: PipelineId, incarnation: Incarnation, failure: ChannelFailure) -> None:
        live = self._lifecycle.live(GatewayId(id))
        event = PeerFailed(group=GatewayId(id), incarnation=incarnation, reason=str(failure))
        if live is None:
            self._loop.feed(event)
        elif not live.stopping:
            self._loop.spawn_task(self._unless_it_ends, live.group, event, name=f"{id}/gateway closed its end")

    async def _unless_it_ends(self, group: Group, event: PeerFailed) -> None:
        """Feed the event unless the gateway ends soon: a death closes its descriptors a moment before it can be seen, and its exit says more."""
        with anyio.move_on_after(EXIT_SECONDS):
            await group.ended()
            return
        self._loop.feed(event)
