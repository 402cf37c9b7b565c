"""`bin/supervise init` writes a first configuration for this machine, with a remark beside each line that somebody may want to change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from supervisor.config.schema.findings import GpuFact
from supervisor.config.schema.toml_text import shown


@dataclass(frozen=True, slots=True)
class Box:
    """What was found on this machine. `sglang` is an interpreter that has it, `model` a folder or a name in the local cache; None: none was found."""

    gpus: Sequence[GpuFact]
    sglang: str | None = None
    model: str | None = None


_VIRTUAL: Final = """\
# No GPU was found here. This file uses virtual ones (plain memory, measured as if it were a device's), so that it runs as it is.

[host]
virtual = 4                         # on a machine with GPUs: gpus = "auto"

[[pipeline]]
name = "p1"                         # what it is called in logs and commands: bin/supervise status p1
seed = 1

[pipeline.engine]
kind = "embedded"                   # a small engine that needs no GPU; with GPUs: "sglang"
model = { make = "trainers.grpo.tiny:make", options = { task = "parity", seed = 1 } }    # or the folder of a model
gpus = [0, 1, 2, 3]                 # where its engines may live: one engine for each `tp` of them
slots = 16                          # samples that one engine generates at once
context = 32                        # tokens of prompt and answer together

[pipeline.trainer]
entry = "trainers.grpo:main"        # built in; a script of your own: command = ["python", "train.py"]
gpus = [0, 1]                       # one rank for each
steps = 5
options = { task = "parity" }

[[pipeline]]
name = "p2"
seed = 2

[pipeline.engine]
kind = "embedded"
model = { make = "trainers.grpo.tiny:make", options = { task = "class", seed = 2 } }
gpus = [0, 1, 2, 3]
slots = 16
context = 32

[pipeline.trainer]
entry = "trainers.grpo:main"
gpus = [2, 3]
steps = 5
options = { task = "class" }
"""

_PIPELINE: Final = """
[[pipeline]]
name = "{name}"{name_remark}
seed = {seed}

[pipeline.engine]
kind = "sglang"
python = {python}{python_remark}
model = {model}{model_remark}
gpus = {all}                  # where its engines may live: one engine for each `tp` of them
tp = 1                              # GPUs of one engine: more for a model that does not fit on one
slots = 64                          # samples that one engine generates at once
context = 8192                      # tokens of prompt and answer together

[pipeline.trainer]
entry = "trainers.grpo:main"        # built in; a script of your own: command = ["python", "train.py"]
gpus = {own}                  # one rank for each
steps = 200
options = {{ task = "{task}", prompts = 16, group = 8, lr = 1e-6 }}
"""
_REST: Final = """
# [logging]
# level = "info"                    # what the console shows; the log file has everything

# [notify]
# command = ["sh", "-c", "echo $TRAINSHED_TEXT | mail -s trainshed-$TRAINSHED_EVENT me@example.org"]    # at failures, recoveries and the end
"""


def text(box: Box, name: str) -> str:
    """Return the file, which will be called `name`."""
    head = f"# Two runs that share this machine. `bin/supervise check {name}` says what it means, `bin/supervise {name}` runs it.\n"
    if not box.gpus:
        return head + _VIRTUAL + _REST
    listed = ", ".join(f"{gpu.id}: {gpu.name}" + (f" ({gpu.total_bytes >> 30} GiB)" if gpu.total_bytes else "") for gpu in box.gpus)
    host = f'# GPUs: {listed}\n\n[host]\ngpus = "auto"                       # every GPU of the machine; or [0, 1], or UUIDs from `nvidia-smi -L`\n'
    return head + host + _pipeline(box, "one", 1, "parity") + _pipeline(box, "two", 2, "class") + _REST


def _pipeline(box: Box, name: str, number: int, task: str) -> str:
    """Return one of two pipelines: engines everywhere, a trainer on its half (on a single GPU: on that one)."""
    ids = [int(gpu.id) for gpu in box.gpus]
    half = (len(ids) + 1) // 2
    own = ids[:half] if number == 1 else ids[half:] or ids
    change = "    # change this: "
    return _PIPELINE.format(
        name=name,
        name_remark="                        # what it is called in logs and commands" if number == 1 else "",
        seed=number,
        python=shown(box.sglang or "/opt/sglang/bin/python"),
        python_remark="" if box.sglang else f"{change}the interpreter of SGLang's own environment",
        model=shown(box.model or "/models/Qwen2.5-1.5B-Instruct"),
        model_remark="" if box.model else f"{change}a folder in Hugging Face layout, or a name in the local cache",
        all=ids,
        own=own,
        task=task,
    )
