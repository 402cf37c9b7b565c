"""What a run would only find out by losing its lives is said by `check`: scripts, functions, options, interpreters, ports, folders."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.config.machine import port_windows
from supervisor.config.machine.programs import script
from supervisor.errors import ConfigError, Mistake

FILE = """
[host]
virtual = 2
{host}
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {model}
gpus = [0, 1]
{engine}
[pipeline.trainer]
gpus = [0]
{trainer}
"""
TINY = '{ make = "trainers.grpo.tiny:make" }'
BUILT_IN = 'entry = "trainers.grpo:main"'


def told(
    folder: Path, host: str = "", model: str = TINY, engine: str = "", trainer: str = BUILT_IN, ask: bool = False
) -> dict[str, Mistake]:
    """Mistakes by the end of their key."""
    file = folder / "run.toml"
    file.write_text(FILE.format(host=host, model=model, engine=engine, trainer=trainer))
    try:
        load(file, (lambda host: []) if ask else None)
    except ConfigError as error:
        return {mistake.key.removeprefix("pipeline[0]."): mistake for mistake in error.mistakes}
    return {}


def test_what_is_right_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def main():\n    pass\n")
    for trainer in (
        BUILT_IN,
        BUILT_IN + '\noptions = { task = "class", lr = 1, group = 4 }',
        'command = ["sh", "-e", "train.py"]',
        'command = ["sh", "-c", "exit 0"]',
        'entry = "train:main"',
        'entry = "train:main"\nsteps = 3',
    ):
        assert told(tmp_path, trainer=trainer) == {}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "x.py"], "x.py"),
        (["/opt/env/bin/python3.11", "-u", "-W", "ignore", "-Xdev", "x.py", "--a"], "x.py"),
        (["python", "-Pm", "package"], None),
        (["python", "-c", "pass"], None),
        (["python", "-"], None),
        (["python", "--", "-x.py"], "-x.py"),
        (["bash", "-o", "pipefail", "run.sh"], "run.sh"),
        (["bash", "-ec", "ls"], None),
        (["torchrun", "x.py"], None),
        (["python"], None),
    ],
)
def test_which_word_is_the_script(command: list[str], expected: str | None) -> None:
    assert script(command) == expected


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    (mistake,) = told(tmp_path, trainer='command = ["sh", "trian.py"]').values()
    assert mistake.problem == f"there is no file {tmp_path}/trian.py"
    assert mistake.remedy == 'Did you mean "train.py"?'
    assert told(tmp_path, trainer='command = ["sh", "train.py"]\ncwd = "/usr"'), "it is looked for where it is run"


def test_a_program_that_is_not_on_the_path_and_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("")
    (tmp_path / "bin" / "python3").chmod(0o755)
    (tmp_path / "x.py").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (mistake,) = told(tmp_path, trainer='command = ["python", "x.py"]').values()
    assert mistake.problem == "is not on the PATH", "Trainshed's own Python is not meant"
    assert f'Write "python3" ({tmp_path}/bin/python3)' in mistake.remedy


def test_python_is_the_callers_and_is_written_down_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/sh")
    (tmp_path / "x.py").write_text("")
    (tmp_path / "run.toml").write_text(FILE.format(host="", model=TINY, engine="", trainer='command = ["python", "x.py"]'))
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    assert load(tmp_path / "run.toml").config.pipeline[0].trainer.command == [str(python), "x.py"], (
        "the link itself: it makes the environment"
    )


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("def main(): pass", "mian", 'Did you mean "mine:main"?'),
        ("if True:\n    def main(): pass", "main", ""),
        ("try:\n    from os import main\nexcept ImportError:\n    main = None", "main", ""),
        ("main, other = 1, 2", "main", ""),
        ("def __getattr__(name): pass", "main", ""),
        ("from os.path import *", "main", ""),
        ("class A:\n    def main(): pass", "main", "has no function main"),
        ("def main(:", "main", "line 1: "),
        ("def main(options): pass", "main", "wants options"),
        ("def main(*rest, more=1): pass", "main", ""),
        ("@wrapped\ndef main(options): pass", "main", ""),
        ("\0", "main", "null bytes"),
        ("x = " + "(" * 5000, "main", "line 1: "),
    ],
)
def test_functions_are_found_by_reading(tmp_path: Path, source: str, name: str, words: str) -> None:
    """…and nothing is executed: the module would say so."""
    (tmp_path / "mine.py").write_text(f"{source}\nopen({str(tmp_path / 'executed')!r}, 'w')\n")
    found = told(tmp_path, trainer=f'entry = "mine:{name}"')
    assert (words in str(found["trainer.entry"])) if words else not found, found
    assert not (tmp_path / "executed").exists()


def test_our_own_functions_and_modules_with_what_was_meant(tmp_path: Path) -> None:
    found = told(tmp_path, model='{ make = "trainers.grpo.tiny:mkae" }', trainer='entry = "trainers.grpo:mian"')
    assert found["engine.model.make"].remedy == 'Did you mean "trainers.grpo.tiny:make"?'
    assert found["trainer.entry"].remedy == 'Did you mean "trainers.grpo:main"?'
    assert told(tmp_path, trainer='entry = "trainers.grop:main"')["trainer.entry"].remedy == 'Did you mean "trainers.grpo:main"?'


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ('taks = "class"', "Did you mean `task`?"),
        ('task = "nosuch"', "There are: parity, class."),
        ('task = "clas"', 'Did you mean "class"?'),
        ('group = "4"', "Give a whole number."),
        ("group = 0", "must be at least 1"),
        ("lr = 0", "must be above 0"),
        ("ignore_eos = 1", "Give true or false."),
    ],
)
def test_options_of_the_built_in_trainer(tmp_path: Path, option: str, words: str) -> None:
    found = told(tmp_path, trainer=f"{BUILT_IN}\noptions = {{ {option} }}")
    assert list(found) == [f"trainer.options.{option.split()[0]}"]
    assert words in str(*found.values())


def test_options_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("def make(directory, *, size, seed=0): ...\ndef any(directory, **options): ...\n")
    found = told(tmp_path, model='{ make = "recipe:make", options = { sede = 1 } }')
    assert found["engine.model.options.sede"].remedy == "Did you mean `seed`?"
    assert "is missing" in found["engine.model.options.size"].problem
    assert told(tmp_path, model='{ make = "recipe:any", options = { sede = 1 } }') == {}
    tiny = told(tmp_path, model='{ make = "trainers.grpo.tiny:make", options = { task = "x", hidden = 3, seed = "1", more = 1 } }')
    assert set(tiny) == {f"engine.model.options.{key}" for key in ("task", "hidden", "seed", "more")}


def interpreter(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f'kind = "sglang"\ncontext = 64\npython = "{path}"'


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("echo 0.5.23", ""),
        ("echo 0.4.1", "SGLang 0.4.1 lacks"),
        ("echo ModuleNotFoundError >&2; exit 1", "has no SGLang (ModuleNotFoundError)"),
        ("exec sleep 20", ""),
    ],
)
def test_an_interpreter_is_asked_for_its_sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, words: str) -> None:
    monkeypatch.setattr("supervisor.config.machine.interpreter.CHECK_S", 1.0)
    engine = interpreter(tmp_path, says)
    found = told(tmp_path, engine=engine, ask=True)
    assert (words in str(found["engine.python"])) if words else not found, found
    assert told(tmp_path, engine=engine) == {}, "asked only where a run is meant"


def test_where_sglang_for_a_machine_without_gpus_comes_from(tmp_path: Path) -> None:
    found = told(tmp_path, engine='kind = "sglang"\ncontext = 64\npython = "./.sglang-cpu/bin/python"')
    assert f"`bin/sglang-cpu {tmp_path}/.sglang-cpu`" in found["engine.python"].remedy


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((28300, 28310), "has no room for 2 engines and 1 trainer"),
        ((28300, 28379), "has no room for 1 trainer"),
        ((28300, 28380), ""),
    ],
)
def test_ports_are_counted_in_windows(tmp_path: Path, span: tuple[int, int], words: str) -> None:
    """Two engines with 32 each, a trainer with 16, a gateway."""
    found = told(tmp_path, host=f"ports = {list(span)}")
    assert (words in found["host.ports"].problem) if words else not found, found


def test_a_port_in_the_middle_that_somebody_has(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 27040))
        taken.listen()
        assert "1 trainer" in told(tmp_path, host="ports = [27000, 27085]")["host.ports"].problem
        assert told(tmp_path, host="ports = [27000, 27121]") == {}
        assert "taken" in told(tmp_path, host="metrics_port = 27040\nports = [28100, 28400]")["host.metrics_port"].problem


def test_placing_windows() -> None:
    assert port_windows.unplaced([1, 4, 2], [1, 2, 3, 5, 6, 7, 8]) == []
    assert port_windows.unplaced([4, 4], [1, 2, 3, 4, 6, 7, 8]) == [4]
    assert port_windows.unplaced([1], []) == [1]


def test_a_folder_in_which_nothing_can_be_made(tmp_path: Path) -> None:
    """Not even by root, whom permissions let through."""
    assert "/sys" in told(tmp_path, host='directory = "/sys/runs"')["host.directory"].problem
    assert "nothing can be made" in told(tmp_path, host='shm = "/proc"')["host.shm"].problem
    assert told(tmp_path, host='directory = "runs/here"\nshm = "."') == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.toml"], "and nothing is left of the trial"


def test_every_flag_that_is_not_the_operators(tmp_path: Path) -> None:
    engine = interpreter(tmp_path, "echo 0.5.23") + '\nargs = ["--dp-size", "2", "--tp", "2", "--dtype", "half", "--port=1"]'
    mistake = told(tmp_path, engine=engine)["engine.args"]
    assert mistake.value == '"--dp-size --tp --port=1"'
    assert "Remove them" in mistake.remedy


def test_paths_too_long_for_the_engines_sockets(tmp_path: Path) -> None:
    engine = interpreter(tmp_path, "echo 0.5.23")
    assert told(tmp_path, engine=engine) == {}
    shm = tmp_path / ("s" * 80)
    shm.mkdir()
    found: Mapping[str, Mistake] = told(tmp_path, engine=engine, host=f'shm = "{shm}"')
    assert "too long for SGLang's sockets" in found["name"].problem
    assert told(tmp_path, host=f'shm = "{shm}"') == {}, "ours makes none"
