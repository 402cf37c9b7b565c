"""A run whose engines are slow but alive: they stop, stammer or fall silent for less than any budget. None may be restarted for it, ever."""

import time
from dataclasses import dataclass
from pathlib import Path

from bench.campaigns.harness.fault_episodes import Broken, EpisodesRun
from supervisor.observe.status import EngineView, PipelineView

ENGINES = {"single": 20, "bundle": 12, "pairs": 10, "fours": 6, "eights": 3}
HEALTH = {
    "probe_s": 0.4, "probe_timeout_s": 1.6, "probe_failures": 3, "progress_s": 1.6, "progress_timeout_s": 2.4, "progress_failures": 3,
    "silence_s": 8.0, "canary_s": 2.4, "asleep_s": 1.2, "lag_s": 1.2,
    "start_s": 20.0, "drain_s": 12.0, "pause_s": 12.0, "wake_s": 12.0, "load_s": 12.0, "release_deadline_s": 12.0,
}  # fmt: skip
"""Four times those of the fault episodes: the least that condemns a head is three times 1.6 s and two waits of 0.4 s, 5.6 s in all."""
LONGEST_S = 2.5
EPISODES = {"single": 1000, "bundle": 600, "pairs": 400, "fours": 150, "eights": 60}
"""Of one run: few where few engines may be slow at once."""
KINDS: dict[str, dict[str, object]] = {
    "stopped": {},
    "503": {"generate": "hang", "health": "503", "health_generate": "503"},
    "silent": {"generate": "hang"},
    "late answers": {"health": "slow", "health_generate": "slow", "slow": 1.2},
    "slow tokens": {"token_delay": 0.3},
}
"""Each ends by itself, however late the campaign is: it is the engine that counts the seconds."""


@dataclass
class Spell:
    """Until when somebody is slow."""

    kind: str
    phase: str
    engine: EngineView
    until: float


class SlowEpisodes(EpisodesRun):
    """Less than half of the engines at once, so that it is not the guard against mass failures which saves them."""

    def __init__(self, cwd: Path, shape: str, seed: int) -> None:
        super().__init__(cwd, shape, seed, ENGINES[shape], HEALTH)
        self.spells: list[Spell] = []
        self.resting: dict[int, dict[str, int]] = {}

    def round(self, view: PipelineView, wanted: int) -> None:
        now = time.monotonic()
        for spell in [spell for spell in self.spells if spell.until <= now]:
            self.spells.remove(spell)
            self.tally.done += 1
            self.tally.matrix[f"{spell.kind} while {spell.phase}"] += 1
            self.resting[spell.engine.rank] = self._signs(spell.engine)
        for engine in view.engines:
            if engine.restarts:
                raise Broken(f"{engine} was only slow, and was restarted")
        for rank in list(self.resting):
            self._rest(view.engines[rank])
        busy = {spell.engine.rank for spell in self.spells} | self.resting.keys()
        idle = [engine for engine in view.engines if engine.rank not in busy and engine.pids]
        self.random.shuffle(idle)
        for engine in idle[: max(0, min((self.engines - 1) // 2, wanted - self.tally.done) - len(busy))]:
            self._begin(engine)

    def _rest(self, engine: EngineView) -> None:
        """Two spells in a row on an engine that has nothing to do are one, longer than the budget: it has to show life between them."""
        before, now = self.resting[engine.rank], self._signs(engine)
        if any(now[sign] > before[sign] for sign in now):
            del self.resting[engine.rank]

    def _signs(self, engine: EngineView) -> dict[str, int]:
        """Tokens that it has made, and questions that it was asked: while no spell is on it, each is answered well."""
        said = self.faulty.turn(engine.rank, engine.incarnation)
        return {"tokens": said["tokens"], **{path: said["asked"].get(path, 0) for path in ("/health_generate", "/server_info")}}

    def _begin(self, engine: EngineView) -> None:
        kind = self.random.choice(list(KINDS))
        seconds = self.random.uniform(0.1, 2.0 if kind == "503" else LONGEST_S)  # a 503 comes at once, and counts at once
        member = self.random.randrange(len(engine.pids)) if kind == "stopped" else 0
        knobs = {"nap": seconds} if kind == "stopped" else {**KINDS[kind], "for": seconds}
        if self.turn(engine.rank, engine.incarnation, member=member, **knobs):
            self.spells.append(Spell(kind, engine.state, engine, time.monotonic() + seconds))

    def verdict(self, failures: list[dict[str, object]]) -> None:
        if failures:
            raise Broken(f"nobody was hurt, and {len(failures)} failed: {failures[0]}")
