"""Randomised faults in real processes: scripted engine groups under a real supervisor, hurt at random moments, several at a time.

    bin/check --long episodes [EPISODES [slow]]     until so many in all (default 10,000); goes on where it was
    bin/check --long episodes --seed SHAPE:SEED     one run of them again

A run is one supervisor that lives through some 50 episodes; what its trainer gets is checked token by token. Each episode needs a witness
that the fault fired (the next incarnation) and that recovery ran (that life serving or asleep). `slow` episodes hurt nobody: engines that
stop for less than the probes' budget must not be restarted. What was counted stands in runs/campaigns, one line a run.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from _campaign import CHECKOUT, RESULTS, commit

sys.path.insert(0, str(CHECKOUT / "tests" / "host"))
from faulty import Faulty
from supervised import Run, processes_of

from supervisor.runtime.snapshot import EngineView, PipelineView
from supervisor.runtime.virtual_gpus import held_by

RECORD = RESULTS / "episodes.jsonl"
SHAPES = {"single": ("one", 1, 5), "pairs": ("per-gpu", 2, 3), "bundle": ("one", 2, 3), "fours": ("per-gpu", 4, 2), "eights": ("per-gpu", 8, 1)}
"""(members, tp, engines)"""
A_RUN = 50
AT_ONCE = 3
DEADLINE_S = 40.0
"""Of one episode; the sum of this run's own deadlines is below it."""
SKIP_S = 6.0
"""A fault that waits for a call which does not come in this life has not fired: the episode is not counted."""
ASLEEP = ("/release_memory_occupation", "/resume_memory_occupation", "/flush_cache")
AWAKE = ("/update_weights_from_disk", "/pause_generation", "/continue_generation")
FAULTS = ("kill", "stop", "leave", "hang", "reset", "die_at", "die_after", "hang_at", "noop", "again", "late start")


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
    fired: float | None = None


@dataclass
class Tally:
    shape: str
    seed: int
    done: int = 0
    skipped: int = 0
    checks: int = 0
    seconds: list[float] = field(default_factory=list)
    matrix: Counter[str] = field(default_factory=Counter)
    samples: int = 0

    def line(self) -> str:
        worst = round(max(self.seconds, default=0.0), 3)
        about = {"shape": self.shape, "seed": self.seed, "done": self.done, "skipped": self.skipped, "worst_s": worst}
        return json.dumps({**about, "checks": self.checks, "samples": self.samples, "matrix": dict(self.matrix), "commit": commit()})


class Player:
    """One run."""

    def __init__(self, cwd: Path, shape: str, seed: int) -> None:
        self.members, self.tp, self.engines = SHAPES[shape]
        self.random = random.Random(f"{shape}:{seed}")
        self.tally = Tally(shape, seed)
        self.faulty = Faulty(
            cwd, members=self.members, tp=self.tp, gpus=self.engines * self.tp, slots=8, steps=10**6, target=12 * self.engines, tokens=12,
            health="restart_window_s = 0.001\nrelease_deadline_s = 1.0\nstart_s = 3.0\npause_s = 1.0\nwake_s = 1.0\nload_s = 1.0\nsilence_s = 1.0",
            restarts=10**6,
        )  # fmt: skip
        file = self.faulty.file
        file.write_text(file.read_text().replace("train = true", "train = true, training = 0.03"))
        for rank in range(self.engines):
            self.script(rank)
        self.episodes: list[Episode] = []
        self.run: Run | None = None

    def script(self, rank: int, *rules: dict[str, object]) -> None:
        self.faulty.script(rank, *rules, {"set": {"token_delay": 0.005}})

    # -- one after the other

    def play(self, episodes: int, *, slow: bool = False) -> Tally:
        """Raises Broken. The run is over when this returns."""
        self.run = self.faulty.start()
        try:
            self.run.when("p1", lambda view: view.step >= 1, "the first step")
            descriptors = self._descriptors()
            while self.tally.done < episodes:
                view = self.view()
                self._settle(view)
                if len(self.episodes) < AT_ONCE and self.tally.done + len(self.episodes) < episodes:
                    self._slow(view) if slow else self._hurt(view)
                self._empty_where_granted()
                time.sleep(self.random.uniform(0.0, 0.05))
            self._end(descriptors)
        finally:
            for episode in self.episodes:
                self._undo(episode)
            self.run.stop()
        return self.tally

    def view(self) -> PipelineView:
        assert self.run is not None
        snapshot = self.run.status()
        if snapshot is None or self.run.process.poll() is not None:
            raise Broken(f"the supervisor is gone:\n{self.run.tail()}")
        view = snapshot.pipelines[0]
        if view.trainer.incarnation != 1:
            raise Broken(f"the trainer was hurt:\n{self.run.tail()}")
        return view

    def _settle(self, view: PipelineView) -> None:
        """Which episodes have come to their end."""
        now = time.monotonic()
        for episode in list(self.episodes):
            engine = view.engines[episode.rank]
            if episode.fired is None and engine.incarnation > episode.life:
                episode.fired = now
            if episode.fired is not None and engine.state in ("serving", "paused"):
                self.episodes.remove(episode)
                self.tally.done += 1
                self.tally.seconds.append(now - episode.began)
                self.tally.matrix[f"{episode.fault} while {episode.phase}"] += 1
            elif episode.fired is None and episode.fault in ("die_at", "die_after", "hang_at", "noop") and now - episode.began > SKIP_S:
                self._skip(episode)
            elif now - episode.began > DEADLINE_S:
                assert self.run is not None
                raise Broken(f"{episode} is not over after {DEADLINE_S:.0f} s; {engine}\n{self.run.tail()}")

    def _skip(self, episode: Episode) -> None:
        self.episodes.remove(episode)
        self.tally.skipped += 1
        self._turn(episode.rank, die_at="", die_after="", hang_at="", release="ok")

    # -- faults

    def _hurt(self, view: PipelineView) -> None:
        busy = {episode.rank for episode in self.episodes}
        alive = [
            engine for engine in view.engines if engine.rank not in busy and engine.pids and engine.state not in ("quarantined", "stuck")
        ]
        if not alive:
            return
        engine = self.random.choice(alive)
        fault = self.random.choice(FAULTS)
        episode = Episode(fault, engine.state, engine.rank, engine.incarnation, time.monotonic())
        self.script(engine.rank)
        if self._begin(fault, engine, episode):
            self.episodes.append(episode)

    def _begin(self, fault: str, engine: EngineView, episode: Episode) -> bool:
        pid = self.random.choice(engine.pids)
        match fault:
            case "kill":
                return _signal(pid, signal.SIGKILL)
            case "stop":
                episode.undo.append(pid)
                return _signal(pid, signal.SIGSTOP)
            case "leave":
                return self._turn(engine.rank, exit_after=0.0)
            case "hang":
                return self._turn(engine.rank, generate="hang", health_generate=self.random.choice(["lie", "hang"]))
            case "reset":
                return self._turn(engine.rank, generate="reset", health_generate=self.random.choice(["lie", "reset"]))
            case "noop":
                return engine.rank == 0 and self._turn(engine.rank, release="noop")
            case "die_at" | "die_after" | "hang_at":
                paths = AWAKE + (ASLEEP if engine.rank == 0 else ())  # the others' GPUs are nobody's but theirs
                return self._turn(engine.rank, **{fault: self.random.choice(paths)})
            case "again":  # the next life fails as well, at its start
                self.script(engine.rank, {"life": engine.incarnation + 1, "set": {"start_exit": 9}})
                return _signal(pid, signal.SIGKILL)
            case _:
                self.script(
                    engine.rank, {"life": engine.incarnation + 1, "member": 0, "set": {"boot_503": self.random.choice([0.5, 60.0])}}
                )
                return _signal(pid, signal.SIGKILL)

    def _slow(self, view: PipelineView) -> None:
        """Stopped for less than any budget: nobody may be restarted for it."""
        rank = self.random.randrange(self.engines)
        engine = view.engines[rank]
        if not engine.pids or engine.state != "serving":
            return
        pid = self.random.choice(engine.pids)
        if _signal(pid, signal.SIGSTOP):
            time.sleep(self.random.uniform(0.05, 0.6))
            _signal(pid, signal.SIGCONT)
            after = self.view().engines[rank]
            if after.incarnation != engine.incarnation:
                raise Broken(f"engine {rank} was only slow, and was restarted: {after.note}")
            self.tally.done += 1
            self.tally.matrix[f"slow while {engine.state}"] += 1

    def _turn(self, rank: int, **knobs: object) -> bool:
        assert self.run is not None
        life = self.view().engines[rank].incarnation
        try:
            self.faulty.turn(rank, life=life, **knobs)
        except OSError:  # it is not there any more, or not yet
            return False
        return True

    def _undo(self, episode: Episode) -> None:
        for pid in episode.undo:
            _signal(pid, signal.SIGCONT)

    # -- promises

    def _empty_where_granted(self) -> None:
        """While the trainer has its GPU, no engine holds a byte there, whatever the supervisor believes."""
        assert self.run is not None
        before = self.view()
        if "train" not in before.trainer.holds:
            return
        held = {pid: sum(held_by(pid).get(0, {}).values()) for engine in before.engines for pid in engine.pids}  # type: ignore[call-overload]
        after = self.view()
        if "train" in after.trainer.holds and after.step == before.step and after.weight_version == before.weight_version:
            self.tally.checks += 1
            if any(held.values()):
                raise Broken(f"GPU 0 is the trainer's, and engines hold {held} bytes there")

    def _descriptors(self) -> int:
        assert self.run is not None
        return len(os.listdir(f"/proc/{self.run.supervisor_pid()}/fd"))

    def _end(self, descriptors: int) -> None:
        assert self.run is not None
        for rank in range(self.engines):
            self.script(rank)
        self.run.when("p1", lambda view: all(engine.state in ("serving", "paused") for engine in view.engines), "everybody being well", 60)
        now = self._descriptors()
        if now > descriptors + 8 * self.engines * self.tp:
            raise Broken(f"{now} descriptors are open, {descriptors} were at the beginning")
        self.tally.samples = sum(line["samples"] for line in self.faulty.samples(self.run))
        for line in self.faulty.samples(self.run):
            if {version for _, _, version in line["spans"]} != {line["step"]}:
                raise Broken(f"rollout {line['step']} was made by the versions in {line['spans']}")
        self.run.process.send_signal(signal.SIGTERM)
        self.run.end(30)
        if left := self.run.left_behind() + [str(found) for found in processes_of(self.run.run_id)]:
            raise Broken(f"left behind: {left}")


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def play(shape: str, seed: int, episodes: int = A_RUN, *, slow: bool = False) -> Tally:
    """One run in a folder of its own. Raises Broken (or AssertionError)."""
    with tempfile.TemporaryDirectory(prefix="episodes-") as folder:
        return Player(Path(folder), shape, seed).play(episodes, slow=slow)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--seed"]:
        shape, _, seed = arguments[1].partition(":")
        print(play(shape, int(seed)).line())
        return 0
    slow = "slow" in arguments
    numbers = [int(word.replace(",", "")) for word in arguments if word != "slow"]
    wanted = numbers[0] if numbers else 10_000
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = RECORD.with_name("slow.jsonl") if slow else RECORD
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = sum(line["done"] for line in lines)
    seed = len(lines)
    failed = 0
    while done < wanted:
        shape = list(SHAPES)[seed % len(SHAPES)]
        try:
            tally = play(shape, seed, slow=slow)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {shape}:{seed}: {error}", flush=True)
            tally = Tally(shape, seed)
        done += tally.done
        seed += 1
        with record.open("a") as file:
            file.write(tally.line() + "\n")
        print(f"{done:7,} episodes, {failed} runs failed; {shape}:{seed - 1}: worst {max(tally.seconds, default=0.0):.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
