"""No sample is lost or doubled: random drains and `kill -9` of engines under load, through a real supervisor, gateway and real engines.

    bin/check --long drains [embedded|sglang] [DRAINS [KILLS]]     default: embedded, 200 and 50; SGLang wants TRAINSHED_SGLANG=ENV

A case is one run with 40 drains (SGLang: 100) and its share of the kills: engines that serve requests are paused or ended by the operator
at random moments and come back a little later, others lose a random process of theirs to `kill -9`, and all the while the trainer takes a
GPU for training now and then (the scheduler preempts the engine there) and publishes the same weights anew. Every line of every answer is
counted and compared with the undisturbed sample (`harness/checking_trainer.py`): the embedded engine's bit for bit with its log-probs; SGLang's, float32 and
greedy, token for token or first differing where the two best log-probs are less than 1e-4 apart. Only what hit an engine with requests in
flight counts.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.campaigns.harness.campaign import CHECKOUT, run
from supervisor.observe.control_socket import ActRequest, Declined, Verb, ask, parse_target
from supervisor.observe.status import EngineView, PipelineView
from tests.harness.sglang import models
from tests.harness.sglang.served import REAL
from tests.harness.supervised_run import Run

CONFIGURATION = """
[host]
virtual = {gpus}
[scheduler]
minimum_hold_s = 0.1
[health]
restarts = 1000000
restart_window_s = 0.001
"""
PIPELINE = """
[[pipeline]]
name = "{name}"
seed = {seed}
[pipeline.engine]
kind = "{kind}"
{python}
model = "{model}"
gpus = {gpus}
slots = 16
context = 128
[pipeline.trainer]
gpus = [{train}]
command = ["{interpreter}", "{asker}"]
steps = 1000000
options = {{ samples = {samples}, tokens = {tokens}, exact = {exact}, least_s = {lease[0]}, most_s = {lease[1]} }}
"""


@dataclass(frozen=True)
class Kind:
    """`case`: drains of one run; `ends`: share of the drains that end the engine's processes, which then start anew; `wait_s`: between two
    disturbances; `away_s`: how long an engine is held; `lease_s`: between two leases of the trainer's; `stall_s`: when not one sample has
    ended for so long it hangs.
    """

    case: int
    ends: float
    names: tuple[str, ...]
    gpus: int
    samples: int
    tokens: int
    wait_s: tuple[float, float]
    away_s: tuple[float, float]
    lease_s: tuple[float, float]
    stall_s: float


KINDS = {
    "embedded": Kind(40, 0.25, ("p1", "p2"), 3, 96, 64, (0.05, 0.5), (0.02, 0.6), (0.2, 2.0), 120.0),
    "sglang": Kind(100, 0.02, ("p1",), 2, 96, 96, (0.3, 3.0), (0.1, 2.0), (5.0, 15.0), 420.0),
}


class Broken(AssertionError):
    """A promise was broken."""


@dataclass
class Tally:
    drains: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)


class Drained:
    """One run, hurt until `drains` and `kills` are done."""

    def __init__(self, cwd: Path, kind: str, seed: str) -> None:
        self.kind = KINDS[kind]
        self.random = random.Random(seed)
        self.tally = Tally()
        self.held: dict[tuple[str, int], float] = {}
        model = models.dense(cwd / "model", seed=3)
        python = f'python = "{REAL}/bin/python"\nargs = ["--dtype", "float32"]' if kind == "sglang" else ""
        parts = [CONFIGURATION.format(gpus=self.kind.gpus)]
        for index, name in enumerate(self.kind.names):
            parts.append(
                PIPELINE.format(
                    name=name, seed=index + 1, kind=kind, python=python, model=model, gpus=list(range(self.kind.gpus)), train=index,
                    interpreter=sys.executable, asker=CHECKOUT / "bench" / "campaigns" / "harness" / "checking_trainer.py", samples=self.kind.samples,
                    tokens=self.kind.tokens, lease=self.kind.lease_s, exact=str(kind == "embedded").lower(),
                )
            )  # fmt: skip
        file = cwd / "drains.toml"
        file.write_text("".join(parts))
        self.run = Run(cwd, file)

    def play(self, drains: int, kills: int) -> dict[str, object]:
        """Raises Broken. The run is over when this returns."""
        try:
            self._until(lambda: all((self._folder(name) / "calm").exists() for name in self.kind.names), "the undisturbed samples")
            self._hurt(drains, kills)
            for name in self.kind.names:
                (self._folder(name) / "enough").touch()
            self._until(lambda: self.run.process.poll() is not None, "the end")
            if (code := self.run.end()) != 0:
                raise Broken(f"the run ended with {code}:\n{self._said()}")
            if left := self.run.left_behind():
                raise Broken(f"left behind: {left}")
        finally:
            self.run.stop()
        return self._counted()

    def _folder(self, name: str) -> Path:
        return self.run.directory / "checkpoints" / name

    def _until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.kind.stall_s
        while not true():
            if time.monotonic() > deadline:
                raise Broken(f"waited {self.kind.stall_s:.0f} s for {what}:\n{self._said()}")
            time.sleep(0.05)
            if self.run.process.poll() is None:
                self._views()

    # -- hurting

    def _hurt(self, drains: int, kills: int) -> None:
        due, alive, before = 0.0, time.monotonic(), [(0, 0)]
        while sum(self.tally.drains.values()) < drains or sum(self.tally.kills.values()) < kills or self.held:
            now = time.monotonic()
            for (name, rank), until in list(self.held.items()):
                if now >= until:
                    self._act("resume", name, rank)
                    del self.held[name, rank]
            views = self._views()
            if now >= due and (found := self._busy(views)):
                name, engine = found
                left = max(0, kills - sum(self.tally.kills.values())), max(0, drains - sum(self.tally.drains.values()))
                if sum(left) and self.random.random() < left[0] / sum(left):
                    if self._others_serve(views, name, engine.rank):
                        self._kill(engine)
                elif left[1]:
                    self._drain(name, engine, now)
                due = now + self.random.uniform(*self.kind.wait_s)
            done = [(view.step, view.samples_done) for view in views]
            if done != before:
                alive, before = now, done
            elif now - alive > self.kind.stall_s:
                raise Broken(f"no sample has ended for {self.kind.stall_s:.0f} s:\n{self._said()}")
            time.sleep(self.random.uniform(0.0, 0.03))

    def _views(self) -> Sequence[PipelineView]:
        snapshot = self.run.status()
        if snapshot is None:  # it ends, or it has crashed: its exit code tells
            if (code := self.run.process.poll()) not in (None, 0):
                raise Broken(f"the supervisor ended with {code}:\n{self._said()}")
            return ()
        for view in snapshot.pipelines:
            if view.trainer.incarnation != 1 and view.trainer.state != "finished":
                raise Broken(f"the trainer of {view.name} has failed:\n{self._said()}")
        return snapshot.pipelines

    def _busy(self, views: Sequence[PipelineView]) -> tuple[str, EngineView] | None:
        """An engine with requests in flight that is not held, if there is one."""
        busy = [
            (view.name, engine)
            for view in views
            for engine in view.engines
            if engine.state in ("serving", "draining", "loading weights") and engine.in_flight and (view.name, engine.rank) not in self.held
        ]
        return self.random.choice(busy) if busy else None

    def _others_serve(self, views: Sequence[PipelineView], name: str, rank: int) -> bool:
        """Else kills would be as fast as starts, and no engine would live long enough to end a sample."""
        return any(engine.state == "serving" and engine.rank != rank for view in views if view.name == name for engine in view.engines)

    def _drain(self, name: str, engine: EngineView, now: float) -> None:
        verb: Verb = "drain" if self.random.random() < self.kind.ends else "pause"
        if self._act(verb, name, engine.rank):
            self.tally.drains[f"{verb} while {engine.state}"] += 1
            self.held[name, engine.rank] = now + self.random.uniform(*self.kind.away_s)

    def _act(self, verb: Verb, name: str, rank: int) -> bool:
        reply = ask(self.run.directory / "control.sock", ActRequest(verb, parse_target(f"{name}/engine/{rank}")))
        if isinstance(reply, Declined) and verb == "resume":
            raise Broken(f"{name}/engine/{rank} cannot be resumed: {reply.text}")
        return not isinstance(reply, Declined)

    def _kill(self, engine: EngineView) -> None:
        """Any process of its tree."""
        try:
            tree = [found for pid in engine.pids for found in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
            victim = self.random.choice([found for found in tree if "resource_tracker" not in " ".join(found.cmdline())])
            os.kill(victim.pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError, IndexError):  # it has just ended
            return
        self.tally.kills[engine.state] += 1

    # -- what came of it

    def _record(self, name: str) -> Path:
        return self._folder(name) / "rollouts.jsonl"

    def _said(self) -> str:
        logs = [path for name in self.kind.names for path in self.run.directory.glob(f"logs/{name}.trainer.*")]
        return "\n".join([self.run.tail(), *(f"{path.name}: {path.read_text(errors='replace')[-3000:]}" for path in logs)])

    def _counted(self) -> dict[str, object]:
        rollouts = [json.loads(line) for name in self.kind.names for line in self._record(name).read_text().splitlines()]
        last = [json.loads(self._record(name).read_text().splitlines()[-1]) for name in self.kind.names]
        log = self.run.log()
        return {
            "drains": sum(self.tally.drains.values()), "kills": sum(self.tally.kills.values()), "rollouts": len(rollouts),
            "samples": sum(line["samples"] for line in rollouts), "interrupted": sum(line["interrupted"] for line in rollouts),
            "seams": sum(line["spans"] - line["samples"] for line in rollouts), "most_spans": max(line["most"] for line in rollouts),
            "close": sum(line["close"] for line in last), "logprob_off": max(line["logprob_off"] for line in last),
            "drains_in_all": sum(record["event"] == "engine is draining" for record in log),
            "leases": sum(line.get("leases", 0) for line in last), "published": sum(line.get("published", 0) for line in last),
            "how": {**self.tally.drains, **{f"kill while {state}": count for state, count in self.tally.kills.items()}},
        }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    kind = next((word for word in arguments if word in KINDS), "embedded")
    numbers = [int(word.replace(",", "")) for word in arguments if word not in KINDS]
    drains = numbers[0] if numbers else 200
    kills = numbers[1] if len(numbers) > 1 else -(-drains // 4)
    if kind == "sglang" and not REAL:
        sys.exit("drains: TRAINSHED_SGLANG names no environment; bin/sglang-cpu makes one")

    cases = -(-drains // KINDS[kind].case)

    def case(id: str) -> dict[str, object]:
        with tempfile.TemporaryDirectory(prefix="drains-") as folder:
            return Drained(Path(folder), kind, f"{kind}:{id}").play(-(-drains // cases), -(-kills // cases))

    results = run(f"drains-{kind}", [f"run-{number}" for number in range(cases)], case)
    names = ("drains", "kills", "drains_in_all", "samples", "interrupted", "seams", "close")
    total = {name: sum(int(str(result[name])) for result in results) for name in names}
    print(f"{kind}: {total['drains']} drains (and {total['drains_in_all'] - total['drains']} by the scheduler), {total['kills']} kill -9:")
    print(
        f"of {total['samples']} samples none was lost, doubled or wrong; {total['interrupted']} were interrupted, at {total['seams']} seams"
    )
    if kind == "sglang":
        print(f"{total['close']} first differ where the two best log-probs are less than 1e-4 apart")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
