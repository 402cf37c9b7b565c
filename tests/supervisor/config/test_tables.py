"""Every key of the TOML file is documented, and the types mean what they say."""

import inspect
from pathlib import Path

import msgspec

from supervisor.config.schema import tables
from supervisor.config.schema.key_table import TABLES, key_table

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_table_of_keys_in_the_readme_is_printed_from_the_types() -> None:
    """python -m supervisor.config.schema.key_table"""
    assert key_table(inspect.getsource(tables)) in README.read_text()


def test_no_table_is_forgotten() -> None:
    every = {kind for kind in vars(tables).values() if isinstance(kind, type) and kind.__name__.endswith("Table")} - {tables._Table}
    assert every == set(TABLES.values())


def test_the_types_can_be_encoded_and_read_again() -> None:
    engine = tables.EngineTable(tables.ModelRecipe("a:b", {"x": 1}), [0])
    whole = tables.Config([tables.PipelineTable("p1", engine, tables.TrainerTable([0], entry="a:b"))], tables.HostTable(gpus=[0, 1]))
    assert msgspec.json.decode(msgspec.json.encode(whole), type=tables.Config) == whole
