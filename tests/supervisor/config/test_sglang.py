"""What a configuration may say about SGLang engines, and what it may not."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from supervisor.config.load import load
from supervisor.config.machine.interpreter import cuda_parts, preload_problem
from supervisor.config.schema.findings import GpuFact
from supervisor.errors import ConfigError
from tests.harness.gpu_box import sglang_environment
from trainers.protocol.ids import GpuId

FILE = """
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
kind = "{kind}"
python = "/bin/sh"
model = {{ make = "trainers.grpo.tiny:make" }}
gpus = [0, 1]
{more}
[pipeline.trainer]
gpus = [0]
entry = "trainers.grpo:main"
"""


def problems(tmp_path: Path, more: str, kind: str = "sglang") -> str:
    file = tmp_path / "a.toml"
    file.write_text(FILE.format(kind=kind, more=more))
    try:
        load(file)
    except ConfigError as error:
        return str(error)
    return ""


def test_its_own_flags_pass(tmp_path: Path) -> None:
    assert problems(tmp_path, 'args = ["--dtype", "float32", "--schedule-policy=lpm"]\nkv_tokens = 100000\ncontext = 4096') == ""


@pytest.mark.parametrize("flag", ["--port", "--tp-size=2", "--dp-size", "--api-key", "--config"])
def test_flags_that_are_the_supervisors_are_refused(tmp_path: Path, flag: str) -> None:
    said = problems(tmp_path, f'args = ["{flag}", "1"]')
    assert "engine.args" in said
    assert "may not be set by hand" in said


def test_a_pool_holds_one_sequence_at_least(tmp_path: Path) -> None:
    assert "kv_tokens" in problems(tmp_path, "kv_tokens = 100\ncontext = 4096")


def test_an_embedded_engine_has_no_such_pool(tmp_path: Path) -> None:
    assert "kv_tokens" in problems(tmp_path, "kv_tokens = 100", kind="embedded")


def test_quantised_rollouts_are_refused(tmp_path: Path) -> None:
    """B7: each load would allocate outside of what can be released."""
    assert "quantises the weights" in problems(tmp_path, 'args = ["--quantization", "fp8"]')
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096, "quantization_config": {"quant_method": "awq"}}')
    file = tmp_path / "a.toml"
    file.write_text(FILE.format(kind="sglang", more="").replace('{ make = "trainers.grpo.tiny:make" }', f'"{tmp_path}"'))
    with pytest.raises(ConfigError, match=r"is quantised \(awq\)"):
        load(file)


def said_on_gpus(tmp_path: Path, python: Path, cuda: int) -> str:
    """What `check` says on a box whose driver runs this CUDA at most."""
    file = tmp_path / "a.toml"
    text = FILE.format(kind="sglang", more="context = 4096").replace("virtual = 2", "gpus = [0, 1]")
    file.write_text(text.replace("/bin/sh", str(python)))
    try:
        load(file, lambda host: [GpuFact(GpuId(gpu), "H100", 80 << 30, cuda) for gpu in range(2)])
    except ConfigError as error:
        return str(error)
    return ""


def test_an_environment_that_fits_the_driver_passes(tmp_path: Path) -> None:
    """A4: its memory saver is found to load with the folder of CUDA's runtime on the loader's path, which it would not be without."""
    python = sglang_environment(tmp_path, runtime="19")  # one that no machine has in its own folders
    parts = cuda_parts(str(python), dict(os.environ), 10)
    assert parts is not None
    assert (parts.major, parts.libraries) == (19, [str(tmp_path / "site/nvidia/cu19/lib")])
    without = preload_problem(str(python), replace(parts, libraries=[]), dict(os.environ), 10)
    assert without is not None
    assert "libcudart.so.19: cannot open shared object file" in without
    assert said_on_gpus(tmp_path, python, 19000) == ""


def test_a_driver_that_is_too_old_is_told_before_an_engine_dies_of_it(tmp_path: Path) -> None:
    """A5"""
    said = said_on_gpus(tmp_path, sglang_environment(tmp_path), 12040)
    assert "is built for CUDA 13, and the driver of this machine runs 12.4 at most" in said
    assert "580 or newer" in said
    (tmp_path / "old").mkdir()
    assert said_on_gpus(tmp_path, sglang_environment(tmp_path / "old", runtime="12"), 12040) == ""


def test_a_memory_saver_that_is_not_there_is_told(tmp_path: Path) -> None:
    said = said_on_gpus(tmp_path, sglang_environment(tmp_path, preload=False), 13000)
    assert "cannot preload SGLang's memory saver (torch_memory_saver is not in this environment)" in said
