"""Whole runs on a scripted box (`gpu_box.py`), with default settings: two pipelines on its two cards, engines of SGLang's dialect on one card and on
both, trainers that make their context at the first lease and before it. What is measured, lent and learned is what it would be on the cards."""

import json
from pathlib import Path

from tests.harness.faulty_run import HARNESS, PYTHON
from tests.harness.gpu_box import Box
from tests.harness.supervised_run import Run

PIPELINE = """
[[pipeline]]
name = "{name}"
seed = 7
[pipeline.engine]
kind = "sglang"
python = "{python}"
model = "{model}"
gpus = [0, 1]
tp = {tp}
slots = 8
context = 64
args = ["--scripts", "{scripts}"]
env = {{ FAULTY_PYTHON = "{interpreter}", SCRIPTED_BOX = "{box}" }}
[pipeline.trainer]
gpus = [{train}]
command = ["{interpreter}", "-S", "{trainer}"]
steps = {steps}
options = {{ target = 8, tokens = 6, touch = {touch} }}
env = {{ SCRIPTED_BOX = "{box}" }}
"""


class BoxRun:
    """The files of such a run in `cwd`. `host` and `health` are lines of these tables; by default there are none."""

    def __init__(
        self, cwd: Path, box: Box, *, steps: int = 5, host: str = "", health: str = "", ports: tuple[int, int] = (20000, 29999)
    ) -> None:
        self.cwd, self.box, self.steps = cwd, box, steps
        self.scripts = cwd / "scripts"
        (self.scripts / "live").mkdir(parents=True)
        (cwd / "model").mkdir()
        (cwd / "model" / "config.json").write_text('{"model_type": "scripted"}')
        parts = [f"[host]\ngpus = {json.dumps(box.names)}\nports = {list(ports)}\nprewarm = false\n{host}\n[health]\n{health}\n"]
        for name, tp, train, touch in (("p1", 1, 0, "false"), ("p2", 2, 1, "true")):
            parts.append(
                PIPELINE.format(
                    name=name, python=HARNESS / "faulty_python", model=cwd / "model", tp=tp, scripts=self.scripts, interpreter=PYTHON, train=train,
                    trainer=HARNESS / "faulty_trainer.py", steps=steps, touch=touch, box=box.folder,
                )
            )  # fmt: skip
        self.started: list[Run] = []
        self.file = cwd / "box.toml"
        self.file.write_text("".join(parts))

    def start(self) -> Run:
        self.started.append(Run(self.cwd, self.file, env=self.box.env))
        return self.started[-1]
