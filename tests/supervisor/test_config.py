"""Every key of the TOML file is documented, and the types mean what they say."""

from pathlib import Path

import msgspec

from supervisor import config

README = Path(__file__).resolve().parents[2] / "README.md"


def test_every_key_is_in_the_readme() -> None:
    text = README.read_text()
    tables = (config.Host, config.Scheduling, config.Health, config.Logging, config.Engine, config.Trainer, config.Pipeline, config.Gateway)
    for table in tables:
        for field in msgspec.structs.fields(table):
            if field.name not in ("engine", "trainer", "gateway"):
                assert f"`{field.name}`" in text, f"{table.__name__}.{field.name}"


def test_the_types_can_be_encoded_and_read_again() -> None:
    engine = config.Engine(config.ModelRecipe("a:b", {"x": 1}), [0])
    whole = config.Config([config.Pipeline("p1", engine, config.Trainer([0], entry="a:b"))], config.Host(gpus=[0, 1]))
    assert msgspec.json.decode(msgspec.json.encode(whole), type=config.Config) == whole
