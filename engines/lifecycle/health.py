"""Health decides when an engine is looked at, and what the looks add up to. PURE: time is an argument, and nothing here touches an engine.

The cheapest look comes first. A token or a completed request is the best news and costs nothing; without any for `progress_every` a serving
engine is asked for one token (`/health_generate`), and every `liveness_every` whether it answers at all. A sleeping one is asked for its state
now and then. Requests that fail in a row, or that run without a token for `silence`, are settled by a **canary**: one generation by the way
that requests take. Nothing else clears that streak, because a wedged engine still answers probes.

What protects the healthy: one probe at a time and engine; a result counts only if life and state are the same after it as before it; a
token that came meanwhile outweighs a failed probe; a probe during which our own loop was late does not count; when more than half of all
engines fail at once, each is asked once more before it is condemned. Streaks belong to a life, so none outlives its engine, and none is
laundered by a pause or a change of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from trainers.protocol.ids import EngineId, Incarnation


class Mode(Enum):
    """A mode says what may be asked of an engine, by its state alone."""

    SERVING = "serving"
    ASLEEP = "asleep"
    QUIET = "quiet"  # starting, waking, loading, draining …: a control call runs, and has a deadline of its own


class Kind(Enum):
    LIVENESS = "/health"
    PROGRESS = "/health_generate"
    CANARY = "a canary generation"
    ASLEEP = "/server_info"


MODE_OF: Final = {Kind.LIVENESS: Mode.SERVING, Kind.PROGRESS: Mode.SERVING, Kind.CANARY: Mode.SERVING, Kind.ASLEEP: Mode.ASLEEP}


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates are seconds between the end of one probe and the next, seconds that one may take, and failures in a row that condemn.

    Nothing has a default here: `supervisor.config.limits` makes them from `[health]`.
    """

    liveness_every: float
    liveness_within: float
    liveness_failures: int
    progress_every: float
    progress_within: float
    progress_failures: int
    request_failures: int
    silence: float
    canary_within: float
    asleep_every: float
    lag: float

    @property
    def tick(self) -> float:
        """Return how often `Health.look` should be called, in seconds."""
        return max(0.01, min(1.0, min(self.liveness_every, self.progress_every, self.asleep_every) / 4))

    def limit(self, kind: Kind) -> int:
        return {Kind.LIVENESS: self.liveness_failures, Kind.CANARY: 1}.get(kind, self.progress_failures)

    def within(self, kind: Kind) -> float:
        return {Kind.LIVENESS: self.liveness_within, Kind.CANARY: self.canary_within}.get(kind, self.progress_within)

    def every(self, kind: Kind) -> float:
        return {Kind.PROGRESS: self.progress_every, Kind.ASLEEP: self.asleep_every}.get(kind, self.liveness_every)


@dataclass(frozen=True, slots=True)
class Look:
    """A look is one engine as the scheduler's record has it now. `epoch` changes with every change of state.

    `evidence` counts its completed requests and tokens (it may begin anew when the gateway is replaced), `failures` its requests that
    failed in a row, `in_flight` those that run.
    """

    incarnation: Incarnation
    mode: Mode
    epoch: float
    evidence: int = 0
    failures: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe is one question to one engine, to be answered by `Health.ended`."""

    engine: EngineId
    kind: Kind
    within: float
    incarnation: Incarnation
    epoch: float
    began: float


class Diagnosis(Enum):
    SUSPECT = "suspect"  # the first failure of a streak
    WELL = "well again"
    CONDEMNED = "condemned"


@dataclass(frozen=True, slots=True)
class Outcome:
    """An outcome is to be reported. `silent_for`: seconds since the engine's last sign of life."""

    diagnosis: Diagnosis
    engine: EngineId
    incarnation: Incarnation
    reason: str
    silent_for: float


@dataclass(slots=True)
class _Pulse:
    """A pulse is what is known of one life of one engine."""

    look: Look
    seen: float
    sign: float  # when it last showed life
    asked: Probe | None = None
    next: dict[Kind, float] = field(default_factory=dict)
    streaks: dict[Kind, int] = field(default_factory=dict)
    forgiven: int = 0  # failed requests that a canary has outweighed
    quiet_since: float = 0.0  # of the silence of requests that run
    rechecked: bool = False
    condemned: bool = False

    @property
    def suspect(self) -> bool:
        return any(self.streaks.values())


class Health:
    """Health watches all engines of the box. `look` says what to ask now; `ended` takes an answer."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self._pulses: dict[EngineId, _Pulse] = {}
        self._late: float | None = None  # when our own loop was late last

    def lagged(self, now: float) -> None:
        """Note that our own loop has just been late by more than `lag`: what failed meanwhile proves nothing."""
        self._late = now

    def look(self, looks: Mapping[EngineId, Look], now: float) -> list[Probe]:
        """Take the present state of every engine that has processes; return the probes that are to begin now."""
        for engine in self._pulses.keys() - looks.keys():
            del self._pulses[engine]
        probes = []
        for engine in sorted(looks):
            pulse = self._take(engine, looks[engine], now)
            kind = self._due(pulse, now)
            if kind is not None:
                look = pulse.look
                pulse.asked = Probe(engine, kind, self.rates.within(kind), look.incarnation, look.epoch, now)
                probes.append(pulse.asked)
        return probes

    def _take(self, engine: EngineId, look: Look, now: float) -> _Pulse:
        pulse = self._pulses.get(engine)
        if pulse is None or pulse.look.incarnation != look.incarnation:
            pulse = self._pulses[engine] = _Pulse(look, now, now, quiet_since=now)
            # From the first moment of a life, once: a wait that began anew with each wake would never end in short phases.
            pulse.next = {kind: now + self.rates.every(kind) for kind in (Kind.LIVENESS, Kind.PROGRESS, Kind.ASLEEP)}
        before, pulse.look = pulse.look, look
        if look.evidence > before.evidence:
            self._sign(pulse, now)
        elif look.mode is not Mode.SERVING or before.mode is not Mode.SERVING or not look.in_flight or not before.in_flight:
            pulse.quiet_since = now
        pulse.forgiven = min(pulse.forgiven, look.failures)
        return pulse

    def _sign(self, pulse: _Pulse, now: float) -> None:
        """Note a sign of life: a token came, or a request was completed. It is as good as any probe."""
        pulse.sign = pulse.quiet_since = now
        pulse.rechecked = False
        for kind in (Kind.LIVENESS, Kind.PROGRESS):
            pulse.streaks[kind] = 0
            pulse.next[kind] = now + self.rates.every(kind)

    def _due(self, pulse: _Pulse, now: float) -> Kind | None:
        look = pulse.look
        if pulse.asked is not None or pulse.condemned:
            return None
        if look.mode is Mode.ASLEEP:
            return Kind.ASLEEP if pulse.next[Kind.ASLEEP] <= now else None
        if look.mode is Mode.QUIET:
            return None
        doubted = look.failures >= self.rates.request_failures and look.failures > pulse.forgiven
        if (doubted or self._silent(pulse, now)) and pulse.next.get(Kind.CANARY, now) <= now:
            return Kind.CANARY
        if pulse.next[Kind.PROGRESS] <= now and not pulse.streaks.get(Kind.LIVENESS):  # first: does it answer at all?
            return Kind.PROGRESS
        return Kind.LIVENESS if pulse.next[Kind.LIVENESS] <= now else None

    def _silent(self, pulse: _Pulse, now: float) -> bool:
        """Return whether requests run and no token comes."""
        return bool(pulse.look.in_flight) and now - pulse.quiet_since >= self.rates.silence

    def ended(self, probe: Probe, problem: str | None, look: Look | None, now: float) -> Outcome | None:
        """Take the result of a probe; return what is to be reported, if anything.

        `problem` is empty when the engine answered well, None when it had no room for the question. `look` is its state after the probe, None when
        it has no processes any more.
        """
        pulse = self._pulses.get(probe.engine)
        if pulse is None or pulse.asked is not probe:
            return None  # that life is over
        pulse.asked = None
        pulse.next[probe.kind] = now + self.rates.every(probe.kind)
        if look is None or (look.incarnation, look.epoch) != (probe.incarnation, probe.epoch) or look.mode is not MODE_OF[probe.kind]:
            return None  # it is not what was asked any more: neither good nor bad
        self._take(probe.engine, look, now)
        if problem == "" or pulse.sign > probe.began:
            return self._good(pulse, probe, now)
        if problem is None and not self._silent(pulse, now):
            return None  # it is full, and whoever is in it gets tokens: only a generation clears a streak, only a failure adds to one
        problem = problem or "no room for one token, and none comes out"
        if self._late is not None and self._late >= probe.began:
            return None
        return self._bad(pulse, probe, problem, now)

    def _good(self, pulse: _Pulse, probe: Probe, now: float) -> Outcome | None:
        was = pulse.suspect
        pulse.streaks[probe.kind] = 0
        if probe.kind is not Kind.LIVENESS:  # these went through the model; that it answers is proven with it
            pulse.streaks[Kind.LIVENESS] = 0
            pulse.sign = now
        if probe.kind is Kind.CANARY:
            pulse.streaks[Kind.PROGRESS] = 0
            pulse.forgiven = pulse.look.failures
            pulse.quiet_since = now
        if was and not pulse.suspect:
            pulse.rechecked = False
            return self._outcome(Diagnosis.WELL, pulse, probe, f"{probe.kind.value} is answered again", now)
        return None

    def _bad(self, pulse: _Pulse, probe: Probe, problem: str, now: float) -> Outcome | None:
        first = not pulse.suspect
        streak = pulse.streaks[probe.kind] = pulse.streaks.get(probe.kind, 0) + 1
        if streak < self.rates.limit(probe.kind):
            return self._outcome(Diagnosis.SUSPECT, pulse, probe, problem, now) if first else None
        if not pulse.rechecked and self._many():
            pulse.rechecked = True
            pulse.next[probe.kind] = now
            return self._outcome(Diagnosis.SUSPECT, pulse, probe, f"{problem}; so do most engines, so it is asked once more", now)
        pulse.condemned = True
        return self._outcome(Diagnosis.CONDEMNED, pulse, probe, self._verdict(pulse, probe, streak, problem), now)

    def _many(self) -> bool:
        """Return whether more than half of the engines that can be asked, and more than one, look bad now: then it may be us, or the box."""
        watched = [pulse for pulse in self._pulses.values() if pulse.look.mode is not Mode.QUIET and not pulse.condemned]
        bad = sum(pulse.suspect for pulse in watched)
        return bad >= 2 and 2 * bad > len(watched)

    def _verdict(self, pulse: _Pulse, probe: Probe, streak: int, problem: str) -> str:
        if probe.kind is not Kind.CANARY:
            return f"{probe.kind.value} failed {streak} times in a row: {problem}"
        failures = pulse.look.failures
        why = (
            f"{failures} requests failed in a row"
            if failures > pulse.forgiven
            else f"requests run, and no token for {self.rates.silence:g} s"
        )
        return f"{why}, and a canary failed: {problem}"

    @staticmethod
    def _outcome(diagnosis: Diagnosis, pulse: _Pulse, probe: Probe, reason: str, now: float) -> Outcome:
        return Outcome(diagnosis, probe.engine, probe.incarnation, reason, now - pulse.sign)
