"""A script that still imports `trainers.client` is refused before anything starts, with the line and what to write."""

import os
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.errors import ConfigError

FILE = """\
host.virtual = 1
[[pipeline]]
name = "p1"
engine = { model = { make = "trainers.grpo.tiny:make" }, gpus = [0] }
[pipeline.trainer]
gpus = [0]
command = ["python3", "-u", "train.py", "--task", "x"]
"""


def refused(folder: Path, script: str | bytes, file: str = FILE) -> str:
    (folder / "train.py").write_bytes(script if isinstance(script, bytes) else script.encode())
    (folder / "run.toml").write_text(file)
    try:
        load(folder / "run.toml")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("import os\nfrom trainers.client import connect\n", 2),
        ("if True:\n    pass\n    import trainers.client as c\n", 3),
        ("from trainers import client\n", 1),
        ("def main():\n  from trainers.client import (\n  connect)\n", 2),
    ],
)
def test_it_is_refused_with_its_line(tmp_path: Path, script: str, line: int) -> None:
    said = refused(tmp_path, script)
    assert f"{tmp_path}/train.py, line {line}: `trainers.client` is called `trainshed` now" in said
    assert "`from trainshed import connect`" in said
    assert said.startswith(f"{tmp_path}/run.toml:7: pipeline p1: trainer.command")


@pytest.mark.parametrize(
    "script",
    [
        "from trainshed import connect\n",
        '"""from trainers.client import connect"""\n',
        "from trainers.clients import x\nfrom .trainers import client\nimport trainers.grpo\n",
        "print 'of another Python'; from trainers.client import connect\n",
        b"\xff\xfe\x00",
    ],
)
def test_only_what_is_sure_is_refused(tmp_path: Path, script: str | bytes) -> None:
    assert refused(tmp_path, script) == ""


def test_a_package_of_ones_own_of_that_name_is_fine(tmp_path: Path) -> None:
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "client.py").write_text("")
    assert refused(tmp_path, "from trainers.client import connect\n") == ""


def test_scripts_of_launchers_are_read_and_pipes_are_not(tmp_path: Path) -> None:
    launcher = FILE.replace('"python3", "-u"', '"sh", "-c", "exec \\"$@\\"", "--"')
    assert "line 1" in refused(tmp_path, "import trainers.client\n", launcher)
    (tmp_path / "train.py").unlink()
    os.mkfifo(tmp_path / "train.py")
    (tmp_path / "run.toml").write_text(FILE)
    load(tmp_path / "run.toml")
