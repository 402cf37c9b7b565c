"""One run of the episodes' campaign: a supervisor, a gateway, a trainer that checks every token, and engine groups that are hurt at random."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.campaigns.harness.campaign import commit
from supervisor.host.gpus.virtual import held_by
from supervisor.host.processes.proc import read_stat
from supervisor.observe.status import EngineView, PipelineView
from tests.harness.faulty_run import Faulty
from tests.harness.supervised_run import Run, processes_of


@dataclass(frozen=True)
class Shape:
    """`episodes` of one run: few where an episode costs many processes."""

    members: str
    tp: int
    engines: int
    episodes: int


SHAPES = {
    "single": Shape("one", 1, 8, 200),
    "bundle": Shape("one", 2, 6, 200),
    "pairs": Shape("per-gpu", 2, 5, 150),
    "fours": Shape("per-gpu", 4, 3, 80),
    "eights": Shape("per-gpu", 8, 2, 40),
}
WIDE = {"quad": Shape("one", 4, 3, 80), "octet": Shape("one", 8, 2, 40)}
"""For the tests only: one process for so many GPUs behaves as for two."""
DEADLINE_S = 60.0
"""Of one episode; the sum of this run's own deadlines is below it."""
SKIP_S = 6.0
"""A fault that waits for a call which does not come in this life has not fired: the episode is not counted."""
UNROUTED_S = 3.0
"""After the death of a member its group is not seen serving any more. (How fast: `bin/bench recovery`; this box is crowded.)"""
ASLEEP = ("/release_memory_occupation", "/resume_memory_occupation", "/flush_cache")
AWAKE = ("/update_weights_from_disk", "/pause_generation", "/continue_generation")
ENDS, HANGS = {"exit", "action"}, {"probe", "action", "memory"}  # memory: a member that hangs while it should give it back
LEAVES = ENDS | {"probe"}  # it shuts its connections before it is gone: requests and the canary may fail first
FAULTS = {
    "kill": ENDS, "leave": LEAVES, "again": ENDS, "late start": ENDS, "die_at": ENDS, "die_after": ENDS,
    "stop": HANGS, "hang": HANGS, "reset": HANGS, "hang_at": HANGS, "noop": {"memory", "action"},
}  # fmt: skip
"""Each fault, and the causes that its failure may be logged with: the witness that this fault fired, and not another."""
WAITING = ("die_at", "die_after", "hang_at", "noop")
HEALTH = {
    "restart_window_s": 0.001, "release_deadline_s": 2.0, "start_s": 4.0, "pause_s": 1.5, "wake_s": 1.5, "load_s": 1.5, "silence_s": 1.0,
}  # fmt: skip


ENOUGH = threading.Event()
"""Set: every run ends early, as if it had all its episodes."""


class Broken(AssertionError):
    """A promise was broken."""


@dataclass
class Episode:
    fault: str
    phase: str
    rank: int
    life: int
    began: float
    undo: list[int] = field(default_factory=list)
    fired: bool = False


@dataclass
class Tally:
    """`others`: failures in the log that no episode accounts for."""

    shape: str
    seed: int
    done: int = 0
    skipped: int = 0
    checks: int = 0
    others: int = 0
    seconds: list[float] = field(default_factory=list)
    matrix: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    why: list[str] = field(default_factory=list)
    wall: float = 0.0

    def line(self) -> str:
        times = sorted(self.seconds) or [0.0]
        about = {"shape": self.shape, "seed": self.seed, "done": self.done, "skipped": self.skipped, "others": self.others}
        took = {"worst_s": round(times[-1], 3), "p50_s": round(times[len(times) // 2], 3), "wall_s": round(self.wall, 1)}
        return json.dumps(
            {
                **about,
                **took,
                "checks": self.checks,
                "samples": self.samples,
                "why": self.why,
                "matrix": dict(self.matrix),
                "commit": commit(),
            }
        )


class EpisodesRun:
    """One run. `play` until it has so many episodes; it raises Broken."""

    def __init__(self, cwd: Path, shape: str, seed: int, engines: int | None = None, health: dict[str, float] | None = None) -> None:
        self.shape = (SHAPES | WIDE)[shape]
        self.engines = engines or self.shape.engines
        self.random = random.Random(f"{shape}:{seed}")
        self.tally = Tally(shape, seed)
        self.faulty = Faulty(
            cwd, members=self.shape.members, tp=self.shape.tp, gpus=self.engines * self.shape.tp, slots=4, steps=10**6,
            target=6 * self.engines, tokens=10, restarts=10**6,
            health="\n".join(f"{key} = {value}" for key, value in {**HEALTH, **(health or {})}.items()),
        )  # fmt: skip
        text = self.faulty.file.read_text().replace("train = true", "train = true, training = 0.05")
        self.faulty.file.write_text(text.replace("[health]", "[scheduler]\nmax_starting = 4\n[health]"))
        for rank in range(self.engines):
            self.script(rank)
        self.run: Run | None = None

    def script(self, rank: int, *rules: dict[str, object]) -> None:
        self.faulty.script(rank, *rules, {"set": {"token_delay": 0.015}})

    def play(self, episodes: int) -> Tally:
        """The run is over when this returns."""
        began = time.monotonic()
        self.run = self.faulty.start()
        try:
            self._everybody(lambda view: view.step >= 1)
            descriptors = self._descriptors()
            while self.tally.done < episodes and not ENOUGH.is_set():
                self.round(self.view(), episodes)
                time.sleep(self.random.uniform(0.02, 0.06))
            self.undo()
            self._end(descriptors)
        finally:
            self.undo()
            self.run.stop()
        self.tally.wall = time.monotonic() - began
        return self.tally

    def round(self, view: PipelineView, wanted: int) -> None:
        """Look at what became of the faults, and think of others, until there are `wanted` in all."""
        raise NotImplementedError

    def undo(self) -> None:
        """Nobody is stopped any more."""

    def verdict(self, failures: list[dict[str, object]]) -> None:
        """What the log says about all failures. Raises Broken."""
        raise NotImplementedError

    def view(self) -> PipelineView:
        assert self.run is not None
        snapshot = self.run.status()
        if snapshot is None or self.run.process.poll() is not None:
            raise Broken(f"the supervisor is gone:\n{self.run.tail()}")
        view = snapshot.pipelines[0]
        if view.trainer.incarnation != 1 or view.gateway.incarnation != 1:
            raise Broken(f"the trainer or the gateway was hurt:\n{self.run.tail()}")
        return view

    def turn(self, rank: int, life: int, *, member: int = 0, **knobs: object) -> bool:
        """Whether that member of that life heard it."""
        try:
            self.faulty.turn(rank, life=life, member=member, **knobs)
        except OSError:  # it is not there any more, or not yet
            return False
        return True

    # -- promises

    def empty_where_granted(self, before: PipelineView) -> None:
        """While the trainer has its GPU, no engine holds a byte there, whatever the supervisor believes."""
        if "train" not in before.trainer.holds:
            return
        held = {pid: sum(held_by(pid).get(0, {}).values()) for engine in before.engines for pid in engine.pids}  # type: ignore[call-overload]
        after = self.view()
        if "train" in after.trainer.holds and after.step == before.step and after.weight_version == before.weight_version:
            self.tally.checks += 1
            if any(held.values()):
                raise Broken(f"GPU 0 is the trainer's, and engines hold {held} bytes there")

    def _everybody(self, holds: Callable[[PipelineView], bool]) -> None:
        assert self.run is not None
        well = lambda view: holds(view) and all(engine.state in ("serving", "paused") for engine in view.engines)  # noqa: E731
        self.run.when("p1", well, "everybody being well", 120)

    def _descriptors(self) -> int:
        assert self.run is not None
        return len(os.listdir(f"/proc/{self.run.supervisor_pid()}/fd"))

    def _end(self, descriptors: int) -> None:
        run = self.run
        assert run is not None
        for rank in range(self.engines):
            self.script(rank)
        self._everybody(lambda view: True)
        now = self._descriptors()
        if now > descriptors + 8 * self.engines * self.shape.tp:
            raise Broken(f"{now} descriptors are open, {descriptors} were at the beginning")
        samples = self.faulty.samples(run)
        self.tally.samples = sum(line["samples"] for line in samples)
        for line in samples:
            if {version for _, _, version in line["spans"]} != {line["step"]}:
                raise Broken(f"rollout {line['step']} was made by the versions in {line['spans']}")
        log = run.log()
        failures = [record for record in log if record["event"] == "engine group failed"]
        over = sum(str(record["event"]).startswith("engine group: ") for record in log)
        if over < len(failures) - self.engines:
            raise Broken(f"{len(failures)} failures, and {over} of them are over")
        self.verdict(failures)
        run.process.send_signal(signal.SIGTERM)
        run.end(60)
        if left := run.left_behind() + [str(found) for found in processes_of(run.run_id)]:
            raise Broken(f"left behind: {left}")


class FaultEpisodes(EpisodesRun):
    """Random faults in random phases, several at a time; or each of `deck`, in any phase, until it has fired."""

    def __init__(self, cwd: Path, shape: str, seed: int, deck: Sequence[str] = ()) -> None:
        super().__init__(cwd, shape, seed)
        self.deck, self.only = list(deck), bool(deck)
        self.episodes: list[Episode] = []
        self.played: list[Episode] = []
        self.dead: dict[tuple[int, int], float] = {}
        self.at_once = max(1, self.engines - 1)

    def round(self, view: PipelineView, wanted: int) -> None:
        self._settle(view)
        for _ in range(2):
            if len(self.episodes) < min(self.at_once, wanted - self.tally.done):
                self._hurt(view)
        self._no_partial_group(view)
        if self.random.random() < 0.3:
            self.empty_where_granted(view)

    def undo(self) -> None:
        for episode in self.episodes:
            for pid in episode.undo:
                deliver(pid, signal.SIGCONT)

    def _settle(self, view: PipelineView) -> None:
        """Which episodes have come to their end."""
        now = time.monotonic()
        for episode in list(self.episodes):
            engine = view.engines[episode.rank]
            episode.fired = episode.fired or engine.incarnation > episode.life
            if episode.fired and engine.state in ("serving", "paused"):
                self.episodes.remove(episode)
                self.played.append(episode)
                self.tally.done += 1
                self.tally.seconds.append(now - episode.began)
                self.tally.matrix[f"{episode.fault} while {episode.phase}"] += 1
            elif not episode.fired and episode.fault in WAITING and now - episode.began > SKIP_S:
                self.episodes.remove(episode)
                self.tally.skipped += 1
                self.deck += [episode.fault] if self.only else []
                self.turn(episode.rank, engine.incarnation, die_at="", die_after="", hang_at="", release="ok")
            elif now - episode.began > DEADLINE_S:
                assert self.run is not None
                raise Broken(f"{episode} is not over after {DEADLINE_S:.0f} s; {engine}\n{self.run.tail()}")

    def _hurt(self, view: PipelineView) -> None:
        busy = {episode.rank for episode in self.episodes}
        alive = [
            engine for engine in view.engines if engine.rank not in busy and engine.pids and engine.state not in ("quarantined", "stuck")
        ]
        if not alive or (self.only and not self.deck):
            return
        engine = self.random.choice(alive)
        fault = self.deck[0] if self.deck else self.random.choice(list(FAULTS))
        episode = Episode(fault, engine.state, engine.rank, engine.incarnation, time.monotonic())
        self.script(engine.rank)
        if self._begin(fault, engine, episode):
            self.episodes.append(episode)
            del self.deck[:1]

    def _begin(self, fault: str, engine: EngineView, episode: Episode) -> bool:
        pid = self.random.choice(engine.pids)
        rank, life = engine.rank, engine.incarnation
        match fault:
            case "kill":
                return deliver(pid, signal.SIGKILL)
            case "stop":
                episode.undo.append(pid)
                return deliver(pid, signal.SIGSTOP)
            case "leave":
                return self.turn(rank, life, exit_after=0.0)
            case "hang" | "reset":
                return self.turn(rank, life, generate=fault, health_generate=self.random.choice(["lie", fault]))
            case "noop":
                return rank == 0 and self.turn(rank, life, release="noop")
            case "die_at" | "die_after" | "hang_at":
                paths = AWAKE + (ASLEEP if rank == 0 else ())  # the others' GPUs are nobody's but theirs
                return self.turn(rank, life, **{fault: self.random.choice(paths)})
            case "again":  # the next life fails as well, at its start
                self.script(rank, {"life": life + 1, "set": {"start_exit": 9}})
            case _:
                self.script(rank, {"life": life + 1, "member": 0, "set": {"boot_503": self.random.choice([0.3, 0.3, 0.3, 60.0])}})
        return deliver(pid, signal.SIGKILL)

    def _no_partial_group(self, view: PipelineView) -> None:
        """A group of which a member is dead is not served from."""
        now = time.monotonic()
        for engine in view.engines:
            key = engine.rank, engine.incarnation
            if engine.state == "serving" and any((stat := read_stat(pid)) is None or not stat.alive for pid in engine.pids):
                if now - self.dead.setdefault(key, now) > UNROUTED_S:
                    raise Broken(f"a member of {engine} is dead, and the group still serves")
            else:
                self.dead.pop(key, None)

    def verdict(self, failures: list[dict[str, object]]) -> None:
        causes = {(record["engine"], record["incarnation"]): record["cause"] for record in failures}
        why = {(record["engine"], record["incarnation"]): str(record["why"]) for record in failures}
        for episode in self.played:
            cause = causes.pop((episode.rank, episode.life), None)
            if cause is None:
                raise Broken(f"{episode}: the log knows of no failure of that life")
            if cause not in FAULTS[episode.fault]:
                raise Broken(f"{episode}: failed by {cause}, which is not what was done to it")
        retried = {"again", "late start"}
        everybody = [*self.played, *self.episodes]  # some are under way when TERM ends the run
        expected = {(episode.rank, episode.life + (episode.fault in retried)) for episode in everybody} | {
            (e.rank, e.life) for e in everybody
        }
        others = causes.keys() - expected
        self.tally.others, self.tally.why = len(others), sorted(why[life] for life in others)


def deliver(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
