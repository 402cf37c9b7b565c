"""The incumbents' constants for noticing a broken engine, replayed in virtual time beside ours: same faults, same recovery, other checkers.

    bin/bench constants [FAULTS]        (default 100 of each kind; a minute)

XTuner 30/15/3: a round over all engines at once every 30 s, 15 s for an answer, three rounds; stopped while engines sleep, and one interval
is waited after each resume. slime 30/30/1: heads one after the other, 30 s between rounds, up to 30 s for an answer, once is enough. Both
probe by a generation of one token (SGLang gives up after 20 s by itself) and watch neither exits nor requests. Ours is `engines/lifecycle/health.py`
with its defaults, as it runs in production, and exits by pidfd. "back" adds the same recovery to all: an engine that takes 40 s to start.
"""

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from engines.lifecycle.health import Diagnosis, Health, Kind, Look, Mode, Probe
from tests.harness.defaults import default_rates
from trainers.protocol.ids import EngineId, Incarnation, PipelineId

ENGINES, TICK, LIFE = 8, 0.5, Incarnation(1)
SERVING_S, ASLEEP_S = 240.0, 120.0
"""One step of a run: a rollout, then the GPUs are the trainer's."""
GIVES_UP_S, COLD_S, PIDFD_S, HORIZON_S = 20.0, 40.0, 0.05, 1800.0
FAULTS = ("a process exits", "the head hangs", "a rank hangs", "all eight hang", "requests hang, probes are green", "an exit while asleep")
SLOW = ((20.0, 60.0), (60.0, 140.0))
"""Nothing is wrong but one prefill (or a compiler) that takes so many seconds."""


class Checker(Protocol):
    """`Health` is one."""

    def look(self, looks: Mapping[EngineId, Look], now: float) -> list[Probe]: ...
    def condemns(self, probe: Probe, problem: str, look: Look, now: float) -> bool: ...


class Ours(Health):
    name, sees_exits = "Trainshed, defaults", True

    def __init__(self) -> None:
        super().__init__(default_rates())

    def condemns(self, probe: Probe, problem: str, look: Look, now: float) -> bool:
        outcome = self.ended(probe, problem, look, now)
        return outcome is not None and outcome.diagnosis is Diagnosis.CONDEMNED


@dataclass
class Rounds:
    """A round of probes, a wait, a round. `serial`: one engine after the other. `rearmed`: a whole wait after each resume."""

    name: str
    every: float
    within: float
    failures: int
    serial: bool
    rearmed: bool
    sees_exits = False
    next: float = 0.0
    streaks: dict[EngineId, int] = field(default_factory=dict)
    queue: list[EngineId] = field(default_factory=list)
    running: set[EngineId] = field(default_factory=set)
    awake: bool = False

    def look(self, looks: Mapping[EngineId, Look], now: float) -> list[Probe]:
        serving = [engine for engine, look in looks.items() if look.mode is Mode.SERVING]
        if bool(serving) != self.awake:
            self.awake = bool(serving)
            self.queue.clear()
            self.next = now + (self.every if self.rearmed else 0.0)
        if not self.awake:
            return []
        if not self.queue and not self.running and now >= self.next:
            self.queue = serving
        begun = self.queue if not self.serial else self.queue[: 0 if self.running else 1]
        self.queue = self.queue[len(begun) :]
        self.running |= set(begun)
        return [Probe(engine, Kind.PROGRESS, self.within, LIFE, 0.0, now) for engine in begun]

    def condemns(self, probe: Probe, problem: str, look: Look, now: float) -> bool:
        self.running.discard(probe.engine)
        if not self.queue and not self.running:
            self.next = now + self.every
        self.streaks[probe.engine] = self.streaks.get(probe.engine, 0) + 1 if problem else 0
        return self.streaks[probe.engine] >= self.failures


def checkers() -> list["Ours | Rounds"]:
    return [Ours(), Rounds("XTuner 30/15/3", 30.0, 15.0, 3, False, True), Rounds("slime 30/30/1", 30.0, 30.0, 1, True, False)]


def answer(fault: str, probe: Probe) -> tuple[float, str]:
    """Seconds until the probe of an engine with this fault ends, and its problem."""
    if probe.kind is Kind.LIVENESS and fault not in ("the head hangs", "all eight hang", "a process exits", "an exit while asleep"):
        return 0.01, ""  # it is a flag
    if fault == "requests hang, probes are green" and probe.kind is not Kind.CANARY:
        return 1.0, ""
    if "exit" in fault:
        return 0.01, "connection refused"
    late = probe.within if "hang" in fault and fault != "a rank hangs" else min(probe.within, GIVES_UP_S)
    return late, "no answer"


@dataclass
class Trial:
    """One fault at `at`, in the middle of what else goes on. `slow`: no fault, but a prefill of so many seconds, in which it looks like one."""

    checker: "Ours | Rounds"
    fault: str
    at: float
    slow: float = 0.0

    def noticed(self) -> float | None:
        """Seconds from the fault to the verdict on the last engine that has it; None when it never comes (or no false one does)."""
        engines = [EngineId(PipelineId("p"), rank) for rank in range(ENGINES)]
        sick = set(engines) if self.fault == "all eight hang" else {engines[ENGINES // 2]}
        looks = {engine: Look(LIFE, Mode.SERVING, 0.0, in_flight=4) for engine in engines}
        running: list[tuple[float, str, Probe]] = []
        condemned: set[EngineId] = set()
        now = 0.0
        if self.checker.sees_exits and "exit" in self.fault:
            return PIDFD_S
        while now < self.at + (self.slow or HORIZON_S):
            now += TICK
            hurt = now >= self.at
            awake = now % (SERVING_S + ASLEEP_S) < SERVING_S or (hurt and "hang" in self.fault)  # such a rollout does not end
            for engine in engines:
                tokens = int(awake and not (hurt and engine in sick))
                mode = Mode.SERVING if awake else Mode.ASLEEP
                epoch = looks[engine].epoch if mode is looks[engine].mode else now
                looks[engine] = replace(looks[engine], mode=mode, epoch=epoch, evidence=looks[engine].evidence + tokens)
            for due, problem, probe in [entry for entry in running if entry[0] <= now]:
                running.remove((due, problem, probe))
                if self.checker.condemns(probe, problem, looks[probe.engine], now) and hurt:
                    condemned.add(probe.engine)
            if condemned >= sick:
                return now - self.at
            for probe in self.checker.look({engine: looks[engine] for engine in engines if engine not in condemned}, now):
                took, problem = answer(self.fault, probe) if hurt and probe.engine in sick else (1.0, "")
                if self.slow and probe.engine in sick and hurt:  # it answers when the prefill is over, if it is still asked
                    took, problem = min(took, self.at + self.slow - now), problem if took < self.at + self.slow - now else ""
                running.append((now + took, problem, probe))
        return None


def moment(chance: random.Random, *, asleep: bool) -> float:
    begin, length = (SERVING_S, ASLEEP_S) if asleep else (0.0, SERVING_S)
    return begin + chance.uniform(1.0, length - 1.0)


def main(count: int) -> None:
    print(f"{'fault':>32} {'checker':>20} {'noticed p50':>12} {'p95':>7} {'max':>7} {'never':>6} {'back p50':>9}   (s; {count} each)")
    for fault in FAULTS:
        for which in range(3):
            chance = random.Random(fault)
            times: list[float] = []
            never = 0
            for _ in range(count):
                at = moment(chance, asleep="asleep" in fault)
                seen = Trial(checkers()[which], fault, at).noticed()
                never += seen is None
                times += [seen] if seen is not None else []
            times.sort()
            said = " ".join(
                f"{times[min(len(times) - 1, int(part * len(times)))] if times else float('nan'):7.1f}" for part in (0.5, 0.95, 1.0)
            )
            back = times[len(times) // 2] + COLD_S if times else float("nan")
            print(f"{fault:>32} {checkers()[which].name:>20}      {said} {never:6} {back:9.1f}", flush=True)
    for shortest, longest in SLOW:
        print(f"\nnothing but one prefill of {shortest:.0f} to {longest:.0f} s: false kills of {count}")
        for which in range(3):
            chance = random.Random(longest)
            slow = [(moment(chance, asleep=False), chance.uniform(shortest, longest)) for _ in range(count)]
            kills = sum(Trial(checkers()[which], FAULTS[2], at, slow=seconds).noticed() is not None for at, seconds in slow)
            print(f"{checkers()[which].name:>53} {kills:6}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
