"""`Changes` compares the scheduler with what it was before an event, and gives the facts of that event.

It looks at records and changes none. It is asked after every event of a run, so it compares cheap keys first and makes words only of what is new.
"""

from supervisor.observe.waiting_reasons import trainer_waits_for
from supervisor.scheduler import Scheduler
from supervisor.scheduler.events import Event, OperatorAsked, Stop, TrainerSaid
from supervisor.scheduler.leases import Lease, LeaseBook
from supervisor.scheduler.records import Engine, Pipeline, Trainer, TrainerState
from supervisor.scheduler.spec import BoxSpec
from trainers.protocol.ids import EngineId, GpuId, PipelineId
from trainers.protocol.trainer_messages import Checkpoint, Report

from .facts import (
    TRAINER,
    Asked,
    BoxIs,
    Checkpointed,
    Demand,
    EngineIs,
    EnginesOf,
    Fact,
    FaultChanged,
    GatewayIs,
    GpuLent,
    GpuWithheld,
    Noted,
    Party,
    PipelineOf,
    PublishedIs,
    Reported,
    StopAsked,
    TrainerIs,
    Waited,
    WaitKind,
    Waits,
)

SAMPLED_S = 1.0
"""Counts of a rollout are written so often at most, while nothing else of it changes."""
LONGEST_NOTE = 300
"""Characters of a sentence that a fact bears; the event beside it has the whole."""


def box_of(box: BoxSpec) -> BoxIs:
    """Return what the history must know of a box."""
    pipelines = (
        PipelineOf(
            spec.id,
            EnginesOf(spec.engine.gpus, spec.engine.tp, spec.engine.slots),
            {r: tuple(g) for r, g in spec.trainer.roles.items()},
            spec.steps,
        )
        for spec in box.pipelines
    )
    return BoxIs(tuple(box.gpus), tuple(pipelines))


class _Flow:
    """What flows through one pipeline: counts of its rollouts, and sums over this life of the supervisor."""

    __slots__ = ("at", "in_flight", "said", "said_at", "tokens", "tokens_of", "work")

    def __init__(self) -> None:
        self.at = self.work = 0.0
        self.in_flight = self.tokens = 0
        self.tokens_of: dict[int, int] = {}
        self.said: Demand | None = None
        self.said_at = 0.0

    def look(self, pipeline: Pipeline, now: float) -> Demand:
        """Add up since the last look, and return how it stands."""
        self.work += self.in_flight * max(0.0, now - self.at)
        self.at = now
        for rank, engine in pipeline.engines.items():
            made = engine.life.load.tokens
            before = self.tokens_of.get(rank, 0)
            if made != before:
                self.tokens += made - before if made > before else made  # a route that is set anew counts from 0
                self.tokens_of[rank] = made
        target = done = waiting = in_flight = 0
        for rollout in pipeline.rollouts.values():
            target += rollout.target
            done += rollout.before + rollout.done
            waiting += rollout.waiting
            in_flight += rollout.in_flight
        self.in_flight = in_flight
        samples = pipeline.figures.samples
        return Demand(pipeline.id, pipeline.step, target, done, waiting, in_flight, self.tokens, round(self.work, 4), samples)

    def worth_saying(self, demand: Demand, now: float) -> bool:
        said = self.said
        if said is None:
            return True
        if (said.step, said.target, said.in_flight > 0, said.waiting > 0) != (
            demand.step, demand.target, demand.in_flight > 0, demand.waiting > 0,
        ):  # fmt: skip
            return True
        return now >= self.said_at + SAMPLED_S and (said.done, said.waiting, said.in_flight, said.tokens, said.samples) != (
            demand.done, demand.waiting, demand.in_flight, demand.tokens, demand.samples,
        )  # fmt: skip


class Changes:
    """What the scheduler was after the event before. One is made for each life of a supervisor."""

    def __init__(self) -> None:
        self._engines: dict[EngineId, tuple[object, ...]] = {}
        self._leases: dict[GpuId, GpuLent] = {}
        self._fences: dict[GpuId, str] = {}
        self._trainers: dict[PipelineId, tuple[object, ...]] = {}
        self._gateways: dict[PipelineId, tuple[object, ...]] = {}
        self._waits: dict[tuple[PipelineId, str], Waits] = {}
        self._versions: dict[PipelineId, int] = {}
        self._waited: dict[PipelineId, float] = {}
        self._flows: dict[PipelineId, _Flow] = {}
        self._whole = True  # the next facts say all that holds

    def tell_whole(self) -> None:
        """Say all that holds after the next event: a segment begins, and a reader may begin with it."""
        self._whole = True
        for known in (self._engines, self._leases, self._trainers, self._gateways, self._versions):
            known.clear()
        for flow in self._flows.values():
            flow.said = None

    def after(self, event: Event, scheduler: Scheduler, now: float) -> list[Fact]:
        """Return what this event has changed. To be asked after `handle`, with the same `now`."""
        facts: list[Fact] = []
        if self._whole:
            facts.append(box_of(scheduler.box))
        _said(event, facts)
        moved = len(facts)
        self._compare_gpus(scheduler, facts)
        for pipeline in scheduler.pipelines.values():
            self._compare_groups(pipeline, facts)
        moves = len(facts) > moved
        for pipeline in scheduler.pipelines.values():
            self._compare_waits(pipeline, scheduler.leases, now, facts, moves=moves)
            self._compare_flow(pipeline, now, facts)
        for change, fault in scheduler.fault_changes:
            id, seconds = fault.engine, fault.seconds if change != "failed" else {}
            facts.append(FaultChanged(id.pipeline, id.rank, change, fault.cause.value, _short(fault.reason), fault.attempt, seconds))
        for level, about, what in scheduler.notes:
            facts.append(Noted(level, f"GPU {about}" if isinstance(about, int) else str(about), _short(what)))
        self._whole = False
        return facts

    def _compare_gpus(self, scheduler: Scheduler, facts: list[Fact]) -> None:
        leases, trainers = scheduler.leases, scheduler.pipelines
        for gpu in leases.gpus:
            lease = leases.lease(gpu)
            lent = _lent(gpu, lease, trainers[lease.holder.pipeline].trainer if lease is not None else None)
            if self._leases.get(gpu) != lent:
                self._leases[gpu] = lent
                facts.append(lent)
            fence = leases.fenced(gpu) or ""
            if self._fences.get(gpu, "") != fence or (self._whole and fence):
                facts.append(GpuWithheld(gpu, _short(fence)))
            self._fences[gpu] = fence

    def _compare_groups(self, pipeline: Pipeline, facts: list[Fact]) -> None:
        id = pipeline.id
        for rank, engine in pipeline.engines.items():
            life = engine.life
            key = (engine.state, life.incarnation, life.version, life.load.in_flight > 0)
            if self._engines.get(engine.id) != key:
                self._engines[engine.id] = key
                facts.append(EngineIs(id, rank, engine.state.value, life.incarnation, life.version, life.load.in_flight > 0))
        trainer, gateway = pipeline.trainer, pipeline.gateway
        key = (trainer.state, trainer.incarnation)
        if self._trainers.get(id) != key:
            self._trainers[id] = key
            facts.append(TrainerIs(id, trainer.state.value, trainer.incarnation, _short(trainer.note)))
        key = (gateway.state, gateway.incarnation)
        if self._gateways.get(id) != key:
            self._gateways[id] = key
            facts.append(GatewayIs(id, gateway.state, gateway.incarnation, _short(gateway.note)))
        if self._versions.get(id) != pipeline.published:
            self._versions[id] = pipeline.published
            facts.append(PublishedIs(id, pipeline.published))

    def _compare_waits(self, pipeline: Pipeline, leases: LeaseBook, now: float, facts: list[Fact], *, moves: bool) -> None:
        since = pipeline.figures.waits_since
        counted = self._waited.get(pipeline.id, 0.0)
        kind: WaitKind
        for kind in ("lease", "rollout"):
            key = (pipeline.id, kind)
            known, began = self._waits.get(key), since.get(kind)
            if known is not None and began != known.since:
                del self._waits[key]
                got = pipeline.figures.waited > counted or (now == known.since and _has(pipeline, kind))
                facts.append(Waited(pipeline.id, kind, got))
                known = None
            if began is not None and (known is None or moves):
                whom = _whom(pipeline, leases, kind)
                if known is None or whom != known.whom or self._whole:
                    wait = Waits(pipeline.id, kind, began, _short(_why(pipeline, leases, kind, now)), whom)
                    self._waits[key] = wait
                    facts.append(wait)
        self._waited[pipeline.id] = pipeline.figures.waited

    def _compare_flow(self, pipeline: Pipeline, now: float, facts: list[Fact]) -> None:
        flow = self._flows.get(pipeline.id)
        if flow is None:
            flow = self._flows[pipeline.id] = _Flow()
        demand = flow.look(pipeline, now)
        if flow.worth_saying(demand, now):
            flow.said, flow.said_at = demand, now
            facts.append(demand)


def _said(event: Event, facts: list[Fact]) -> None:
    """Add what an event says by itself, whatever came of it."""
    match event:
        case TrainerSaid(pipeline=pipeline, message=Report(step=step, metrics=metrics)):
            facts.append(Reported(pipeline, step, dict(metrics)))
        case TrainerSaid(pipeline=pipeline, message=Checkpoint(step=step)):
            facts.append(Checkpointed(pipeline, step + 1))
        case OperatorAsked(verb=verb, pipeline=pipeline, rank=rank, part=part, uid=uid):
            facts.append(
                Asked(verb, str(EngineId(pipeline, rank)) if rank is not None else f"{pipeline}/{part}" if part else pipeline, uid)
            )
        case Stop(level=level, why=why, uid=uid):
            facts.append(StopAsked(level, why, uid))
        case _:
            pass


def _lent(gpu: GpuId, lease: Lease | None, trainer: Trainer | None) -> GpuLent:
    if lease is None:
        return GpuLent(gpu)
    holder = lease.holder
    if isinstance(holder, EngineId):
        return GpuLent(gpu, holder.pipeline, holder.rank)
    grant = trainer.grant if trainer is not None else None
    if grant is None or trainer is None or trainer.state not in (TrainerState.STARTING, TrainerState.RUNNING):
        return GpuLent(gpu, holder.pipeline, leaving=True)
    leaving = grant.leaving is not None or gpu in grant.leaving_gpus
    return GpuLent(gpu, holder.pipeline, role="+".join(grant.roles), leaving=leaving)


def _has(pipeline: Pipeline, kind: WaitKind) -> bool:
    """Return whether the trainer has what it asked for: a wait of no time leaves no trace in the figures."""
    if kind == "lease":
        return pipeline.trainer.grant is not None
    return any(rollout.announced for rollout in pipeline.rollouts.values())


def _whom(pipeline: Pipeline, leases: LeaseBook, kind: WaitKind) -> tuple[Party, ...]:
    """Return the groups that have what the trainer waits for; its own engine, while one is on its way; nobody, for what is fenced or cold."""
    request = pipeline.trainer.request
    gpus: set[GpuId] = set()
    if kind == "lease":
        gpus.update(request.gpus if request is not None else ())
    elif coming := [engine for engine in pipeline.engines.values() if _comes(engine)]:
        return tuple(Party(pipeline.id, engine.id.rank) for engine in coming)
    else:
        gpus.update(gpu for engine in pipeline.engines.values() if not engine.held for gpu in engine.gpus)
    holders = {lease.holder for gpu in gpus if (lease := leases.lease(gpu)) is not None and lease.holder != pipeline.trainer.id}
    parties = {Party(holder.pipeline, holder.rank if isinstance(holder, EngineId) else TRAINER) for holder in holders}
    return tuple(sorted(parties, key=str))


def _comes(engine: Engine) -> bool:
    return engine.awake and not engine.held


def _why(pipeline: Pipeline, leases: LeaseBook, kind: WaitKind, now: float) -> str:
    if kind == "rollout" and pipeline.trainer.request is not None:
        return "an engine"  # both are waited for; the words are of the lease
    return trainer_waits_for(pipeline, leases, now) or ("a lease" if kind == "lease" else "an engine")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NOTE else text[: LONGEST_NOTE - 1] + "…"
