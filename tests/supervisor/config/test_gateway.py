"""`[pipeline.gateway]`: what may be written, and what of it reaches the gateway's command line."""

from pathlib import Path

import pytest

from supervisor.config.kinds.registry import kind_of
from supervisor.config.load import load
from supervisor.config.schema.tables import EngineTable, GatewayTable, HealthTable
from supervisor.errors import ConfigError
from supervisor.runtime.gateways import arguments

FILE = """
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ seed = 1 }} }}
gpus = [0, 1]
[pipeline.trainer]
gpus = [0]
entry = "trainers.grpo:main"
{}
"""


def read(tmp_path: Path, table: str) -> GatewayTable:
    path = tmp_path / "run.toml"
    path.write_text(FILE.format(table))
    return load(path).config.pipeline[0].gateway


def test_the_defaults_change_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == GatewayTable("continue", None, False, 0.25, True)
    assert arguments(GatewayTable(), HealthTable()) == ["--on-publish", "continue", "--abort-patience", "5"]


def test_everything_that_can_be_written(tmp_path: Path) -> None:
    table = '[pipeline.gateway]\non_publish = "finish"\nmax_version_lag = 2\nprefix_affinity = true\nprefix_slack = 0.5\nauth = false\n'
    table += 'tool_parser = "qwen25"\nreasoning_parser = "none"'
    gateway = read(tmp_path, table)
    assert gateway == GatewayTable("finish", 2, True, 0.5, False, "qwen25", "none")
    assert arguments(gateway, HealthTable(drain_s=3.0)) == [
        "--on-publish",
        "finish",
        "--abort-patience",
        "0.75",
        "--max-version-lag",
        "2",
        "--prefix-slack",
        "0.5",
        "--tool-parser",
        "qwen25",
        "--reasoning-parser",
        "none",
        "--no-auth",
    ]


def test_what_kills_the_engines_is_refused_by_the_gateway() -> None:
    assert arguments(GatewayTable(), HealthTable(), ["min_p"])[-2:] == ["--refuse", "min_p"]
    for kind, deterministic, refused in (("sglang", True, ("min_p",)), ("sglang", False, ()), ("embedded", True, ())):
        engine = EngineTable(model="m", gpus=[0], kind=kind, deterministic=deterministic)
        assert kind_of(engine).refused_parameters(engine) == refused


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('on_publish = "stop"', "pipeline[0].gateway.on_publish"),
        ("max_version_lag = -1", "pipeline[0].gateway.max_version_lag"),
        ('tool_parser = "--x"', "pipeline[0].gateway.tool_parser"),
        ('reasoning_parser = ""', "pipeline[0].gateway.reasoning_parser"),
        ('on_publish = "restart"\nmax_version_lag = 1', "pipeline[0].gateway.max_version_lag"),
        ("prefix_affinity = 1", "pipeline[0].gateway.prefix_affinity"),
        ("prefix_slack = 0.5", "pipeline[0].gateway.prefix_slack"),
        ("prefix_affinity = true\nprefix_slack = 2.0", "pipeline[0].gateway.prefix_slack"),
        ('auth = "no"', "pipeline[0].gateway.auth"),
        ("sticky = true", "pipeline[0].gateway.sticky"),
    ],
)
def test_mistakes_are_named_by_their_key(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"[pipeline.gateway]\n{line}")
    assert key in {mistake.key for mistake in caught.value.mistakes}
