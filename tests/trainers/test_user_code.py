"""A user's project whose packages are named as ours: each finds its own, and `import trainshed` is the client, however the code is started."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.harness.supervised_run import Run
from trainers.protocol.child_env import CHECKOUT, CLIENT
from trainers.rewards import Verifiers
from trainers.user_code import forget, python_path

OURS = ("supervisor", "engines", "bench")
"""Of our packages those that the project does not have: its code must not find them."""

TRAIN = """
import importlib.util, json, sys
from pathlib import Path
import trainshed
import tests.helpers
import trainers.grpo
import trainshed_x

def seen():
    return {
        "mine": [trainers.grpo.WHOSE, tests.helpers.WHOSE, trainshed_x.WHOSE],
        "client": trainshed.__file__,
        "ours": [name for name in OURS if name in sys.modules or importlib.util.find_spec(name)],
    }

def main():
    pipeline = trainshed.connect()
    Path(f"{pipeline.name}.json").write_text(json.dumps(seen()))

def make(directory):
    (directory / "config.json").write_text("{}")
    (Path(__file__).parent / "model.json").write_text(json.dumps(seen()))

def score(text):
    return float(seen() == json.loads(text))

if __name__ == "__main__":
    main()
"""

FILE = """
[host]
virtual = 2
prewarm = {prewarm}
[[pipeline]]
name = "by_command"
[pipeline.engine]
model = {{ make = "train:make" }}
gpus = [0]
context = 32
[pipeline.trainer]
gpus = [0]
command = ["{python}", "train.py"]
steps = 1
[[pipeline]]
name = "by_entry"
[pipeline.engine]
model = "model"
gpus = [1]
context = 32
[pipeline.trainer]
gpus = [1]
entry = "{entry}"
steps = 1
"""

EXPECTED = {"mine": ["mine"] * 3, "client": str(CLIENT / "trainshed" / "__init__.py"), "ours": []}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("trainers/grpo.py", "tests/helpers.py"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text('WHOSE = "mine"\n')
        (folder / name).with_name("__init__.py").write_text("")
    (folder / "trainshed_x.py").write_text('WHOSE = "mine"\n')
    (folder / "train.py").write_text(TRAIN.replace("OURS", repr(OURS)))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("prewarm", "entry"), [("false", "train:main"), ("true", "trainers.grpo:main_of_mine")])
def test_a_project_with_packages_named_as_ours_sees_its_own(project: Path, prewarm: str, entry: str) -> None:
    (project / "trainers" / "grpo.py").write_text('WHOSE = "mine"\ndef main_of_mine():\n    from train import main\n    main()\n')
    file = project / "run.toml"
    file.write_text(FILE.format(prewarm=prewarm, python=sys.executable, entry=entry))
    run = Run(project, file)
    try:
        assert run.end(60.0) == 0, run.tail()
    finally:
        run.stop()
    for name in ("by_command", "by_entry", "model"):
        assert json.loads((project / f"{name}.json").read_text()) == EXPECTED, name


def test_a_reward_function_sees_its_own_packages(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])  # as that of the built-in trainer, whose checkout comes first
    with Verifiers("train:score", workers=1) as verifiers:
        assert verifiers.score([(json.dumps(EXPECTED),), ("{}",)]) == [1.0, 0.0]


def test_only_built_in_names_get_the_checkout() -> None:
    assert python_path("trainers.grpo:main", "/a", None).split(":") == [str(CHECKOUT), str(CLIENT), "/a"]
    for entry in ("trainers.grpo:other", "trainers.mine:main", "train:main", None):
        assert python_path(entry, "/a", "/b:/c").split(":") == [str(CLIENT), "/a", "/b", "/c"]


def test_forgetting_spares_what_lies_deeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment may lie inside the checkout."""
    modules: dict[str, Any] = {"one": types.ModuleType("one"), "one.part": types.ModuleType("one.part"), "two": types.ModuleType("two")}
    modules["one"].__path__ = [str(tmp_path / "one")]
    modules["two"].__file__ = str(tmp_path / ".venv" / "site-packages" / "two.py")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / ".venv" / "site-packages"), *sys.path])
    forget({str(tmp_path)})
    assert [name for name in modules if name in sys.modules] == ["two"]
    assert sys.path[0] == str(tmp_path / ".venv" / "site-packages")
