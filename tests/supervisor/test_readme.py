"""The README's own file is sound where its paths exist, and means what the text says."""

import re
import sys
import textwrap
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.config.schema.findings import GpuFact
from tests.harness.supervised_run import Run
from trainers.protocol.ids import GpuId

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_file_of_ones_own_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^   ```toml\n(.*?)^   ```", README, re.MULTILINE | re.DOTALL)
    model, sglang, own = tmp_path / "model", tmp_path / "sglang", tmp_path / "own" / "python"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 32768}')
    sglang.write_text("#!/bin/sh\necho 0.5.23\n")
    own.parent.mkdir()
    own.write_text("#!/bin/sh\n")
    for program in (sglang, own):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(own.parent))
    (tmp_path / "train.py").write_text("")
    text = block.replace("/opt/sglang/bin/python", str(sglang)).replace("/models/Qwen2.5-1.5B-Instruct", str(model))
    (tmp_path / "mine.toml").write_text(text)
    loaded = load(tmp_path / "mine.toml", lambda host: [GpuFact(GpuId(gpu), "GPU", 80 << 30) for gpu in range(4)])
    math, code = loaded.config.pipeline
    assert math.trainer.command == [str(own), "train.py", "--task", "math"]
    assert (math.engine.context, math.engine.kv_tokens) == (8192, 64 * 8192)
    assert (math.engine.tp, code.engine.tp) == (2, 1)


def test_every_page_that_is_linked_is_there() -> None:
    for target in re.findall(r"\]\(([^):]+\.md)\)", README):
        assert (Path(__file__).resolve().parents[2] / target).is_file(), target


PRELUDE = """
import sys

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
prompts = [[4, 5, 6]] * 8
path = {path!r}


def build():
    model = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32)
    return model, torch.optim.AdamW(model.parameters())


def load_checkpoint(path):
    assert path is None


def train(samples):
    assert len(samples) == 8
    return 0.25 + step / 2, 0.5


def save(path):
    with open(path, "w") as file:
        file.write(str(step))


"""
CONFIGURATION = """
[host]
virtual = 1
[[pipeline]]
name = "p1"
[pipeline.engine]
model = { make = "trainers.grpo.tiny:make", options = { context = 256 } }
gpus = [0]
context = 160
[pipeline.trainer]
gpus = [0]
command = ["python3", "train.py"]
steps = 2
"""


@pytest.mark.slow
def test_the_recipe_as_it_is_written_shows_a_reward(tmp_path: Path) -> None:
    """A user's functions are ours here; the calls are the README's."""
    (block,) = re.findall(r"^   ```python\n(.*?)^   ```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "train.py").write_text(PRELUDE.format(path=str(tmp_path / "saved")) + textwrap.dedent(block))
    file = tmp_path / "recipe.toml"
    file.write_text(CONFIGURATION.replace('"python3"', f'"{sys.executable}"'))
    run = Run(tmp_path, file)
    try:
        assert run.end() == 0, run.tail()
    finally:
        run.stop()
    told = run.summary["p1"]
    assert (told["steps"], told["first_reward"], told["last_reward"]) == (2, 0.25, 0.75)
    assert "0.250 → 0.750" in run.output.read_text()
