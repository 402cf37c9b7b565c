"""Every key of the TOML file is documented, and the types mean what they say."""

from pathlib import Path

import msgspec

from supervisor.config.schema import tables

README = Path(__file__).resolve().parents[3] / "README.md"


def test_every_key_is_in_the_readme() -> None:
    text = README.read_text()
    every = (
        tables.HostTable,
        tables.SchedulerTable,
        tables.HealthTable,
        tables.LoggingTable,
        tables.EngineTable,
        tables.TrainerTable,
        tables.PipelineTable,
        tables.GatewayTable,
    )
    for table in every:
        for field in msgspec.structs.fields(table):
            if field.name not in ("engine", "trainer", "gateway"):
                assert f"`{field.name}`" in text, f"{table.__name__}.{field.name}"


def test_the_types_can_be_encoded_and_read_again() -> None:
    engine = tables.EngineTable(tables.ModelRecipe("a:b", {"x": 1}), [0])
    whole = tables.Config([tables.PipelineTable("p1", engine, tables.TrainerTable([0], entry="a:b"))], tables.HostTable(gpus=[0, 1]))
    assert msgspec.json.decode(msgspec.json.encode(whole), type=tables.Config) == whole
