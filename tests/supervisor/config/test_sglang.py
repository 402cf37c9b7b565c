"""What a configuration may say about SGLang engines, and what it may not."""

from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.errors import ConfigError

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
