"""What is said of a mistake: the pipeline's name, values as TOML, what to write in words."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.load import load
from supervisor.config.schema.toml_text import shown
from supervisor.errors import ConfigError

FILE = """
[host]
virtual = 2
[[pipeline]]
name = "code"
[pipeline.engine]
model = { make = "trainers.grpo.tiny:make" }
gpus = [0, 1]
[pipeline.trainer]
gpus = [0]
entry = "trainers.grpo:main"
"""


def lines(folder: Path, old: str, new: str) -> list[str]:
    file = folder / "a.toml"
    file.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(file)
    return [str(mistake).removeprefix(f"{file}:").partition(": ")[2] for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("gpus = [0]", "gpus = [7]", "pipeline code: trainer.gpus = [7]: GPU 7 is not there. The host has GPUs 0 to 1."),
        ("virtual = 2", "virtual = 2\nports = [20000]", "host.ports = [20000]: has 1 value. Give a list of 2 whole numbers."),
        ("virtual = 2", 'virtual = 2\nports = "x"', 'host.ports = "x": is a string. Give a list of 2 whole numbers.'),
        ("[host]", "scheduler = 3\n[host]", "scheduler = 3: is a whole number. Write it as a table: [scheduler]."),
        (
            '"code"', '"Code"',
            'pipeline[0].name = "Code": is not of the form that is wanted. Give a name of lower-case letters, digits, - and _ '
            '(a letter first, at most 32), for example "math-1".',
        ),
        (
            "gpus = [0, 1]", 'gpus = { targets = "x", more = [1, {}] }',
            'pipeline code: engine.gpus = { targets = "x", more = [1, {}] }: is a table. Give a list of whole numbers.',
        ),
        (
            '{ make = "trainers.grpo.tiny:make" }', '"/x\\u0000y"',
            'pipeline code: engine.model = "/x\\u0000y": contains a NUL character. Give a string.',
        ),
        (
            "virtual = 2", "virtual = 2\n[health]\nprobe_s = 1e-300\nrestarts = 0",
            "health.probe_s = 1e-300: is too small. Give a number of at least 0.001 up to 1e+07.",
        ),
    ],
)  # fmt: skip
def test_a_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert lines(tmp_path, old, new) == [line]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        ({"a b": "x", "c": {}}, '{ "a b" = "x", c = {} }'),
        ([[1, "ü"], []], '[[1, "ü"], []]'),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, …]"),
        ([[[[[1]]]]], "[[[[…]]]]"),
        (date(2026, 1, 2), "2026-01-02"),
        (10**100, "a very large number"),
        ("x" * 100, '"' + "x" * 57 + '..."'),
    ],
)
def test_values_are_shown_as_toml(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_table_is_shown_as_it_is_begun(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('host = { virtual = 1 }\npipeline = [{ name = "code", engine = 3, trainer = { gpus = [0], command = ["sh"] } }, 7]\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    said = {mistake.place or mistake.key: mistake.remedy for mistake in caught.value.mistakes}
    assert said["pipeline code: engine"] == "Write it as a table: [pipeline.engine]."
    assert said["pipeline[1]"] == "Write it as a table: [[pipeline]]."
