"""`History` folds the facts of a recording into lanes, waits, series and marks. It is fed in the order of the recording, and can be looked at any time."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from .facts import (
    TRAINER,
    Asked,
    BoxIs,
    Checkpointed,
    Demand,
    EngineIs,
    Fact,
    FaultChanged,
    GatewayIs,
    GpuLent,
    GpuWithheld,
    Noted,
    Party,
    PublishedIs,
    Reported,
    StopAsked,
    TrainerIs,
    Waited,
    Waits,
)
from .lanes import OFF, Doing, Lane
from .records import EngineNow, Figure, Life, Mark, PipelineHistory, Wait

_ENGINE_KIND: Final = {"starting": "start", "loading weights": "weights", "quarantined": "failed", "stuck": "failed"}
"""What a GPU does whose engine is in this state; in every other but serving, it passes from one holder to the next."""
_ENDED: Final = frozenset(["finished", "retired", "stopping"])
"""States of a trainer whose pipeline has ended, or is being ended."""
UNMEASURED: Final = "not measured yet"
"""The reason of a fence at the start: the GPU has not been measured. It is a part of the start."""


class History:
    """The history of one attempt, over all lives of its supervisor."""

    def __init__(self) -> None:
        self.began_at = 0.0
        """When it began, in seconds since the epoch; 0 when the recording does not say."""
        self.until = 0.0
        """The last moment that is known, in seconds since it began."""
        self.lives: list[Life] = []
        self.gpus: dict[int, Lane] = {}
        self.pipelines: dict[str, PipelineHistory] = {}
        self.waits: list[Wait] = []
        self.marks: list[Mark] = []
        self.lent: dict[int, GpuLent] = {}
        self.withheld: dict[int, str] = {}
        self.open_waits: dict[tuple[str, str], Wait] = {}
        self.facts = 0
        self._offset: float | None = None  # from the clock of the events to seconds since it began
        self._take: dict[type, Callable[[Any, float], None]] = {
            BoxIs: self._box, EngineIs: self._engine, GpuLent: self._lent, GpuWithheld: self._withheld_gpu, TrainerIs: self._trainer,
            GatewayIs: self._gateway, Waits: self._waits, Waited: self._waited, Demand: self._demand, PublishedIs: self._published,
            Reported: self._reported, Checkpointed: self._checkpointed, FaultChanged: self._fault, Noted: self._noted, Asked: self._asked,
            StopAsked: self._stop,
        }  # fmt: skip
        self._dirty_gpus: set[int] = set()
        self._dirty: set[str] = set()

    # -- what is fed

    def opened(self, at: float, wall: float, *, life: bool) -> None:
        """A segment begins, with a `life` of a supervisor or within one. `wall`: seconds since the epoch, 0 when the recording does not say."""
        if life and self._offset is not None:
            self._life_over("killed", "")
        if self._offset is None:
            begin = self.until
            if wall and self.began_at:
                begin = max(begin, wall - self.began_at)
            elif wall and not self.lives:
                self.began_at = wall
            self._offset = begin - at
            self.lives.append(Life(begin, begin))
            self._mark(begin, "life", "info", "", "the supervisor starts" if life or len(self.lives) > 1 else "what was before is not kept")
        self._pass(at)

    def changed(self, at: float, facts: Iterable[Fact]) -> None:
        """An event at `at` has changed this."""
        now = self._pass(at)
        take = self._take
        for fact in facts:
            self.facts += 1
            take[type(fact)](fact, now)
        if self._dirty_gpus:
            for gpu in self._dirty_gpus:
                self.gpus[gpu].set(now, self._gpu_doing(gpu))
            self._dirty_gpus.clear()
        if self._dirty:
            for name in self._dirty:
                self.pipelines[name].lane.set(now, self._pipeline_doing(self.pipelines[name]))
            self._dirty.clear()

    def closed(self, at: float, why: str) -> None:
        """The supervisor has ended in order."""
        self._pass(at)
        self._life_over("ended", why)

    def stands(self, now: float, *, running: bool) -> None:
        """It is known whether a supervisor runs. `now`: seconds since the epoch; a live run's lanes go on until then."""
        if not self.lives or self.lives[-1].how != "runs":
            return
        if not running:
            self._life_over("killed", "")
        elif self.began_at:
            self.until = max(self.until, now - self.began_at)
            self.lives[-1].end = self.until

    @property
    def running(self) -> bool:
        return bool(self.lives) and self.lives[-1].how == "runs"

    # -- time

    def _pass(self, at: float) -> float:
        now = max(self.until, at + (self._offset or 0.0))
        self.until = now
        if self.lives:
            self.lives[-1].end = now
        return now

    def _life_over(self, how: str, why: str) -> None:
        now, life = self.until, self.lives[-1]
        life.how, life.why, life.end = how, why, now
        self._offset = None
        for lane in self.gpus.values():
            lane.set(now, OFF)
        for pipeline in self.pipelines.values():
            pipeline.lane.set(now, OFF)
            pipeline.engines = {rank: EngineNow(since=now) for rank in pipeline.engines}
            counts = pipeline.counts
            pipeline.before = (counts.tokens[-1], pipeline.work, counts.samples[-1]) if counts.times else pipeline.before
            pipeline.trainer, pipeline.trainer_since, pipeline.demand = "cold", now, None
        for wait in self.open_waits.values():
            wait.end = now
        self.open_waits.clear()
        self.lent.clear()
        self.withheld.clear()
        text = f"the supervisor has ended{': ' + why if why else ''}" if how == "ended" else "the supervisor was killed or crashed"
        self._mark(now, "life", "info" if how == "ended" else "error", "", text)

    def _mark(self, at: float, kind: str, level: str, about: str, text: str) -> None:
        self.marks.append(Mark(at, kind, level, about, text))

    # -- facts

    def _box(self, fact: BoxIs, now: float) -> None:
        for gpu in fact.gpus:
            if gpu not in self.gpus:
                lane = self.gpus[gpu] = Lane(0.0)
                lane.set(self.lives[-1].begin if self.lives else 0.0, Doing("start", "", UNMEASURED))
            self._dirty_gpus.add(gpu)
        for of in fact.pipelines:
            known = self.pipelines.get(of.name)
            if known is None:
                lane = Lane(0.0)
                lane.set(self.lives[-1].begin if self.lives else 0.0, Doing("start"))
                known = self.pipelines[of.name] = PipelineHistory(of, lane)
            known.of = of
            for rank in range(len(of.engines.gpus) // of.engines.tp):
                known.engines.setdefault(rank, EngineNow(since=now))
            self._dirty.add(of.name)

    def _engine(self, fact: EngineIs, now: float) -> None:
        pipeline = self.pipelines[fact.pipeline]
        engine = pipeline.engines.setdefault(fact.rank, EngineNow(since=now))
        if engine.state != fact.state:
            engine.state, engine.since = fact.state, now
        engine.incarnation, engine.version, engine.busy = fact.incarnation, fact.version, fact.busy
        engines = pipeline.of.engines
        self._dirty_gpus.update(engines.gpus[fact.rank * engines.tp : (fact.rank + 1) * engines.tp])

    def _lent(self, fact: GpuLent, now: float) -> None:
        before = self.lent.get(fact.gpu)
        self.lent[fact.gpu] = fact
        self._dirty_gpus.add(fact.gpu)
        for lent in (before, fact):
            if lent is not None and lent.pipeline and lent.rank == TRAINER:
                self._dirty.add(lent.pipeline)

    def _withheld_gpu(self, fact: GpuWithheld, now: float) -> None:
        if fact.reason:
            self.withheld[fact.gpu] = fact.reason
        else:
            self.withheld.pop(fact.gpu, None)
        self._dirty_gpus.add(fact.gpu)

    def _trainer(self, fact: TrainerIs, now: float) -> None:
        pipeline = self.pipelines[fact.pipeline]
        if pipeline.trainer != fact.state:
            if fact.state == "quarantined":
                pipeline.failures += 1
                self._mark(now, "failed", "error", f"{fact.pipeline}/trainer", fact.note)
            elif fact.state == "running" and pipeline.failures:
                self._mark(now, "recovered", "info", f"{fact.pipeline}/trainer", "it runs again")
            elif fact.state == "retired":
                self._mark(now, "failed", "error", f"{fact.pipeline}/trainer", f"retired: {fact.note}")
            pipeline.trainer, pipeline.trainer_since = fact.state, now
        self._dirty.add(fact.pipeline)

    def _gateway(self, fact: GatewayIs, now: float) -> None:
        pipeline = self.pipelines[fact.pipeline]
        if fact.state != pipeline.gateway:
            if fact.state == "failed" and pipeline.trainer not in _ENDED:
                self._mark(now, "failed", "error", f"{fact.pipeline}/gateway", fact.note)
            elif fact.state == "serving" and fact.incarnation > 1:
                self._mark(now, "recovered", "info", f"{fact.pipeline}/gateway", "it serves again")
        pipeline.gateway = fact.state

    def _waits(self, fact: Waits, now: float) -> None:
        key, begin = (fact.pipeline, fact.what), max(0.0, min(now, fact.since + (self._offset or 0.0)))
        wait = self.open_waits.get(key)
        if wait is None or abs(wait.begin - begin) > 1e-6:
            if wait is not None:
                wait.end = now
            wait = self.open_waits[key] = Wait(fact.pipeline, fact.what, begin, fact.why, fact.whom)
            self.waits.append(wait)
        wait.why, wait.whom = fact.why, fact.whom or wait.whom
        self._dirty.add(fact.pipeline)

    def _waited(self, fact: Waited, now: float) -> None:
        wait = self.open_waits.pop((fact.pipeline, fact.what), None)
        if wait is not None:
            wait.end, wait.got = now, fact.got
        self._dirty.add(fact.pipeline)

    def _demand(self, fact: Demand, now: float) -> None:
        pipeline = self.pipelines[fact.pipeline]
        tokens, work, samples = pipeline.before
        before = pipeline.demand
        pipeline.demand, pipeline.step, pipeline.work = fact, max(fact.step, pipeline.steps_done), work + fact.work
        counts = pipeline.counts
        counts.times.append(now)
        counts.done.append(fact.done)
        counts.target.append(fact.target)
        counts.waiting.append(fact.waiting)
        counts.in_flight.append(fact.in_flight)
        counts.tokens.append(tokens + fact.tokens)
        counts.samples.append(samples + fact.samples)
        if before is None or (before.in_flight > 0, before.waiting > 0) != (fact.in_flight > 0, fact.waiting > 0):
            self._dirty.add(fact.pipeline)

    def _published(self, fact: PublishedIs, now: float) -> None:
        versions = self.pipelines[fact.pipeline].versions
        if not versions or versions[-1][1] != fact.version:
            versions.append((now, fact.version))

    def _reported(self, fact: Reported, now: float) -> None:
        figures = self.pipelines[fact.pipeline].figures
        for name, value in fact.metrics.items():
            figure = figures.get(name)
            if figure is None:
                figure = figures[name] = Figure()
            figure.times.append(now)
            figure.steps.append(fact.step)
            figure.values.append(value)

    def _checkpointed(self, fact: Checkpointed, now: float) -> None:
        pipeline = self.pipelines[fact.pipeline]
        pipeline.steps_done = max(pipeline.steps_done, fact.steps_done)

    def _fault(self, fact: FaultChanged, now: float) -> None:
        about = f"{fact.pipeline}/engine/{fact.rank}"
        if fact.change == "failed":
            level = "warning" if fact.cause == "operator" else "error"
            again = f" (attempt {fact.attempt})" if fact.attempt > 1 else ""
            self._mark(now, "failed", level, about, f"{fact.cause}{again}: {fact.reason}")
        else:
            steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in fact.seconds.items())
            self._mark(now, "recovered", "info", about, f"{fact.change}{': ' + steps if steps else ''}")

    def _noted(self, fact: Noted, now: float) -> None:
        if fact.level != "info":
            self._mark(now, "note", fact.level, fact.about, fact.what)

    def _asked(self, fact: Asked, now: float) -> None:
        self._mark(now, "asked", "warning", fact.about, f"{fact.verb}{_by(fact.uid)}")

    def _stop(self, fact: StopAsked, now: float) -> None:
        how = {1: "gracefully", 2: "without waiting", 3: "by killing"}.get(fact.level, str(fact.level))
        self._mark(now, "stop", "warning", "", f"stop {how}: {fact.why or 'asked for'}{_by(fact.uid)}")

    # -- what a lane does

    def _gpu_doing(self, gpu: int) -> Doing:
        lent = self.lent.get(gpu)
        if lent is None or not lent.pipeline:
            reason = self.withheld.get(gpu)
            if reason is None:
                return Doing("free")
            return Doing("start", "", reason) if reason == UNMEASURED else Doing("withheld", "", reason)
        if lent.rank == TRAINER:
            who = str(Party(lent.pipeline))
            if lent.leaving:
                return Doing("switch", who, "offloading")
            return Doing("start" if lent.role == "init" else "train", who, lent.role)
        engine = self.pipelines[lent.pipeline].engines[lent.rank]
        who = str(Party(lent.pipeline, lent.rank))
        if engine.state == "serving":
            return Doing("rollout" if engine.busy else "ready", who, "serving")
        return Doing(_ENGINE_KIND.get(engine.state, "switch"), who, engine.state)

    def _pipeline_doing(self, pipeline: PipelineHistory) -> Doing:
        name, state = pipeline.of.name, pipeline.trainer
        if state in ("cold", "starting"):
            return Doing("start")
        if state == "quarantined":
            return Doing("failed")
        if state in _ENDED:
            return Doing("ended", "", state)
        role = next((lent.role for lent in self.lent.values() if lent.pipeline == name and lent.rank == TRAINER and not lent.leaving), "")
        if role:
            return Doing("start" if role == "init" else "train", "", role)
        demand = pipeline.demand
        if demand is not None and demand.in_flight:
            return Doing("generate")
        if (wait := self.open_waits.get((name, "lease"))) is not None:
            return Doing("lease", _names(wait.whom), wait.why)
        if (wait := self.open_waits.get((name, "rollout"))) is not None:
            return Doing("engine", _names(wait.whom), wait.why)
        if demand is not None and demand.waiting:
            return Doing("engine", _names(self._others_on(pipeline)), "samples wait for an engine")
        return Doing("own")

    def _others_on(self, pipeline: PipelineHistory) -> set[Party]:
        """Return who else has the GPUs of its engines."""
        gpus = set(pipeline.of.engines.gpus)
        held = (lent for lent in self.lent.values() if lent.gpu in gpus and lent.pipeline not in ("", pipeline.of.name))
        return {Party(lent.pipeline, lent.rank) for lent in held}


def _names(parties: Iterable[Party]) -> str:
    return ", ".join(sorted(map(str, parties)))


def _by(uid: int | None) -> str:
    return "" if uid is None else f" (by uid {uid})"
