"""How long a sequence may be, where the file does not say it: 64 for the small engine, what the model was made for with SGLang."""

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.load import load
from supervisor.config.machine.model_files import model_context
from supervisor.config.schema.findings import GpuFact
from supervisor.config.schema.tables import EngineTable
from supervisor.errors import ConfigError
from trainers.protocol.ids import GpuId

FILE = """
[host]
{host}
[[pipeline]]
name = "p1"
[pipeline.engine]
kind = "{kind}"
model = {model}
gpus = [0, 1]
python = "/bin/sh"
slots = 64
{more}
[pipeline.trainer]
gpus = [0]
entry = "trainers.grpo:main"
"""
SMALL = {
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "hidden_size": 1536,
    "max_position_embeddings": 32768,
}
"""Qwen2.5-1.5B: 28 KiB a token in 16 bits."""


def engine(folder: Path, config: dict[str, Any] | None = None, more: str = "", kind: str = "sglang", gib: int | None = None) -> EngineTable:
    model = '{ make = "trainers.grpo.tiny:make" }'
    if config is not None:
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text(json.dumps(config))
        with open(folder / "model" / "model.safetensors", "wb") as file:
            file.truncate(3 << 30)
        model = '"./model"'
    file_ = folder / "a.toml"
    file_.write_text(FILE.format(host='gpus = "auto"' if gib else "virtual = 2", kind=kind, model=model, more=more))
    if gib is None:
        return load(file_).config.pipeline[0].engine
    (folder / "python").write_text("#!/bin/sh\necho 0.5.23\n")
    (folder / "python").chmod(0o755)
    file_.write_text(file_.read_text().replace("/bin/sh", f"{folder}/python"))
    return load(file_, lambda host: [GpuFact(GpuId(gpu), "GPU", gib << 30) for gpu in range(2)]).config.pipeline[0].engine


def test_the_small_engine_keeps_its_small_default(tmp_path: Path) -> None:
    assert engine(tmp_path, kind="embedded").context == 64
    assert engine(tmp_path, SMALL, kind="embedded").context == 64


def test_with_sglang_the_model_says_it(tmp_path: Path) -> None:
    found = engine(tmp_path, SMALL)
    assert (found.context, found.kv_tokens) == (32768, 64 * 32768)
    assert engine(tmp_path, SMALL, "context = 4096").kv_tokens == 64 * 4096
    assert engine(tmp_path, SMALL, "kv_tokens = 20000").context == 20000, "no sequence is longer than the pool"
    assert engine(tmp_path, {"text_config": SMALL}).context == 32768


def test_the_pool_is_no_larger_than_the_gpus(tmp_path: Path) -> None:
    """Three quarters of 24 GiB, without 3 GiB of weights, at 28 KiB a token."""
    found = engine(tmp_path, SMALL, gib=24)
    assert found.kv_tokens == (15 << 30) // (28 << 10)
    assert engine(tmp_path, SMALL, gib=80).kv_tokens == 64 * 32768
    assert engine(tmp_path, SMALL, "tp = 2", gib=24).kv_tokens == (33 << 30) // (28 << 10)
    assert engine(tmp_path, SMALL, gib=2).kv_tokens == 32768, "one sequence at least; it does not fit, and the picture says so"
    assert engine(tmp_path, SMALL, "kv_tokens = 5000000", gib=24).kv_tokens == 5000000, "an operator is taken at their word"


@pytest.mark.parametrize("config", [None, {"hidden_size": 64}])
def test_where_nobody_says_it_the_file_must(tmp_path: Path, config: dict[str, Any] | None) -> None:
    with pytest.raises(ConfigError, match=r"pipeline p1: engine\.context: is missing.*context = 8192"):
        engine(tmp_path, config)
    assert engine(tmp_path, config, "context = 128").context == 128


@pytest.mark.parametrize("text", ["", "[]", '{"max_position_embeddings": "x"}', '{"max_position_embeddings": -1}', '{"text_config": 3}'])
def test_a_strange_configuration_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert model_context(tmp_path) is None
