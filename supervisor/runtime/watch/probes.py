"""Probes look at the engines from outside and report. They stop nothing: the scheduler decides what an engine's silence means."""

import time
from typing import Final

import anyio
import anyio.abc

from engines.control import EngineControl, EngineError, EngineRefused
from engines.lifecycle.health import Diagnosis, Health, Kind, Look, Mode, Outcome, Probe
from engines.lifecycle.state import EngineState
from supervisor.config.limits import rates
from supervisor.config.schema.tables import HealthTable
from supervisor.runtime.driver import Loop
from supervisor.runtime.engines import Engines
from supervisor.scheduler import Scheduler
from supervisor.scheduler.events import ProbeFailed
from supervisor.scheduler.records import Engine
from trainers.protocol.ids import EngineId

MODES: Final = {EngineState.SERVING: Mode.SERVING, EngineState.PAUSED: Mode.ASLEEP}


class Probes:
    """Runs every engine's probes. It reads the scheduler's records before and after each one, so nobody has to tell it to pause or to resume."""

    def __init__(self, loop: Loop, scheduler: Scheduler, engines: Engines, settings: HealthTable) -> None:
        self._loop, self._scheduler, self._engines = loop, scheduler, engines
        self.health = Health(rates(settings))
        self.longest_lag = 0.0

    async def run(self) -> None:
        """Probe until cancelled. Each probe is a task of its own, so that one that hangs delays no other."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_ourselves, name="own lag")
            while True:
                for probe in self.health.look(self._looks(), time.monotonic()):
                    tasks.start_soon(self._ask, probe, name=f"probe {probe.engine}")
                await anyio.sleep(self.health.rates.tick)

    async def _watch_ourselves(self) -> None:
        every = self.health.rates.lag / 4
        while True:
            before = time.monotonic()
            await anyio.sleep(every)
            late = time.monotonic() - before - every
            self.longest_lag = max(self.longest_lag, late)
            if late > self.health.rates.lag:
                self.health.lagged(time.monotonic())
                self._loop.log.warning("our own loop was late; probes of that time do not count", late_s=round(late, 3))

    def _looks(self) -> dict[EngineId, Look]:
        return {engine.id: look for engine in self._scheduler.engines if (look := self._look(engine)) is not None}

    def _look(self, engine: Engine) -> Look | None:
        if engine.state in (EngineState.COLD, EngineState.RETIRED):
            return None
        mode = MODES.get(engine.state, Mode.QUIET)
        if engine.state is EngineState.PAUSED and engine.op is not None:
            mode = Mode.QUIET
        evidence = engine.completed + engine.tokens
        return Look(engine.incarnation, mode, engine.since, evidence, engine.failures, engine.in_flight)

    async def _ask(self, probe: Probe) -> None:
        control = self._engines.control(probe.engine, probe.incarnation)
        problem = "it has no endpoint" if control is None else await _problem(control, probe)
        look = self._look(self._scheduler.engine(probe.engine))
        outcome = self.health.ended(probe, problem, look, time.monotonic())
        if outcome is not None:
            self._report(outcome)

    def _report(self, outcome: Outcome) -> None:
        log = self._loop.log_for(outcome.engine, outcome.incarnation)
        fields = {"why": outcome.reason, "silent_s": round(outcome.silent_for, 3)}
        if outcome.diagnosis is Diagnosis.CONDEMNED:
            log.error("engine is condemned", **fields)
            self._loop.feed(
                ProbeFailed(
                    group=outcome.engine, incarnation=outcome.incarnation, reason=outcome.reason, silent_for=max(0.0, outcome.silent_for)
                )
            )
        elif outcome.diagnosis is Diagnosis.SUSPECT:
            log.warning("engine is suspect", **fields)
        else:
            log.info("engine is well again", **fields)


_NO_ROOM: Final = (409, 429, 503)


async def _problem(control: EngineControl, probe: Probe) -> str | None:
    """Ask the engine. Returns what is wrong, an empty string when nothing is, None when it refused because it is busy.

    Any refusal proves that the engine is there, which is all that liveness asks.
    """
    try:
        match probe.kind:
            case Kind.LIVENESS:
                await control.health(probe.within)
            case Kind.PROGRESS:
                await control.health_generate(probe.within)
            case Kind.CANARY:
                await control.canary(probe.within)
            case Kind.ASLEEP:
                await control.probe(probe.within)
    except EngineRefused as refusal:
        if probe.kind is Kind.LIVENESS:
            return ""
        return None if probe.kind is Kind.CANARY and refusal.status in _NO_ROOM else str(refusal)
    except EngineError as error:
        return str(error) or type(error).__name__
    return ""
