"""The README's own file is sound where its paths exist, and means what the text says."""

import re
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.config.schema.findings import GpuFact
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
