"""Several files, `--set` and `${NAME}`: what comes of them, and where a mistake in them is said to be."""

from pathlib import Path

import pytest

from supervisor.config.load import Loaded, load
from supervisor.errors import ConfigError, Mistake

BASE = """\
[host]
virtual = 2
[health]
drain_s = 5
[[pipeline]]
name = "p1"
engine = { model = { make = "trainers.grpo.tiny:make" }, gpus = [0, 1] }
trainer = { gpus = [0], entry = "trainers.grpo:main" }
[[pipeline]]
name = "p2"
engine = { model = { make = "trainers.grpo.tiny:make" }, gpus = [0, 1] }
trainer = { gpus = [1], entry = "trainers.grpo:main", steps = 3 }
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "base.toml"
    file.write_text(BASE)
    return file


def over(base: Path, text: str, *settings: str) -> Loaded:
    above = base.parent / "mine.toml"
    above.write_text(text)
    return load(base, over=[above], settings=settings)


def mistakes(base: Path, text: str | None, *settings: str) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigError) as error:
        load(base, settings=settings) if text is None else over(base, text, *settings)
    return error.value.mistakes


def test_a_later_file_changes_what_it_names_and_leaves_the_rest(base: Path) -> None:
    third = '[[pipeline]]\nname = "p3"\nengine = { model = { make = "trainers.grpo.tiny:make" }, gpus = [0] }\n'
    third += 'trainer = { gpus = [1], entry = "trainers.grpo:main" }\n'
    loaded = over(base, f'[health]\npause_s = 7\n[[pipeline]]\nname = "p2"\n[pipeline.trainer]\nsteps = 9\n{third}')
    config = loaded.config
    assert loaded.name == "mine"
    assert [pipeline.name for pipeline in config.pipeline] == ["p1", "p2", "p3"]
    assert (config.pipeline[0].trainer.steps, config.pipeline[1].trainer.steps, config.pipeline[1].trainer.gpus) == (1, 9, [1])
    assert (config.health.drain_s, config.health.pause_s) == (5.0, 7.0)
    assert b"drain_s = 5" in loaded.source
    assert b"pause_s = 7" in loaded.source


def test_settings_come_last_and_name_pipelines(base: Path) -> None:
    settings = ["pipeline.p1.engine.slots=32", "pipeline.*.trainer.steps=4", "host.virtual=8", "scheduler.targets=proportional"]
    loaded = load(base, settings=[*settings, "pipeline.p2.trainer.options={task='parity'}"])
    p1, p2 = loaded.config.pipeline
    assert (p1.engine.slots, p1.trainer.steps, p2.trainer.steps, p2.engine.slots) == (32, 4, 4, 16)
    assert (loaded.config.host.virtual, loaded.config.scheduler.targets) == (8, "proportional")
    assert p2.trainer.options == {"task": "parity"}
    assert b"# --set pipeline.p1.engine.slots=32\n" in loaded.source


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("slots", "is not KEY=VALUE"),
        ("pipeline.p9.engine.slots=1", "names no pipeline of the file: there are p1, p2"),
        ("pipeline.p1=3", "names no key of a pipeline"),
        ("host.virtual.x=3", "has no table virtual"),
        ("=3", "is not KEY=VALUE"),
    ],
)
def test_a_setting_that_names_nothing_is_refused(base: Path, setting: str, says: str) -> None:
    (mistake,) = mistakes(base, None, setting)
    assert mistake.file == f"--set {setting}"
    assert says in mistake.problem


def test_a_mistake_says_where_it_was_written(base: Path) -> None:
    found = mistakes(
        base, '[health]\npause_s = "x"\n[[pipeline]]\nname = "p2"\n[pipeline.trainer]\nstepps = 9\n', "pipeline.p1.engine.slots=no"
    )
    where = {mistake.key: (Path(mistake.file).name, mistake.line) for mistake in found}
    assert where == {
        "health.pause_s": ("mine.toml", 2),
        "pipeline[1].trainer.stepps": ("mine.toml", 6),
        "pipeline[0].engine.slots": ("--set pipeline.p1.engine.slots", None),
    }
    base.write_text(BASE.replace("drain_s = 5", 'drain_s = "y"'))
    assert [(Path(mistake.file).name, mistake.line) for mistake in mistakes(base, "[scheduler]\n")] == [("base.toml", 4)]


def test_variables_of_the_environment(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(base.parent))
    monkeypatch.delenv("NOT_SET", raising=False)
    text = """
[host]
directory = "${SCRATCH}/runs"
[[pipeline]]
name = "p2"
[pipeline.trainer]
env = { A = "${NOT_SET:-d}", B = "$${SCRATCH}", C = "$SCRATCH", D = "${NOT_SET:-}" }
"""
    config = over(base, text).config
    assert config.host.directory == f"{base.parent}/runs"
    assert config.pipeline[1].trainer.env == {"A": "d", "B": "${SCRATCH}", "C": "$SCRATCH", "D": ""}
    (mistake,) = mistakes(base, 'host = { directory = "${NOT_SET}/x" }')
    assert (mistake.key, mistake.line) == ("host.directory", 1)
    assert "NOT_SET, which is not set" in mistake.problem
    shell = '[[pipeline]]\nname = "p2"\ntrainer = { command = ["sh", "-c", "echo ${RANK}"] }\n'
    base.write_text(BASE.replace(', entry = "trainers.grpo:main", steps = 3', ""))
    assert over(base, shell).config.pipeline[1].trainer.command is not None, "a shell has variables of its own"
