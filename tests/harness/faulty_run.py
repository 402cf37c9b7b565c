"""Runs whose engines are scripted (`tests/harness/faulty_engine.py`) and whose trainer computes nothing: a run in a second, a restart in 50 ms."""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.harness.supervised_run import CHECKOUT, Run

HARNESS = CHECKOUT / "tests" / "harness"
PYTHON = getattr(sys, "_base_executable", sys.executable)
"""The interpreter itself: a virtual environment's costs the engine another 20 ms."""

HEALTH = """
probe_s = 0.1
probe_timeout_s = 0.4
probe_failures = 3
progress_s = 0.4
progress_timeout_s = 0.6
progress_failures = 3
silence_s = 2.0
canary_s = 0.6
asleep_s = 0.3
lag_s = 0.3
grace_s = 1.0
start_s = 10.0
drain_s = 3.0
pause_s = 3.0
wake_s = 3.0
load_s = 3.0
release_deadline_s = 3.0
"""
"""The defaults' ratios, some fifty times faster."""

PIPELINE = """
[[pipeline]]
name = "{name}"
seed = 7
[pipeline.engine]
kind = "sglang"
python = "{python}"
model = "{model}"
gpus = {gpus}
tp = {tp}
members = "{members}"
slots = {slots}
context = 64
args = ["--scripts", "{scripts}"]
env = {{ FAULTY_PYTHON = "{interpreter}" }}
[pipeline.trainer]
gpus = {train}
command = ["{interpreter}", "-S", "{trainer}"]
steps = {steps}
options = {{ target = {target}, tokens = {tokens}, train = {trains} }}
"""


class Faulty:
    """The files of such a run in `cwd`; `script` before `start`."""

    def __init__(
        self, cwd: Path, *, names: tuple[str, ...] = ("p1",), gpus: int = 2, tp: int = 1, members: str = "one", slots: int = 8, steps: int = 2,
        target: int = 16, tokens: int = 8, trains: bool = True, train: str = "[0]", health: str = "", restarts: int = 3,
        ports: tuple[int, int] = (20000, 29999),
    ) -> None:  # fmt: skip
        self.cwd = cwd
        self.runs: list[Run] = []
        self.scripts = cwd / "scripts"
        (self.scripts / "live").mkdir(parents=True)
        (cwd / "model").mkdir()
        (cwd / "model" / "config.json").write_text('{"model_type": "scripted"}')
        changed = {line.split(" =")[0] for line in health.splitlines()}
        kept = [line for line in HEALTH.splitlines() if line.split(" =")[0] not in changed]
        parts = [
            f"[host]\nvirtual = {gpus}\nports = {list(ports)}\nprewarm = false\n[health]\nrestarts = {restarts}\n",
            "\n".join(kept),
            "\n",
            health,
            "\n",
        ]
        for name in names:
            parts.append(
                PIPELINE.format(
                    name=name, python=HARNESS / "faulty_python", model=cwd / "model", gpus=list(range(gpus)), tp=tp, members=members, slots=slots,
                    scripts=self.scripts, interpreter=PYTHON, train=train, trainer=HARNESS / "faulty_trainer.py", steps=steps, target=target,
                    tokens=tokens, trains=str(trains).lower(),
                )
            )  # fmt: skip
        self.file = cwd / "faulty.toml"
        self.file.write_text("".join(parts))

    def script(self, rank: int, *rules: dict[str, Any], pipeline: str = "p1") -> None:
        """What engine `rank` shall do wrong: `{"life": 1, "member": 0, "set": {…}}`, in place before it starts."""
        path = self.scripts / f"{pipeline}.{rank}.json"
        path.with_suffix(".new").write_text(json.dumps(rules))
        os.rename(path.with_suffix(".new"), path)

    def start(self) -> Run:
        self.runs.append(Run(self.cwd, self.file))
        return self.runs[-1]

    def live(self, rank: int, life: int = 1, member: int = 0, pipeline: str = "p1") -> dict[str, int]:
        """`pid` and `port` of a member."""
        path = self.scripts / "live" / f"{pipeline}.{rank}.{member}.{life}"
        found: dict[str, int] = json.loads(path.read_text())
        return found

    def turn(self, rank: int, life: int = 1, member: int = 0, pipeline: str = "p1", **knobs: Any) -> dict[str, Any]:
        """Change knobs of a living member; what it has been asked so far."""
        port = self.live(rank, life, member, pipeline)["port"]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/script", json.dumps(knobs).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=5) as reply:
            answer: dict[str, Any] = json.loads(reply.read())
            return answer

    def samples(self, run: Run, pipeline: str = "p1") -> list[dict[str, Any]]:
        lines = (run.directory / "checkpoints" / pipeline / "samples.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
