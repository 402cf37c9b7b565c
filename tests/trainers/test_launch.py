import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainshed import launch

from trainers.protocol.child_env import CLIENT
from trainers.user_code import torchrun_variables


def test_environment_is_torchruns() -> None:
    assert torchrun_variables(1, 2, 4711) == {
        "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4711",
    }  # fmt: skip
    with pytest.raises(ValueError, match="rank 2 of 2"):
        torchrun_variables(2, 2, 1)


@pytest.mark.parametrize("entry", ["", "os", ":", "os:", ":f", "os:no_such", "no.such:f", "os.no_such:f", "../x:f", "os:path", "os:a.b"])
def test_a_wrong_entry_is_the_operators_mistake(entry: str) -> None:
    with pytest.raises(launch.LaunchError):
        launch.resolve(entry)


def test_an_entry_that_fails_to_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        launch.resolve("needy:main")


def make_model(directory: Path, text: str = "") -> None:
    (directory / "config.json").write_text(text)
    if text == "fail":
        raise RuntimeError("half way")


def test_a_model_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "resolve", lambda entry: make_model)
    target = tmp_path / "m" / "model"
    with pytest.raises(RuntimeError):
        launch.make("x:y", target, {"text": "fail"})
    assert list((tmp_path / "m").iterdir()) == []
    launch.make("x:y", target, {"text": "ä"})
    assert (target / "config.json").read_text() == "ä"
    with pytest.raises(launch.LaunchError, match="exists"):
        launch.make("x:y", target, {})
    (tmp_path / "empty").mkdir()
    launch.make("x:y", tmp_path / "empty", {})
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def call(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    environment: dict[str, Any] = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CLIENT), **env}
    command = [sys.executable, "-P", "-m", "trainshed.launch", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\ndef main(): print('torch' in sys.modules)\ndef bad(): raise SystemExit(7)\n")
    path = f"{CLIENT}:{tmp_path}"
    done = call("script:main", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert call("script:bad", PYTHONPATH=path).returncode == 7
    done = call("nonsense")
    assert done.returncode == 2
    assert done.stderr == "trainshed.launch: 'nonsense' is not of the form module:function\n"
    assert "usage" in call().stderr
    assert call("--make", "os:listdir", str(tmp_path / "x"), "[]").returncode == 2
