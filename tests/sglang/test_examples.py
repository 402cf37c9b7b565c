"""The examples for boxes with GPUs are sound: checked against a stand-in inventory, interpreter and models of their shape."""

import json
import shutil
from pathlib import Path

import pytest

from supervisor.config.fit import Machine, picture
from supervisor.config.load import Loaded, load
from supervisor.config.machine.model_files import model_size
from supervisor.config.schema.findings import GpuFact
from supervisor.config.schema.tables import HostTable
from trainers.protocol.ids import GpuId

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GIB = 1 << 30
# layers, heads, KV heads, hidden, head size, gigabytes of weights
MODELS = {
    "Qwen2.5-0.5B-Instruct": (24, 14, 2, 896, 64, 1.0),
    "Qwen2.5-3B-Instruct": (36, 16, 2, 2048, 128, 6.2),
    "Qwen2.5-Coder-3B-Instruct": (36, 16, 2, 2048, 128, 6.2),
    "Qwen3-30B-A3B": (48, 32, 4, 2048, 128, 61.0),
}
BOXES = {"sglang-1gpu": (1, 24), "sglang-8gpu": (8, 80), "sglang-moe-ep": (8, 80)}


def stand_in(directory: Path, name: str) -> None:
    layers, heads, kv_heads, hidden, head, size = MODELS[name]
    folder = directory / name
    folder.mkdir(parents=True)
    config = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": head}))
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(int(size * 1e9))  # a hole: no bytes on disk


@pytest.fixture(params=BOXES)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    text = (EXAMPLES / f"{request.param}.toml").read_text()
    for name in MODELS:
        if f"/{name}" in text:
            stand_in(tmp_path / "models", name)
    shutil.copy(EXAMPLES / "own_trainer.py", tmp_path)
    file, interpreter = tmp_path / f"{request.param}.toml", tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 0.5.23\n")  # what SGLang's says when it is asked for its version
    interpreter.chmod(0o755)
    file.write_text(text.replace("/opt/sglang/bin/python", str(interpreter)).replace("/models/", f"{tmp_path}/models/"))
    gpus, room = BOXES[request.param]

    def inventory(host: HostTable) -> list[GpuFact]:
        return [GpuFact(GpuId(index), "NVIDIA H100", room * GIB) for index in range(gpus)]

    return load(file, inventory)


def test_it_is_sound_and_fits(loaded: Loaded) -> None:
    sizes = {pipeline.name: model_size(Path(str(pipeline.engine.model))) for pipeline in loaded.config.pipeline}
    machine = Machine(loaded.gpus, 1000 * GIB, 500 * GIB, {})
    seen = picture(loaded.config, machine, sizes)
    assert seen.fits, [(gpu.gpu.id, gpu.needs, gpu.verdict) for gpu in seen.gpus]
    for pipeline in loaded.config.pipeline:
        assert len(pipeline.engine.gpus) % pipeline.engine.tp == 0
        assert sizes[pipeline.name] is not None


def test_the_pool_is_pinned_and_large_enough(loaded: Loaded) -> None:
    for pipeline in loaded.config.pipeline:
        assert pipeline.engine.kv_tokens is not None
        assert pipeline.engine.context is not None
        assert pipeline.engine.kv_tokens >= 8 * pipeline.engine.context
